"""Measure what refreshing masks costs in training, and write the table of docs/training.md.

    python -m benchmarks.torch_refresh

A transformer of 12.6 million masked weights is trained on the CPU, dense and with exact 4:8 masks, and its weights are
kept at every 40th step. Every solver then finds the masks for these weights in turn. Times are the best of the rounds;
run it on a machine that does nothing else. Takes about ten minutes on two cores, of which min_cost_flow needs the
larger part.
"""

import copy
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import torch
from rich.progress import track
from torch import nn

from benchmarks.readme_sections import replace_section
from transmask.torch import sparsify

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
WIDTH, BLOCKS, SEQUENCES, TOKENS = 512, 4, 8, 64
REFRESH_EVERY, REFRESHES = 40, 2
PATTERNS = ("2:4", "4:8", "8:16")

Weights: TypeAlias = dict[str, torch.Tensor]


SOLVERS = {
    "`primal_dual`, exact": "primal_dual",
    "`greedy`": "greedy",
    "`two_approximation` (the paper's algorithm 1, completed)": "two_approximation",
    "`min_cost_flow`, exact": "min_cost_flow",
}


def make_model() -> nn.Module:
    """Return transformer blocks of 12.6 million weights in their matrices."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, BLOCKS, enable_nested_tensor=False)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, label: str) -> list[float]:
    """Train the model to reverse random sequences; return the seconds of every step."""
    seconds = []
    for step in track(range(steps), label):
        inputs = torch.randn(SEQUENCES, TOKENS, WIDTH, generator=torch.Generator().manual_seed(step))
        began = time.perf_counter()
        optimizer.zero_grad()
        (model(inputs) - inputs.flip(1)).square().mean().backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def weights_in_training() -> tuple[list[Weights], float, float]:
    """Return the weights at the start and at every refresh, and the median seconds of a dense and of a masked step."""
    model = make_model()
    dense = copy.deepcopy(model)
    dense_s = train(dense, torch.optim.AdamW(dense.parameters(), lr=3e-4), 20, "dense")
    controller = sparsify(model, "4:8", refresh_every=REFRESH_EVERY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    controller.attach(optimizer)
    names, masked_s = list(controller.masks()), []
    snapshots = [{name: original(model, name).clone() for name in names}]
    for _ in range(REFRESHES):
        masked_s += train(model, optimizer, REFRESH_EVERY, "masked")[:-1]  # the last step refreshes
        snapshots.append({name: original(model, name).clone() for name in names})
    return snapshots, statistics.median(dense_s), statistics.median(masked_s)


def original(model: nn.Module, name: str) -> torch.Tensor:
    """Return the dense weight behind a mask."""
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path).parametrizations[attribute].original.detach()


def refresh_seconds(snapshots: list[Weights], pattern: str, solver: object) -> float:
    """Return the shortest time a refresh of all masks took."""
    model = make_model()
    controller = sparsify(model, pattern, solver=solver)
    seconds = []
    for weights in snapshots:
        for name, weight in weights.items():
            original(model, name).copy_(weight)
        seconds.append(sum(record.seconds for record in controller.refresh()))
    return min(seconds[1:])  # the first is far from where the solver starts


def main() -> None:
    """Measure, write and print."""
    torch.set_num_threads(2)
    snapshots, dense_s, masked_s = weights_in_training()
    size = sum(weight.numel() for weight in snapshots[0].values())
    found: dict[tuple[str, str], float] = {}
    for _ in range(2):  # interleaved, so that a slow moment hits every solver
        for pattern in PATTERNS:
            for label, solver in SOLVERS.items():
                best = found.get((label, pattern), float("inf"))
                found[label, pattern] = min(best, refresh_seconds(snapshots, pattern, solver))
                print(f"{pattern} {label}: {found[label, pattern]:.3f} s")
    lines = [
        f"A transformer with {size / 1e6:.1f} million masked weights, batches of {SEQUENCES} x {TOKENS} tokens: a "
        f"dense training step takes {1000 * dense_s:.0f} ms, a masked one {1000 * masked_s:.0f} ms. One refresh of all "
        f"masks, and what it adds to the time of training if it is done every {REFRESH_EVERY} steps:",
        "",
        f"| masks found by | {' | '.join(PATTERNS)} |",
        f"|---|{'---|' * len(PATTERNS)}",
    ]
    for label in SOLVERS:
        cells = [
            f"{1000 * found[label, pattern]:.0f} ms, +{found[label, pattern] / (REFRESH_EVERY * masked_s):.2%}"
            for pattern in PATTERNS
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines += [
        "",
        f"{cores} cores, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transmask {version('transmask')}.",
    ]
    PAGE.write_text(replace_section(PAGE.read_text(encoding="utf-8"), "refresh", "\n".join(lines)), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
