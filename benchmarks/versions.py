"""Time two installed versions of transmask in one interleaved run.

    python -m benchmarks.versions OLD/bin/python NEW/bin/python      # run it with nothing else on the machine

Each interpreter has a version of transmask installed, and answers from a process of its own. Case by case the two take
turns, round after round, and which one goes first alternates, so that both meet the same machine. Read the ratios, of
the best and of the median round; the seconds are the machine's. The last case is the first call ever, in a fresh
process with an empty cache: it compiles.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["cases", "main"]

HERE = Path(__file__).resolve().parent
PATTERNS = "2:4", "4:8", "8:16", "16:32"
HARD = "constant", "rank one", "1e-30 to 1e30", "half zero"
COMPILED = "8:16"


def cases(rows: int, columns: int) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name; it uses the transmask of the process that calls it."""
    import runpy

    import numpy as np

    from transmask import solve, transposable_mask

    kinds = runpy.run_path(str(HERE / "hard_blocks.py"))["hard_weights"](rows // 8 // 32 * 32, columns)
    gaussian = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    changed = (gaussian * (1 + 1e-3 * np.random.default_rng(1).standard_normal(gaussian.shape))).astype(np.float32)
    double = gaussian.astype(np.float64)
    found: dict[str, Callable[[], object]] = {}
    for pattern in PATTERNS:
        for threads in (1, 2):
            found[f"{pattern}, {threads} threads"] = lambda p=pattern, t=threads: transposable_mask(
                gaussian, p, threads=t
            )
        found[f"{pattern}, at_most"] = lambda p=pattern: transposable_mask(gaussian, p, constraint="at_most", threads=1)
        found[f"{pattern}, float64"] = lambda p=pattern: transposable_mask(double, p, threads=1)
        for kind in HARD:
            found[f"{pattern}, {kind}"] = lambda p=pattern, w=kinds[kind]: transposable_mask(w, p, threads=1)
        for solver in ("greedy", "two_approximation"):
            found[f"{pattern}, {solver}"] = lambda p=pattern, s=solver: transposable_mask(
                gaussian, p, solver=s, threads=1
            )
        before = solve(gaussian, pattern)
        found[f"{pattern}, warm start"] = lambda p=pattern, b=before: solve(changed, p, start=b, threads=1)
    return found


def serve(rows: int, columns: int) -> None:
    """Answer each line of stdin, the name of a case, with the seconds that it took."""
    import time

    known = cases(rows, columns)
    print(json.dumps(list(known)), flush=True)
    for line in sys.stdin:
        run = known[line.rstrip("\n")]
        began = time.perf_counter()
        run()
        print(time.perf_counter() - began, flush=True)


class _Version:
    """A process in which one interpreter serves its version."""

    def __init__(self, python: str, rows: int, columns: int) -> None:
        # -P: the folder this runs in must not shadow what is installed
        code = f"import runpy; runpy.run_path({str(HERE / 'versions.py')!r})['serve']({rows}, {columns})"
        self._process = subprocess.Popen(
            [python, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.cases: list[str] = json.loads(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended without an answer.")
        return line

    def seconds(self, case: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{case}\n")
        self._process.stdin.flush()
        return float(self._answer())


def first_call(python: str) -> float:
    """Return the seconds of the first call ever of a pattern, imports aside, with an empty cache."""
    code = (
        "import time, numpy as np, transmask, numba; w = np.ones((64, 64), np.float32); began = time.perf_counter(); "
        f"transmask.transposable_mask(w, {COMPILED!r}); print(time.perf_counter() - began)"
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder}
        done = subprocess.run([python, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def compare(turns: Sequence[Callable[[], float]], rounds: int) -> dict[str, float]:
    """Time the old and the new in turn."""
    seconds: list[list[float]] = [[], []]
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            seconds[which].append(turns[which]())
    old, new = seconds
    return {
        "old ms": 1e3 * min(old),
        "new ms": 1e3 * min(new),
        "new / old, best": min(new) / min(old),
        "new / old, median": statistics.median(new) / statistics.median(old),
    }


def _line(name: str, row: Mapping[str, float]) -> str:
    return f"| {name} | " + " | ".join(f"{value:.3g}" for value in row.values()) + " |"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a Python with one version installed")
    parser.add_argument("new", help="a Python with the other")
    parser.add_argument("--rows", type=int, default=9216, help="at least 256")
    parser.add_argument("--columns", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args(arguments)
    if options.rows < 256:
        parser.error(f"--rows must be at least 256, got {options.rows}: hard blocks are an eighth of them")
    versions = [_Version(python, options.rows, options.columns) for python in (options.old, options.new)]
    print("| case | old ms | new ms | new / old, best | new / old, median |\n|---|---|---|---|---|", flush=True)
    report = {}
    for case in versions[0].cases:
        if options.only not in case:
            continue
        for version in versions:
            version.seconds(case)  # compiles, or loads what is compiled
        report[case] = compare([partial(version.seconds, case) for version in versions], options.rounds)
        print(_line(case, report[case]), flush=True)
    name = f"{COMPILED}, first call"
    if options.only in name:
        report[name] = compare([partial(first_call, python) for python in (options.old, options.new)], 3)
        print(_line(name, report[name]), flush=True)
    return report


if __name__ == "__main__":
    main()
