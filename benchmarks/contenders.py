"""Every solver and the yardsticks on one matrix: time, what is lost, and the ratios between what users call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import best_seconds
from benchmarks.yardsticks import joint_flow, plain_mask
from transmask import (
    Pattern,
    SolverError,
    UnsupportedPatternError,
    list_solvers,
    nm_mask,
    solve,
    transposable_mask,
)
from transmask.solvers import SolverInfo, as_solver
from transmask.solvers._table import TABLE

__all__ = ["OURS", "PLAIN", "SAMPLE", "Rows", "compare", "first_rows", "ratios"]

SAMPLE = {
    "network_simplex": 8,
    "milp": 16,
    "entropic": 512,
    "min_cost_flow": 512,
    "joint flow": 4000,
    "third party": 512,  # a solver of another package may be slow
}
"""How many blocks a slow contender is timed on."""

OURS = "primal_dual"
PLAIN = "numpy, plain"
_PROVEN, _NM, _GREEDY_PROVEN = "primal_dual, with its proof", "nm_mask", "greedy, with its proof"
_HALF, _HALF_PROVEN = "primal_dual, bfloat16", "primal_dual, with its proof, bfloat16"

_RATIOS = (
    ("`solve`, with its proof / `transposable_mask`", _PROVEN, OURS),
    ("numpy argpartition / `transposable_mask`", PLAIN, OURS),
    ("numpy argpartition / `solve`, with its proof", PLAIN, _PROVEN),
    ("numpy argpartition / `nm_mask`", PLAIN, _NM),
    ('`solve(solver="greedy")`, with its proof / its mask', _GREEDY_PROVEN, "greedy"),
    ("bfloat16 / float32, `transposable_mask`", _HALF, OURS),
    ("bfloat16 / float32, `solve`", _HALF_PROVEN, _PROVEN),
)

Floats = NDArray[np.float32]
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Contender:
    """Something to time: a call that returns a mask of `weights`, or a copy of them."""

    run: Callable[[], Any]
    weights: Floats
    constraint: str | None = None
    """What its masks hold, None if there is no optimum to compare them with."""


def first_rows(weights: Floats, pattern: Pattern, blocks: int | None) -> Floats:
    """Return the first block rows with at least `blocks` blocks, or everything; cut to whole blocks."""
    columns = weights.shape[1] - weights.shape[1] % pattern.m
    rows = weights.shape[0] - weights.shape[0] % pattern.m
    if blocks is not None:
        rows = min(rows, pattern.m * max(1, blocks * pattern.m // columns))
        columns = min(columns, blocks * pattern.m)
    return weights[:rows, :columns]


def compare(weights: Floats, pattern: Pattern, rounds: int, sample: dict[str, int]) -> Rows:
    """Time all solvers that take a pattern, and the yardsticks, on one matrix.

    Those that solve all of it take turns, round after round; then those that are timed on a part of it do.
    """
    whole = first_rows(weights, pattern, None)
    contenders = _users_calls(whole, pattern) | _solvers(whole, pattern, sample) | _joint(whole, pattern, sample)
    size = whole.size
    all_of_it = {name: one.run for name, one in contenders.items() if one.weights.size == size}
    a_part = {name: one.run for name, one in contenders.items() if name not in all_of_it}
    seconds = best_seconds(all_of_it, rounds) | best_seconds(a_part, rounds)
    times = {name: seconds[name] * (size / one.weights.size) for name, one in contenders.items()}
    rows = []
    for name, one in contenders.items():
        blocks = one.weights.size // pattern.m**2
        row = {
            "pattern": str(pattern),
            "contender": name,
            "constraint": one.constraint,
            "milliseconds": 1e3 * times[name],
            "blocks timed": blocks,
            "blocks": size // pattern.m**2,
            "rounds": rounds,
            "time / ours": times[name] / times[OURS],
            "plain / time": times[PLAIN] / times[name],
        }
        if one.constraint is not None:
            best = solve(one.weights, pattern, constraint=one.constraint, solver=OURS).kept
            row["loss"] = 1 - float(np.abs(one.weights)[one.run()].sum(dtype=np.float64)) / best
        rows.append(row)
    return rows


def _users_calls(whole: Floats, pattern: Pattern) -> dict[str, _Contender]:
    """Return the yardsticks of numpy, and what users call beside `transposable_mask`."""
    half = whole.astype(ml_dtypes.bfloat16)
    return {
        "copy": _Contender(whole.copy, whole),
        PLAIN: _Contender(plain_mask(whole, pattern), whole),
        _NM: _Contender(partial(nm_mask, whole, pattern), whole),
        _PROVEN: _Contender(partial(solve, whole, pattern), whole),
        _GREEDY_PROVEN: _Contender(partial(solve, whole, pattern, solver="greedy"), whole),
        _HALF: _Contender(partial(transposable_mask, half, pattern), whole),
        _HALF_PROVEN: _Contender(partial(solve, half, pattern), whole),
    }


def _solvers(whole: Floats, pattern: Pattern, sample: dict[str, int]) -> dict[str, _Contender]:
    """Return the solvers that take a pattern, under "exactly" where they answer that."""
    found = {}
    for info in list_solvers():
        constraint = info.constraints[0]
        try:
            as_solver(info.name, pattern, constraint).check(pattern, constraint)
        except UnsupportedPatternError:
            continue
        part = first_rows(whole, pattern, _limit(info, sample))
        run = partial(transposable_mask, part, pattern, solver=info.name, constraint=constraint)
        try:
            run()
        except SolverError as error:
            print(f"{info.name} is left out: {error}", file=sys.stderr)
            continue
        found[info.name] = _Contender(run, part, constraint)
    return found


def _limit(info: SolverInfo, sample: dict[str, int]) -> int | None:
    """Return how many blocks a solver is timed on, None for all."""
    return sample.get(info.name, None if info.name in TABLE else sample["third party"])


def _joint(whole: Floats, pattern: Pattern, sample: dict[str, int]) -> dict[str, _Contender]:
    """Return OR-Tools on blocks that share networks, as a yardstick for `min_cost_flow`."""
    m = pattern.m
    blocks = whole.reshape(whole.shape[0] // m, m, -1, m).swapaxes(1, 2).reshape(-1, m, m)
    part = np.ascontiguousarray(blocks[: sample["joint flow"]])
    return {"OR-Tools, joint network": _Contender(joint_flow(part, pattern), part, "exactly")}


def ratios(rows: Rows) -> Rows:
    """Return the ratios between what users call, a column a pattern, from the rows of `compare`."""
    times = {(row["contender"], row["pattern"]): row["milliseconds"] for row in rows}
    patterns = dict.fromkeys(row["pattern"] for row in rows)
    return [
        {"ratio of times": label} | {p: times[above, p] / times[below, p] for p in patterns}
        for label, above, below in _RATIOS
    ]
