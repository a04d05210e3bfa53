"""Train a small convolutional network on digits, dense and under masks, and write the table of docs/training.md.

    python examples/train_digits.py

Needs torch and scikit-learn (pip install ".[torch,dev]"); about a minute on two cores.
"""

from functools import lru_cache

import numpy as np
import torch
from masked_training import Task, experiment, seeds_in_words
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import transmask as tm

PATTERN = tm.Pattern(1, 4)
MASKED_LAYERS = ["4", "9"]
EPOCHS, BATCH, LEARNING_RATE = 20, 32, 0.05
ALPHA = 7e-4
"""Keeps about as much as the pattern, 25 %."""


@lru_cache
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images and labels, then held-out ones; half of the 1797 digits each."""
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32) / 16).unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.5, random_state=0, stratify=digits.target)
    return images[train], labels[train], images[test], labels[test]


def build(seed: int) -> nn.Module:
    """Two convolutions and two linear layers; the masks lie on the middle two."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def make_task(seed: int) -> Task:
    """Describe the task, with the batches of one seed."""
    images, labels, test_images, test_labels = data()
    generator = torch.Generator().manual_seed(seed)
    batches = [batch for _ in range(EPOCHS) for batch in torch.randperm(len(images), generator=generator).split(BATCH)]

    def loss(model: nn.Module, step: int) -> Tensor:
        return nn.functional.cross_entropy(model(images[batches[step]]), labels[batches[step]])

    @torch.no_grad()
    def accuracy(model: nn.Module) -> float:
        return float((model.eval()(test_images).argmax(1) == test_labels).float().mean())

    return Task(
        name="digits",
        pattern=PATTERN,
        layers=MASKED_LAYERS,
        build=lambda: build(seed),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4),
        steps=len(batches),
        loss=loss,
        score=accuracy,
        calibration=lambda: [images[:512]],
        alpha=ALPHA,
    )


if __name__ == "__main__":
    matrices = {name: weight.numel() for name, weight in build(0).named_parameters() if weight.ndim > 1}
    masked = sum(matrices[f"{layer}.weight"] for layer in MASKED_LAYERS)
    held_out = len(data()[3])
    experiment(
        make_task,
        "held-out accuracy",
        lambda value: f"{100 * value:.2f} %",
        f"{PATTERN} on the second convolution and the first linear layer ({masked:,} of {sum(matrices.values()):,} "
        f"weights), {make_task(0).steps} steps of {BATCH} images, masks refreshed every 40 steps, {seeds_in_words()}. "
        f"{held_out} held-out images: one of them is {1 / held_out:.2%}.",
    )
