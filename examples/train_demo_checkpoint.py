"""Train the checkpoint of ``transmask demo`` and write it, with its held-out images, to transmask/data.

    python examples/train_demo_checkpoint.py [FOLDER]

Needs torch, scikit-learn and safetensors; takes a few seconds on one core. Half of scikit-learn's digits train a
network with two convolutions and two linear layers; the other half is never shown to it and ships with it, so that the
demo can measure accuracy without scikit-learn. Seed, split, versions and accuracy are recorded in the files.
"""

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import sklearn
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

SEED = 0
EPOCHS = 40
BATCH = 32
PEAK_LEARNING_RATE = 5e-3
SOURCE = (
    "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository, "
    "CC BY 4.0; the 1797 images of sklearn.datasets.load_digits"
)
SPLIT = f"train_test_split(range(1797), test_size=0.5, random_state={SEED}, stratify=target)"


def make_network() -> nn.Sequential:
    """Build the network; 100 and 10 are sides that 8 does not divide, so that the demo has blocks cut by an edge."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(256, 100),
            relu3=nn.ReLU(),
            fc2=nn.Linear(100, 10),
        )
    )


def train(network: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Minimise the cross entropy with Adam on a one-cycle schedule."""
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-4)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()


def as_input(images: np.ndarray) -> torch.Tensor:
    """Scale images of 0 to 16, shape (B, 8, 8), to [0, 1], shape (B, 1, 8, 8)."""
    return torch.from_numpy(images.astype(np.float32) / 16).unsqueeze(1)


def main(folder: Path) -> None:
    """Train, measure on the held-out half, write both files."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the order of a sum must not depend on the machine's cores
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    train_index, test_index = train_test_split(
        np.arange(len(digits.target)), test_size=0.5, random_state=SEED, stratify=digits.target
    )
    seen = {digits.images[index].tobytes() for index in train_index}
    test_index = np.array([index for index in test_index if digits.images[index].tobytes() not in seen])

    network = make_network()
    train(network, as_input(digits.images[train_index]), torch.from_numpy(digits.target[train_index]))
    with torch.no_grad():
        # Trained checkpoints mix dtypes; the largest tensor is stored, and measured, in bfloat16.
        network.fc1.weight.copy_(network.fc1.weight.bfloat16())
        answers = network(as_input(digits.images[test_index])).argmax(1).numpy()
    accuracy = np.count_nonzero(answers == digits.target[test_index]) / len(test_index)

    tensors = network.state_dict() | {"fc1.weight": network.fc1.weight.detach().bfloat16()}
    save_file(
        tensors,
        folder / "digits.safetensors",
        metadata={
            "description": "conv 1-32, conv 32-64, linear 256-100, linear 100-10; digits of 8 x 8 pixels",
            "script": "examples/train_demo_checkpoint.py",
            "seed": str(SEED),
            "split": SPLIT,
            "trained_with": f"torch {torch.__version__}, scikit-learn {sklearn.__version__}",
            "held_out_images": str(len(test_index)),
            "held_out_accuracy": f"{accuracy:.6f}",
        },
    )
    save_file(
        {
            "images": torch.from_numpy(digits.images[test_index].astype(np.uint8)),
            "labels": torch.from_numpy(digits.target[test_index].astype(np.uint8)),
            "index": torch.from_numpy(test_index.astype(np.int16)),
        },
        folder / "digits_held_out.safetensors",
        metadata={"source": SOURCE, "split": SPLIT, "script": "examples/train_demo_checkpoint.py", "pixels": "0 to 16"},
    )
    print(f"{accuracy:.2%} of {len(test_index)} held-out digits")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "transmask" / "data")
