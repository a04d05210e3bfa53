"""Train a small transformer to predict characters, dense and under masks, and write the table of docs/training.md.

    python examples/train_charlm.py

Needs torch; a few minutes on two cores. The text is the help of the Python that runs this (`pydoc_data.topics`), so
another version of Python gives other numbers.
"""

from functools import lru_cache
from pydoc_data.topics import topics

import torch
from masked_training import Task, experiment, seeds_in_words
from torch import Tensor, nn
from torch.nn import functional

import transmask as tm

PATTERN = tm.Pattern(2, 8)
CONTEXT, BATCH, STEPS, LEARNING_RATE = 64, 32, 320, 2e-3
WIDTH, HEADS, BLOCKS = 96, 4, 2
ALPHA = 5e-4
"""Keeps about as much as the pattern, 25 %."""
HELD_OUT_CHARACTERS = 32_768


class Block(nn.Module):
    """Causal attention and a feed-forward layer, each after a layer norm and around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query_key_value, self.attended = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, WIDTH) to the same shape."""
        parts = self.query_key_value(self.norm1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.attended(attended)
        return x + self.narrow(functional.gelu(self.wide(self.norm2(x))))


class Transformer(nn.Module):
    """Logits of the next character for each of at most CONTEXT characters."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.logits = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)

    def forward(self, text: Tensor) -> Tensor:
        """Map (B, T) character numbers to (B, T, characters)."""
        x = self.characters(text) + self.places.weight[: text.shape[1]]
        return self.logits(self.norm(self.blocks(x)))


@lru_cache
def data() -> tuple[Tensor, Tensor, int]:
    """Return the training text and the held-out text as character numbers, and how many characters there are."""
    text = "\n".join(topics[name] for name in sorted(topics))
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    encoded = torch.tensor([numbers[character] for character in text])
    return encoded[:-HELD_OUT_CHARACTERS], encoded[-HELD_OUT_CHARACTERS:], len(numbers)


def mean_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the cross entropy of (B, CONTEXT + 1) windows, in nats a character."""
    logits = model(windows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def make_task(seed: int) -> Task:
    """Describe the task, with the batches of one seed."""
    text, held_out, characters = data()
    windows = text.unfold(0, CONTEXT + 1, 1)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(windows), (STEPS, BATCH), generator=generator)

    def build() -> nn.Module:
        torch.manual_seed(seed)
        return Transformer(characters)

    @torch.no_grad()
    def held_out_loss(model: nn.Module) -> float:
        whole = held_out.unfold(0, CONTEXT + 1, CONTEXT)
        return float(mean_loss(model.eval(), whole))

    return Task(
        name="charlm",
        pattern=PATTERN,
        layers="blocks.*",
        build=build,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01),
        steps=STEPS,
        loss=lambda model, step: mean_loss(model, windows[starts[step]]),
        score=held_out_loss,
        calibration=lambda: list(windows[starts[:16].flatten()][:, :-1].split(128)),
        alpha=ALPHA,
    )


if __name__ == "__main__":
    masked = sum(weight.numel() for weight in Transformer(data()[2]).blocks.parameters() if weight.ndim == 2)
    experiment(
        make_task,
        "held-out loss, nats a character",
        lambda value: f"{value:.3f}",
        f"{PATTERN} on every matrix of {BLOCKS} transformer blocks ({masked:,} weights), {STEPS} steps of {BATCH} "
        f"windows of {CONTEXT} characters, masks refreshed every 40 steps, {seeds_in_words()}.",
    )
