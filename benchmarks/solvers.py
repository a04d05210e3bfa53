"""Time every solver, and what users call, against two yardsticks: numpy's plain N:M mask, and a copy of the weights.

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.contenders import OURS, SAMPLE, Rows, compare, first_rows, ratios
from benchmarks.hard_blocks import hard_weights
from benchmarks.layers import SIDES, layer_rows
from benchmarks.readme_sections import README, replace_section
from benchmarks.report import readme_section, table
from benchmarks.timing import best_seconds, machine
from transmask import Pattern, solve, transposable_mask

PATTERNS = "2:4", "4:8", "8:16", "16:32"
GROWTH = "2:4", "3:6", "4:8", "6:12", "8:16", "12:24", "16:32", "24:48", "32:64"

Floats = NDArray[np.float32]


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
        part = first_rows(weights, half, max(1, weights.size // half.m**2 // fraction))
        add(f"{half}, number of blocks", part, half, 1)
    for pattern in map(Pattern.parse, patterns):
        if pattern.m <= min(weights.shape):
            add(f"{pattern}, M", first_rows(weights, pattern, None), pattern, 1)
    for threads in range(1, int(machine()["threads"]) + 1):
        add(f"{half}, threads", first_rows(weights, half, None), half, threads)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=9216)
    parser.add_argument("--columns", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--blocks", type=int, help="time slow solvers on at most this many blocks")
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--readme", action="store_true", help="put the first tables into README.md")
    options = parser.parse_args(arguments)
    weights = np.random.default_rng(0).standard_normal((options.rows, options.columns)).astype(np.float32)
    sample = {name: min(blocks, options.blocks or blocks) for name, blocks in SAMPLE.items()}
    small = max(32, options.rows // 8 // 32 * 32), options.columns
    patterns, rounds = options.patterns, options.rounds
    growth, middle = (GROWTH, "8:16") if patterns == PATTERNS else (patterns, patterns[0])
    report: dict[str, Any] = {"machine": machine(), "shape": [options.rows, options.columns], "rounds": rounds}
    sections: dict[str, Callable[[], Rows]] = {
        "solvers": lambda: [row for p in patterns for row in compare(weights, Pattern.parse(p), rounds, sample)],
        "ratios": lambda: ratios(report["solvers"]),
        "layers": lambda: layer_rows(patterns, rounds, [side for side in SIDES if side <= options.rows]),
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


if __name__ == "__main__":
    main()
