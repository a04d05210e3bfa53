"""Interleaved timing: contenders run in turn, round after round, so that all of them meet the same machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version

from transmask.threads import resolve_threads

__all__ = ["best_seconds", "machine"]


def best_seconds(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time every contender `rounds` times, in turn, after one run that is not counted.

    Parameters
    ----------
    contenders : mapping of str to callable
    rounds : int
        At least 1.

    Returns
    -------
    dict of str to float
        The least wall time of each, in seconds.
    """
    for run in contenders.values():
        run()
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def machine() -> dict[str, str]:
    """Describe the machine and the versions that a measurement depends on."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    packages = {name: version(name) for name in ("transmask", "numpy", "numba", "ortools", "scipy", "networkx")}
    return {"processor": model, "threads": str(resolve_threads(None)), "python": platform.python_version(), **packages}
