"""Small layers and trained weights, where a call's fixed cost and the weights' structure show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import as_file, files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from benchmarks.contenders import OURS, PLAIN, Rows, first_rows
from benchmarks.timing import best_seconds
from benchmarks.yardsticks import plain_mask
from transmask import Pattern, nm_mask, solve, transposable_mask

__all__ = ["layer_rows"]

SIDES = 16, 64, 256, 1024
TRAINED = "the demo's trained network"
MORE_ROUNDS = 20
"""So many times more rounds than elsewhere: a call takes microseconds, in which anything disturbs."""

Floats = NDArray[np.float32]


def layer_rows(patterns: Sequence[str], rounds: int, sides: Sequence[int] = SIDES) -> Rows:
    """Time what users call on small Gaussian squares, and on all matrices of the demo's trained network together."""
    random = np.random.default_rng(0)
    layers = {f"{side} x {side}": [random.standard_normal((side, side)).astype(np.float32)] for side in sides}
    with as_file(files("transmask.data") / "digits.safetensors") as path:
        layers[TRAINED] = [np.asarray(tensor, np.float32) for tensor in load_file(path).values() if tensor.ndim == 2]
    rows = []
    for name, matrices in layers.items():
        for pattern in map(Pattern.parse, patterns):
            whole = [first_rows(matrix, pattern, None) for matrix in matrices if min(matrix.shape) >= pattern.m]
            if whole:
                rows.append(_row(name, whole, pattern, rounds * MORE_ROUNDS))
    return rows


def _row(name: str, matrices: list[Floats], pattern: Pattern, rounds: int) -> dict[str, Any]:
    """Time the calls on some matrices, one after the other."""
    plain = [plain_mask(matrix, pattern) for matrix in matrices]

    def on_all(function: Callable[..., object], **options: str) -> Callable[[], object]:
        calls = [partial(function, matrix, pattern, **options) for matrix in matrices]
        return lambda: [call() for call in calls]

    runs: dict[str, Callable[[], object]] = {
        OURS: on_all(transposable_mask),
        f"{OURS}, with its proof": on_all(solve),
        "greedy": on_all(transposable_mask, solver="greedy"),
        "nm_mask": on_all(nm_mask),
        PLAIN: lambda: [run() for run in plain],
    }
    seconds = best_seconds(runs, rounds)
    blocks = sum(matrix.size for matrix in matrices) // pattern.m**2
    row = {"weights": name, "pattern": str(pattern), "blocks": blocks, "rounds": rounds}
    return row | {f"{run}, us": 1e6 * time for run, time in seconds.items()}
