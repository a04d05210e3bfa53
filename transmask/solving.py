"""Solve whole matrices: the one loop behind every mask, and the one place where a solver's answers are checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from ._typing import Array
from .blocks import Duals, constraints_used, cut
from .check import check_mask
from .errors import SolverError, TransmaskError, UnsupportedPatternError
from .pattern import Constraint, Pattern
from .solvers import Solver
from .solvers._base import is_built_in

__all__ = ["check_block_side", "check_solver", "naming", "refuse_masks", "solve_matrices"]

LARGEST_M = 4096  # a block of this side takes 128 MB of float64


def check_block_side(pattern: Pattern) -> None:
    """Raise UnsupportedPatternError if a block of a pattern is too large to work on."""
    if pattern.m > LARGEST_M:
        raise UnsupportedPatternError(f"`pattern` must have M of at most {LARGEST_M}, got '{pattern}'.")


def check_solver(shape: tuple[int, ...], pattern: Pattern, constraint: Constraint, solver: Solver) -> None:
    """Raise UnsupportedPatternError if `solver` cannot answer the blocks of a (..., R, C) shape, cut ones included."""
    check_block_side(pattern)
    for used in constraints_used(shape, pattern.m, constraint):
        solver.check(pattern, used)


def solve_matrices(
    weights: Array,
    mask: NDArray[np.bool_],
    duals: Duals | None,
    pattern: Pattern,
    constraint: Constraint,
    solver: Solver,
    *,
    threads: int,
    warm: bool = False,
) -> None:
    """Cut matrices into blocks, solve them, and write the answers in place: the one loop behind every mask.

    Parameters
    ----------
    weights : ndarray, shape (..., R, C)
        Finite weights of any real dtype; not modified.
    mask : ndarray of bool, shape (..., R, C)
        Written.
    duals : (u, v) or None
        Shapes (..., R, ceil(C / M)) and (..., ceil(R / M), C). Written by solvers that find dual variables; if `warm`,
        also their starting point.
    pattern : Pattern
    constraint : {"exactly", "at_most"}
        For whole blocks; cut blocks are "at_most".
    solver : Solver
    threads : int
        At least 1.
    warm : bool, default False
        Whether to start from `duals`; only with a solver that is `warm_startable`.

    Raises
    ------
    UnsupportedPatternError
        If the solver cannot answer.
    SolverError
        If a solver stops without an answer; if one that is not built in raises, or its masks break the constraint.
    """
    check_solver(weights.shape, pattern, constraint, solver)
    if pattern.n in (0, pattern.m):
        mask[...] = pattern.n > 0
        return
    with naming(solver):
        for blocks in cut(weights, mask, duals, pattern.m, constraint):
            solver.solve_blocks(blocks, pattern, threads=threads, warm=warm)
    if is_built_in(solver):
        return
    bits = mask.view(np.uint8)  # a bool array made by a view may hold other bytes than 0 and 1
    np.not_equal(bits, 0, out=mask)
    refuse_masks(mask, pattern, constraint, solver)


def refuse_masks(mask: NDArray[np.bool_], pattern: Pattern, constraint: Constraint, solver: Solver) -> None:
    """Raise SolverError, which names the first line, if the masks of a solver break their constraint."""
    report = check_mask(mask, pattern, constraint=constraint)
    if not report:
        raise SolverError(
            f"`solver` {solver.info.name!r} must keep {constraint.replace('_', ' ')} {pattern.n} of every {pattern.m}, "
            f"but {report.first_offender}. Its masks cannot be used; tell its authors."
        )


@contextmanager
def naming(solver: Solver) -> Iterator[None]:
    """Turn what a solver that is not built in raises into a SolverError that names it."""
    try:
        yield
    except (TransmaskError, MemoryError):
        raise
    except Exception as error:
        if is_built_in(solver):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
        raise SolverError(f"`solver` {solver.info.name!r} must return masks, got {text}. Tell its authors.") from error
