"""Time every solver against two yardsticks: numpy's plain N:M mask, and a copy of the weights.

    python -m benchmarks.solvers                                    # run it with nothing else on the machine
    python -m benchmarks.solvers --json docs/benchmark.json --readme

Contenders run in turn, round after round; the best round of each counts. Read the ratios: seconds are the machine's.
A solver that is too slow for all blocks is timed on the first rows and its time multiplied up; the table says how many
blocks it solved. Loss is the kept weight that the masks fall short of the optimum. Solvers of other packages that are
installed compete too; `--readme` writes the built-in ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from benchmarks.hard_blocks import hard_weights
from benchmarks.readme_sections import README, replace_section
from benchmarks.timing import best_seconds, machine
from benchmarks.yardsticks import joint_flow, plain_mask
from transmask import Pattern, SolverError, UnsupportedPatternError, list_solvers, solve, transposable_mask
from transmask.solvers import as_solver
from transmask.solvers._table import TABLE

PATTERNS = "2:4", "4:8", "8:16", "16:32"
GROWTH = "2:4", "3:6", "4:8", "6:12", "8:16", "12:24", "16:32", "24:48", "32:64"
SAMPLE = {"network_simplex": 8, "milp": 16, "entropic": 512, "enumeration": 4096, "min_cost_flow": 512}
"""How many blocks a slow solver is timed on."""

THIRD_PARTY_SAMPLE = 512
"""How many blocks a solver of another package is timed on: it may be slow."""

OURS = "primal_dual"

Floats = NDArray[np.float32]
Rows = list[dict[str, Any]]


def _first_rows(weights: Floats, pattern: Pattern, blocks: int | None) -> Floats:
    """Return the first block rows with at least `blocks` blocks, or everything; cut to whole blocks."""
    columns = weights.shape[1] - weights.shape[1] % pattern.m
    rows = weights.shape[0] - weights.shape[0] % pattern.m
    if blocks is not None:
        rows = min(rows, pattern.m * max(1, blocks * pattern.m // columns))
        columns = min(columns, blocks * pattern.m)
    return weights[:rows, :columns]


def compare(weights: Floats, pattern: Pattern, rounds: int, sample: dict[str, int]) -> Rows:
    """Time all solvers that take a pattern, and the yardsticks, on one matrix under "exactly"."""
    whole = _first_rows(weights, pattern, None)
    m = pattern.m
    joint = np.ascontiguousarray(
        whole.reshape(whole.shape[0] // m, m, -1, m).swapaxes(1, 2).reshape(-1, m, m)[: sample.get("joint flow", 4000)]
    )
    inputs: dict[str, Floats] = {"copy": whole, "numpy, plain": whole, "OR-Tools, 4000 blocks a network": joint}
    runs: dict[str, Any] = {
        "copy": whole.copy,
        "numpy, plain": plain_mask(whole, pattern),
        "OR-Tools, 4000 blocks a network": joint_flow(joint, pattern),
    }
    for info in list_solvers():
        try:
            as_solver(info.name, pattern, "exactly").check(pattern, "exactly")
        except UnsupportedPatternError:
            continue
        limit = sample.get(info.name, None if info.name in TABLE else sample["third party"])
        part = _first_rows(whole, pattern, limit)
        run = partial(transposable_mask, part, pattern, solver=info.name)
        try:
            run()
        except SolverError as error:
            print(f"{info.name} is left out: {error}", file=sys.stderr)
            continue
        inputs[info.name], runs[info.name] = part, run
    fast = {name: run for name, run in runs.items() if inputs[name].size == whole.size}
    slow = {name: run for name, run in runs.items() if name not in fast}
    seconds = best_seconds(fast, rounds) | best_seconds(slow, 1)
    factor = {name: whole.size / part.size for name, part in inputs.items()}
    rows = []
    for name, run in runs.items():
        time = seconds[name] * factor[name]
        row = {
            "pattern": str(pattern),
            "contender": name,
            "milliseconds": 1e3 * time,
            "blocks": inputs[name].size // m**2,
            "time / ours": time / seconds[OURS],
            "plain / time": seconds["numpy, plain"] / time,
        }
        if name not in ("copy", "numpy, plain"):
            best = solve(inputs[name], pattern, solver=OURS).kept
            row["loss"] = 1 - float(np.abs(inputs[name])[run()].sum(dtype=np.float64)) / best
        rows.append(row)
    return rows


def checkpoint_rows(patterns: Sequence[str], rounds: int) -> Rows:
    """Time "auto" and greedy on all matrices of the demo checkpoint together, and numpy on the same weights."""
    with as_file(files("transmask.data") / "digits.safetensors") as path:
        tensors = [np.asarray(tensor, np.float32) for tensor in load_file(path).values() if tensor.ndim == 2]
    rows = []
    for pattern in map(Pattern.parse, patterns):
        matrices = [_first_rows(tensor, pattern, None) for tensor in tensors if min(tensor.shape) >= pattern.m]
        plain = [plain_mask(matrix, pattern) for matrix in matrices]
        runs: dict[str, Any] = {"numpy, plain": lambda plain=plain: [run() for run in plain]}
        for solver in (OURS, "greedy"):
            runs[solver] = lambda solver=solver, p=pattern, all_=matrices: [
                transposable_mask(matrix, p, solver=solver) for matrix in all_
            ]
        seconds = best_seconds(runs, rounds)
        kept = {
            name: sum(float(np.abs(w)[x].sum()) for w, x in zip(matrices, runs[name](), strict=True)) for name in runs
        }
        rows += [
            {
                "pattern": str(pattern),
                "contender": name,
                "milliseconds": 1e3 * time,
                "blocks": sum(matrix.size for matrix in matrices) // pattern.m**2,
                "plain / time": seconds["numpy, plain"] / time,
                "loss": None if name == "numpy, plain" else 1 - kept[name] / kept[OURS],
            }
            for name, time in seconds.items()
        ]
    return rows


def growth_rows(weights: Floats, patterns: Sequence[str], middle: str, rounds: int) -> Rows:
    """Time ours with the number of blocks, with M, and with threads."""
    rows: Rows = []

    def add(what: str, part: Floats, pattern: Pattern, threads: int) -> None:
        run = {what: lambda: transposable_mask(part, pattern, solver=OURS, threads=threads)}
        blocks = part.size // pattern.m**2
        nanoseconds = 1e9 * best_seconds(run, rounds)[what] / blocks
        rows.append({"what": what, "threads": threads, "blocks": blocks, "ns a block": nanoseconds})

    half = Pattern.parse(middle)
    for fraction in (64, 16, 4, 1):
        part = _first_rows(weights, half, max(1, weights.size // half.m**2 // fraction))
        add(f"{half}, number of blocks", part, half, 1)
    for pattern in map(Pattern.parse, patterns):
        if pattern.m <= min(weights.shape):
            add(f"{pattern}, M", _first_rows(weights, pattern, None), pattern, 1)
    for threads in range(1, int(machine()["threads"]) + 1):
        add(f"{half}, threads", _first_rows(weights, half, None), half, threads)
    return rows


def hard_rows(shape: tuple[int, int], patterns: Sequence[str], rounds: int) -> Rows:
    """Time ours on hard blocks, relative to Gaussian ones of the same shape, and prove every mask."""
    rows: Rows = []
    kinds = hard_weights(*shape)
    for pattern in map(Pattern.parse, patterns):
        for constraint in ("exactly", "at_most"):
            runs = {
                name: lambda w=weights, p=pattern, c=constraint: transposable_mask(w, p, constraint=c, threads=1)
                for name, weights in kinds.items()
            }
            seconds = best_seconds(runs, rounds)
            gap = max(solve(weights, pattern, constraint=constraint).gap for weights in kinds.values())
            ratios = {name: time / seconds["Gaussian"] for name, time in seconds.items()}
            rows.append({"pattern": str(pattern), "constraint": constraint, "largest gap": gap, **ratios})
    return rows


def warm_rows(weights: Floats, patterns: Sequence[str], rounds: int) -> Rows:
    """Time a solve of slightly changed weights from the duals of the unchanged ones, and from nothing."""
    rows: Rows = []
    change = np.random.default_rng(1).standard_normal(weights.shape)
    changed = (weights * (1 + 1e-3 * change)).astype(np.float32)
    for pattern in map(Pattern.parse, patterns):
        before = solve(weights, pattern)
        cold, warm = float("inf"), float("inf")
        for _ in range(3 * rounds):
            cold = min(cold, solve(changed, pattern).seconds)
            warm = min(warm, solve(changed, pattern, start=before).seconds)
        rows.append({"pattern": str(pattern), "cold ms": 1e3 * cold, "warm ms": 1e3 * warm, "cold / warm": cold / warm})
    return rows


def table(rows: Rows) -> str:
    """Return rows as a Markdown table, their keys as the head."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(keys)} |", f"|{'---|' * len(keys)}"]
    return "\n".join(lines + [f"| {' | '.join(_cell(key, row.get(key)) for key in keys)} |" for row in rows])


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "loss":
        return f"{value:.2%}" if value > 1e-9 else "0"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=9216)
    parser.add_argument("--columns", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--blocks", type=int, help="time slow solvers on at most this many blocks")
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--readme", action="store_true", help="put the first table into README.md")
    options = parser.parse_args(arguments)
    weights = np.random.default_rng(0).standard_normal((options.rows, options.columns)).astype(np.float32)
    limits = SAMPLE | {"joint flow": 4000, "third party": THIRD_PARTY_SAMPLE}
    sample = {name: min(blocks, options.blocks or blocks) for name, blocks in limits.items()}
    small = max(32, options.rows // 8 // 32 * 32), options.columns
    patterns, rounds = options.patterns, options.rounds
    growth, middle = (GROWTH, "8:16") if patterns == PATTERNS else (patterns, patterns[0])
    report: dict[str, Any] = {"machine": machine(), "shape": [options.rows, options.columns], "rounds": rounds}
    sections: dict[str, Callable[[], Rows]] = {
        "solvers": lambda: [row for p in patterns for row in compare(weights, Pattern.parse(p), rounds, sample)],
        "demo checkpoint": lambda: checkpoint_rows(patterns, rounds),
        "growth": lambda: growth_rows(weights, growth, middle, rounds),
        "hard blocks, time / Gaussian": lambda: hard_rows(small, patterns, rounds),
        "warm start": lambda: warm_rows(weights, patterns, rounds),
    }
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    for name, measure in sections.items():
        report[name] = measure()
        print(f"\n{name}\n\n{table(report[name])}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.readme:
        README.write_text(replace_section(README.read_text("utf-8"), "benchmark", readme_section(report)), "utf-8")


def readme_section(report: dict[str, Any]) -> str:
    """Return what the README says of the measurements."""
    described = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    foreign = {info.name for info in list_solvers()} - set(TABLE)
    shown = [row for row in report["solvers"] if row["contender"] not in foreign]
    rows = [{key: value for key, value in row.items() if key != "blocks"} for row in shown]
    shape = " x ".join(map(str, report["shape"]))
    return (
        f'Best of {report["rounds"]} interleaved rounds on a {shape} float32 Gaussian matrix, "exactly" '
        f"({described}). *plain / time* above 1 is faster than numpy's plain, one-sided N:M mask.\n\n{table(rows)}\n\n"
        "Made by `python -m benchmarks.solvers --readme`, which also shows how time grows, ties and warm starts."
    )


if __name__ == "__main__":
    main()
