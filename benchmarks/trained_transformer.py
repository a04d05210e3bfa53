"""A language model of 6 million weights in its layers, trained on text that ships with Python.

    python -m benchmarks.trained_transformer MODEL.pt

The text is the source of the standard library's top-level modules, in ASCII and character by character; every tenth
module is held out. Another version of Python gives another text. Takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import sys
import sysconfig
from functools import lru_cache
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["TOKENS", "Language", "held_out_loss", "load", "texts", "windows"]

WIDTH, BLOCKS, HEADS, TOKENS, SEQUENCES, STEPS = 288, 6, 6, 128, 16, 700


class Block(nn.Module):
    """Causal attention and a perceptron, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.project = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (sequences, tokens, width) from the same."""
        normed = self.first_norm(hidden)
        parts = (
            layer(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)
        hidden = hidden + self.project(mixed)
        return hidden + self.down(functional.gelu(self.up(self.second_norm(hidden))))


class Language(nn.Module):
    """Characters in, logits of the next character out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(128, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128)

    def forward(self, text: Tensor) -> Tensor:
        """Return (sequences, tokens, characters) logits."""
        hidden = self.embedding(text) + self.positions.weight
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


@lru_cache
def texts() -> tuple[Tensor, Tensor]:
    """Return the text to train on and the text held out, as codes."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    parts = [file.read_bytes() for file in files]
    joined = [b"".join(part for index, part in enumerate(parts) if (index % 10 == 9) is held) for held in (False, True)]
    train, held_out = (torch.frombuffer(bytearray(text), dtype=torch.uint8).long() for text in joined)
    return train[train < 128], held_out[held_out < 128]


def windows(text: Tensor, count: int, seed: int) -> Tensor:
    """Return random sequences, (count, TOKENS + 1)."""
    starts = torch.randint(len(text) - TOKENS, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([text[start : start + TOKENS + 1] for start in starts.tolist()])


def loss_of(model: nn.Module, sequences: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats a character."""
    return functional.cross_entropy(model(sequences[:, :-1]).flatten(0, 1), sequences[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: nn.Module) -> float:
    """Return the mean cross-entropy on 256 sequences of the text held out, in nats a character."""
    return sum(float(loss_of(model, windows(texts()[1], SEQUENCES, 10_000 + seed))) for seed in range(16)) / 16


def load(path: str) -> Language:
    """Return the model that was trained."""
    model = Language()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def main(path: str) -> None:
    """Train and save."""
    torch.manual_seed(0)
    model = Language()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=STEPS)
    for step in track(range(STEPS), "training"):
        optimizer.zero_grad()
        loss_of(model, windows(texts()[0], SEQUENCES, step)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    torch.save(model.state_dict(), path)
    print(f"{held_out_loss(model):.4f} nats a character on held-out text")


if __name__ == "__main__":
    main(*sys.argv[1:])
