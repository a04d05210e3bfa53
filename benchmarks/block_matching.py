"""Measure what training blocks on the outputs of the dense model adds to layer-wise reconstruction, and what it costs.

    python -m benchmarks.block_matching

A language model of four blocks, 0.8 million masked weights, is trained on the characters of Python's own reference
(the module `pydoc_data.topics`) for 400 steps. Block after block is then pruned, fitted to the inputs that the pruned
blocks before it give, and trained on what the dense block answered in the dense model. The
cross-entropy, in nats a character, is that on the last tenth of the text, which neither training nor calibration has
seen. Rows are printed as they come. Takes about five minutes on one thread.
"""

from __future__ import annotations

import copy
import time
from pydoc_data import topics

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.report import table
from transmask.torch import reconstruct
from transmask.torch.reconstruction.block_matching import match_block

WIDTH, BLOCKS, HEADS, TOKENS, SEQUENCES, STEPS = 128, 4, 4, 64, 32, 400
CALIBRATION, MATCHING_STEPS = 24, 200


class Block(nn.Module):
    """Causal attention and a perceptron, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (sequences, tokens, width) from the same."""
        parts = self.attention(self.first_norm(hidden)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)
        hidden = hidden + self.project(mixed)
        return hidden + self.down(functional.gelu(self.up(self.second_norm(hidden))))


class Language(nn.Module):
    """Characters in, logits of the next character out."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(characters, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)

    def embed(self, text: Tensor) -> Tensor:
        """Return what the first block gets."""
        return self.embedding(text) + self.positions.weight

    def forward(self, text: Tensor) -> Tensor:
        """Return (sequences, tokens, characters) logits."""
        hidden = self.embed(text)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


def read_text() -> tuple[Tensor, Tensor, int]:
    """Return the text to train on and the text held out as numbers, and how many characters there are."""
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    alphabet = {character: index for index, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([alphabet[character] for character in text])
    cut = 9 * len(numbers) // 10
    return numbers[:cut], numbers[cut:], len(alphabet)


def batch(text: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return random sequences, and the same a character later."""
    starts = torch.randint(len(text) - TOKENS - 1, (SEQUENCES,), generator=torch.Generator().manual_seed(seed))
    windows = torch.stack([text[start : start + TOKENS + 1] for start in starts.tolist()])
    return windows[:, :-1], windows[:, 1:]


def loss_of(model: nn.Module, text: Tensor, seed: int) -> Tensor:
    """Return the mean cross-entropy of one batch, in nats a character."""
    inputs, following = batch(text, seed)
    return functional.cross_entropy(model(inputs).flatten(0, 1), following.flatten())


def train(model: nn.Module, text: Tensor) -> None:
    """Train the dense model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in track(range(STEPS), "training"):
        optimizer.zero_grad()
        loss_of(model, text, step).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def prune(
    dense: Language, text: Tensor, pattern: str, *, method: str, transposable: bool, steps: int
) -> tuple[Language, dict[str, float]]:
    """Return the pruned model, and the means over its blocks of errors and the sums of times."""
    model = copy.deepcopy(dense)
    seen = [dense.embed(batch(text, -1 - index)[0]) for index in range(CALIBRATION)]
    wanted = seen
    measured = dict.fromkeys(("error before", "error after", "layers, s", "matching, s"), 0.0)
    for block, original in zip(model.blocks, dense.blocks, strict=True):
        wanted = [original(hidden) for hidden in wanted]
        began = time.perf_counter()
        report = reconstruct(
            block, seen, pattern, method=method, scores="wanda", transposable=transposable, progress=False
        )
        measured["layers, s"] += time.perf_counter() - began
        if steps:
            masks = {fit.name: block.get_parameter(fit.name) != 0 for fit in report.fits}
            began = time.perf_counter()
            match = match_block(block, [((hidden,), {}) for hidden in seen], wanted, masks, steps=steps)
            measured["matching, s"] += time.perf_counter() - began
            measured["error before"] += match.error_before / BLOCKS
            measured["error after"] += match.error_after / BLOCKS
        seen = [block(hidden) for hidden in seen]
    return model, measured


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text, held_out, characters = read_text()
    dense = Language(characters)
    train(dense, text)

    @torch.no_grad()
    def judge(model: nn.Module) -> float:
        return sum(float(loss_of(model, held_out, 10_000 + seed)) for seed in range(40)) / 40

    rows: list[dict[str, object]] = [{"pattern": "dense", "nats": f"{judge(dense):.4f}"}]
    for pattern, transposable in (("2:4", True), ("2:4", False)):
        for method in ("least_squares", "alps"):
            for steps in (0, MATCHING_STEPS):
                model, measured = prune(dense, text, pattern, method=method, transposable=transposable, steps=steps)
                row = {"pattern": f"{'' if transposable else 'plain '}{pattern}", "method": method, "steps": steps}
                rows.append(row | {"nats": f"{judge(model):.4f}"} | {k: f"{v:.3g}" for k, v in measured.items() if v})
                print(rows[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
