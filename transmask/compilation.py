"""Compile ahead of the first call, and tell who waits that something compiles.

numba compiles a kernel when it is first called with a new type of weights, which takes seconds, and keeps the code on
disk: in the folder that the environment variable NUMBA_CACHE_DIR names; else in the installed package itself; else,
where that cannot be written, in the user's cache folder (``~/.cache/numba`` on Linux). The code belongs to one version
of the package, installed at one path, of numba and of the processor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ._arguments import as_weights
from ._typing import Array
from .certificate import certify
from .errors import InvalidArgumentError, InvalidTypeError, UnsupportedPatternError
from .masks import solve
from .pattern import CONSTRAINTS, Constraint, Pattern, PatternLike
from .plain_mask import nm_mask
from .solvers import Solver, as_solver

__all__ = ["Precompiled", "cache_folder", "precompile", "while_compiling"]

CHECKPOINT_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Precompiled:
    """What came of compiling ahead.

    Attributes
    ----------
    seconds : float
        Wall time; where everything was compiled before, that of loading it.
    folder : str or None
        The folder below which the code is kept, and from which the next process loads it. None if no folder can be
        written, or numba's compiler is off: the next process compiles again. Set NUMBA_CACHE_DIR to one that can.
    """

    seconds: float
    folder: str | None


def precompile(
    *patterns: PatternLike,
    solvers: Sequence[str | Solver] = ("auto",),
    dtypes: Sequence[DTypeLike] = CHECKPOINT_DTYPES,
) -> Precompiled:
    """Compile what masks of some patterns need, so that no later call in any process waits for it.

    For images of containers, and for clusters whose processes share a folder: set the environment variable
    NUMBA_CACHE_DIR to a folder that later processes can read, and call this once, on the kind of processor that will
    use the code, with the package at the path where it will be. It runs `solve` under both constraints, also from a
    former result, `certify` and `nm_mask` on small matrices.

    Parameters
    ----------
    *patterns : Pattern, str or tuple of two int
        One or more.
    solvers : sequence of str or Solver, default ("auto",)
    dtypes : sequence of dtype_like, default ("float32", "bfloat16", "float16")
        Of the weights.

    Returns
    -------
    Precompiled
        How long it took, and the folder in which the code is kept.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used, or there is no pattern.
    UnsupportedPatternError, SolverError
        As `solve`.

    Examples
    --------
    >>> done = precompile("2:4", solvers=["enumeration"], dtypes=["float64"])
    >>> done.seconds > 0
    True
    """
    chosen = [Pattern.of(pattern) for pattern in patterns]
    if not chosen:
        raise InvalidArgumentError("`patterns` must hold a pattern, got none. For example precompile('2:4').")
    for name, values in (("solvers", solvers), ("dtypes", dtypes)):
        if not isinstance(values, str | type | np.dtype | Solver) and not list(values):
            raise InvalidArgumentError(f"`{name}` must not be empty, got {values!r}. Leave it out for the default.")
    kinds = [_as_dtype(dtype) for dtype in ([dtypes] if isinstance(dtypes, str | type | np.dtype) else dtypes)]
    named = [solvers] if isinstance(solvers, str | Solver) else list(solvers)
    runs = [run for pattern in chosen for solver in named for run in _runs(solver, pattern)]
    began = time.perf_counter()
    for pattern, constraint, worker, side in runs:
        # One matrix has nothing but ties, the other has none.
        weights = np.stack([np.ones((side, side)), np.linspace(0.5, 1.0, side**2).reshape(side, side)])
        for dtype in kinds:
            _use_all(weights.astype(dtype), pattern, constraint, worker)
    return Precompiled(time.perf_counter() - began, cache_folder())


def _runs(solver: str | Solver, pattern: Pattern) -> list[tuple[Pattern, Constraint, Solver, int]]:
    """List the constraints under which a solver takes a pattern, with the side of a matrix that needs all it has."""
    taken = []
    for constraint in CONSTRAINTS:
        worker = as_solver(solver, pattern, constraint)
        try:
            worker.check(pattern, constraint)
        except UnsupportedPatternError as error:
            refusal = error
        else:
            taken.append((constraint, worker))
    if not taken:
        raise refusal
    side = pattern.m + ("at_most" in dict(taken))  # then there are blocks that an edge cuts as well
    return [(pattern, constraint, worker, side) for constraint, worker in taken]


def _use_all(weights: Array, pattern: Pattern, constraint: Constraint, solver: Solver) -> None:
    """Call every function whose kernels depend on the kind of weights."""
    result = solve(weights, pattern, constraint=constraint, solver=solver)
    if solver.warm_startable:
        solve(weights, pattern, constraint=constraint, solver=solver, start=result)
    certify(weights, result.mask, pattern, constraint=constraint)
    nm_mask(weights, pattern)


def _as_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return the dtype, if weights can have it; bfloat16 and its like by their names."""
    import ml_dtypes  # noqa: F401, which registers those names

    try:
        if dtype is None:
            raise TypeError  # which numpy takes for float64
        found = np.dtype(dtype)
        as_weights(np.ones((1, 1)).astype(found))
    except (TypeError, ValueError):
        raise InvalidTypeError(f"`dtypes` must hold dtypes of weights, got {dtype!r}. For example 'float32'.") from None
    return found


def cache_folder() -> str | None:
    """Return the folder below which the code of all kernels that are loaded is kept.

    Returns
    -------
    str or None
        None if no folder can be written, or if no kernel is loaded.
    """
    from ._jit import cache_folders

    folders = cache_folders()
    return os.path.commonpath([os.path.dirname(folder) for folder in folders]) if folders else None


@contextmanager
def while_compiling(tell: Callable[[bool], None]) -> Iterator[None]:
    """Call `tell` when numba starts (True) and stops (False) compiling; code loaded from disk is not compiled.

    Parameters
    ----------
    tell : callable
        May be called from any thread; compiling one function compiles those that it calls, so calls are nested.
    """
    from numba.core import event

    class Compilation(event.Listener):
        def on_start(self, event: object) -> None:
            tell(True)

        def on_end(self, event: object) -> None:
            tell(False)

    with event.install_listener("numba:compile", Compilation()):
        yield
