"""The one call that holds a solver to the contract of `transmask.solvers.Solver`."""

from __future__ import annotations

from collections.abc import Sequence

from .._arguments import as_integer
from ..errors import InvalidArgumentError, InvalidTypeError, UnsupportedPatternError
from ..pattern import Pattern, PatternLike, as_constraint
from ..solvers import Solver, SolverInfo, as_solver
from .properties import CHECKS, Case

__all__ = ["assert_solver_contract"]

PATTERNS = ("1:2", "2:4", "3:4", "2:5", "4:8")


def assert_solver_contract(
    solver: str | Solver,
    *,
    patterns: Sequence[PatternLike] = PATTERNS,
    constraints: Sequence[str] = ("exactly", "at_most"),
    seed: int = 0,
) -> None:
    """Fail unless a solver keeps the contract of every solver, on random and degenerate blocks.

    The masks are feasible; the weights are left untouched; no mask keeps more than the optimum, or less than the
    solver's declared guarantee (an exact one agrees with the certificate and with another solver, also on transposed
    and permuted blocks); scaling by a power of two and signs change no mask; a block alone gets the mask it gets in any
    batch, in chunks of any size and with any number of threads; a warm start, if the solver has one, keeps as much as a
    cold one; arrays without a block, and M = 1, work. Some blocks have equal entries, zeros, one huge entry, entries
    from 1e-300 to 1e300, or denormals. It proves nothing of patterns that you do not name: add those you use.

    Parameters
    ----------
    solver : str or Solver
        A name from `list_solvers` or an instance.
    patterns : sequence of Pattern, str or tuple of two int
        With 0 < N < M. Those that the solver refuses are skipped; it must take one.
    constraints : sequence of {"exactly", "at_most"}, default both
        Those that the solver refuses are skipped.
    seed : int, default 0
        Of the random blocks; at least 0.

    Raises
    ------
    AssertionError
        If a property is broken; the message names it, the block and the values.
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used.

    Examples
    --------
    >>> assert_solver_contract("enumeration", patterns=["1:2", "2:4"])
    """
    named = [Pattern.of(pattern) for pattern in ([patterns] if isinstance(patterns, str | Pattern) else patterns)]
    if not named or any(not 0 < pattern.n < pattern.m for pattern in named):
        raise InvalidArgumentError(
            f"`patterns` must hold patterns with 0 < N < M, got {[str(pattern) for pattern in named]}."
        )
    if isinstance(solver, Solver) and not isinstance(getattr(solver, "info", None), SolverInfo):
        raise InvalidTypeError(f"`{type(solver).__name__}.info` must be a SolverInfo. See transmask.solvers.Solver.")
    seed = as_integer(seed, argument="seed", least=0)
    taken = 0
    for pattern in named:
        for constraint in map(as_constraint, constraints):
            chosen = as_solver(solver, pattern, constraint)
            try:
                chosen.check(pattern, constraint)
            except UnsupportedPatternError:
                continue
            taken += 1
            case = Case(chosen, pattern, constraint, seed)
            for check in CHECKS:
                check(case)
    if not taken:
        raise AssertionError(f"{solver!r} must take one of the patterns {[str(pattern) for pattern in named]}")
