"""The properties that every solver keeps, each a check of one solver at one pattern under one constraint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from ..blocks import Array
from ..certificate import PROVEN_GAP
from ..check import check_mask
from ..errors import UnsupportedPatternError
from ..masks import solve, transposable_mask
from ..pattern import Constraint, Pattern
from ..solvers import Solver, as_solver
from .hard_blocks import hard_blocks

__all__ = ["CHECKS", "Case"]

ORACLES = ("enumeration", "min_cost_flow", "primal_dual")
EXPONENTS = (-900, -30, 1, 40, 800)
ROUNDING = 1e-12

Masks = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Case:
    """A solver, and what it is asked for.

    Attributes
    ----------
    solver : Solver
    pattern : Pattern
        With 0 < N < M.
    constraint : {"exactly", "at_most"}
    seed : int
        Of the random blocks.
    """

    solver: Solver
    pattern: Pattern
    constraint: Constraint
    seed: int

    @property
    def is_exact(self) -> bool:
        """Whether the solver claims to be exact."""
        return self.solver.info.guarantee == "exact"

    def rng(self) -> np.random.Generator:
        """Return a fresh generator."""
        return np.random.default_rng(self.seed)

    def mask(self, weights: Array, *, threads: int = 1) -> Masks:
        """Solve weights."""
        mask = transposable_mask(weights, self.pattern, constraint=self.constraint, solver=self.solver, threads=threads)
        assert isinstance(mask, np.ndarray)
        return mask

    def blocks(self) -> Iterator[tuple[str, Array]]:
        """Yield single blocks of every kind, with its name."""
        for kind, scores in hard_blocks(self.rng(), self.pattern.m).items():
            for block in scores:
                yield kind, block

    def fail(self, rule: str, found: str, kind: str, block: Array) -> NoReturn:
        """Raise the AssertionError that names the broken rule, what was found, and the block."""
        raise AssertionError(
            f"{self.solver.info.name!r} at {self.pattern} {self.constraint!r}: {rule}; {found}, "
            f"on a block of kind {kind!r}:\n{block!r}"
        )


def _kept(block: Array, mask: Masks) -> float:
    """Sum the kept scores, rounding once."""
    return math.fsum(block[mask].astype(np.float64).tolist())


def check_masks_are_feasible(case: Case) -> None:
    """Require masks of bool that hold the pattern, on whole blocks and in a matrix whose edge cuts some."""
    for kind, block in case.blocks():
        mask = case.solver.solve_scores(block[None].copy(), case.pattern, case.constraint)
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (1, *block.shape):
            got = f"{mask.dtype} of shape {mask.shape}" if isinstance(mask, np.ndarray) else repr(mask)
            case.fail("`solve_scores` must return bool of the scores' shape", f"got {got}", kind, block)
        report = check_mask(mask[0], case.pattern, constraint=case.constraint)
        if not report:
            case.fail("a mask must be feasible", f"{report.first_offender} in\n{mask[0].astype(int)}", kind, block)
    with suppress(UnsupportedPatternError):
        case.solver.check(case.pattern, "at_most")  # what holds for blocks that an edge cuts
        matrix = _matrix(case)[:, :-1]
        report = check_mask(case.mask(matrix), case.pattern, constraint=case.constraint)
        if not report:
            case.fail("a mask with cut blocks must be feasible", str(report.first_offender), "mixed matrix", matrix)


def check_weights_are_untouched(case: Case) -> None:
    """Require that solving modifies no weight."""
    for kind, block in case.blocks():
        weights = block.copy()
        case.mask(weights)
        if weights.tobytes() != block.tobytes():
            case.fail("the weights must not be modified", f"they became\n{weights!r}", kind, block)


def check_exact_masks_are_proven(case: Case) -> None:
    """Require an exact solver's masks to meet the bound of the certificate."""
    for kind, block in case.blocks() if case.is_exact else ():
        result = solve(block, case.pattern, constraint=case.constraint, solver=case.solver, threads=1)
        if result.worst_gap > PROVEN_GAP:
            case.fail("an exact mask must be proven optimal", f"the gap is {result.worst_gap!r}", kind, block)


def check_declared_guarantee(case: Case) -> None:
    """Require no more than the optimum, by another, exact solver, and no less than `SolverInfo.guarantee` says."""
    guarantee = case.solver.info.guarantee
    promised = guarantee if guarantee == "exact" or case.constraint == "at_most" else "none"
    for kind, block in case.blocks():
        kept, best = _kept(block, case.mask(block)), _kept(block, _oracle_mask(case, block))
        total = _kept(block, np.ones(block.shape, np.bool_))
        if kept > best * (1 + ROUNDING):
            case.fail("no mask may keep more than the optimum", f"kept {kept!r}, best {best!r}", kind, block)
        good = {
            "none": True,
            "exact": kept >= best * (1 - ROUNDING),
            "kept >= 1/2 optimum": 2 * kept >= best * (1 - ROUNDING),
            "pruned <= 2 x optimum": total - kept <= 2 * (total - best) + ROUNDING * total,
        }[promised]
        if not good:
            case.fail(
                f"the declared guarantee is {guarantee!r}", f"kept {kept!r} of {total!r}, best {best!r}", kind, block
            )


def _oracle_mask(case: Case, block: Array) -> Masks:
    """Solve a block with the first exact solver that takes it and is not the one under test."""
    for name in ORACLES:
        other = as_solver(name, case.pattern, case.constraint)
        with suppress(UnsupportedPatternError):
            if name != case.solver.info.name:
                return replace(case, solver=other).mask(block)
    raise AssertionError(f"no other exact solver takes {case.pattern} {case.constraint!r}; leave the pattern out")


def check_transposing_transposes_the_value(case: Case) -> None:
    """Require an exact solver to keep as much of the transposed block."""
    _check_value_under(case, "transposing a block must keep its value", lambda block: block.T)


def check_permuting_keeps_the_value(case: Case) -> None:
    """Require an exact solver to keep as much of a block whose rows and columns are permuted."""
    rng = case.rng()
    rows, columns = rng.permutation(case.pattern.m), rng.permutation(case.pattern.m)
    _check_value_under(case, "permuting rows and columns must keep the value", lambda block: block[rows][:, columns])


def _check_value_under(case: Case, rule: str, move: Callable[[Array], Array]) -> None:
    if not case.is_exact:
        return
    for kind, block in case.blocks():
        moved = move(block)
        kept, other = _kept(block, case.mask(block)), _kept(moved, case.mask(moved))
        if abs(kept - other) > ROUNDING * max(kept, other):
            case.fail(rule, f"{kept!r} became {other!r}", kind, block)


def check_scaling_changes_no_mask(case: Case) -> None:
    """Require that powers of two and signs change no mask."""
    kinds = hard_blocks(case.rng(), case.pattern.m)
    for kind in ("Gaussian", "few levels", "tenths", "half zeros"):
        for block in kinds[kind].astype(np.float64):
            mask = case.mask(block)
            signed = block * case.rng().choice([-1.0, 1.0], block.shape)
            for exponent in EXPONENTS:
                if not np.array_equal(mask, case.mask(np.ldexp(signed, exponent))):
                    case.fail("scaling by powers of two must change no mask", f"2**{exponent} does", kind, block)


def _matrix(case: Case) -> Array:
    """Lay blocks of every kind side by side, two rows of them."""
    scores = np.stack([block.astype(np.float64) for _, block in case.blocks()])
    m = case.pattern.m
    return np.ascontiguousarray(scores.reshape(2, -1, m, m).swapaxes(1, 2)).reshape(2 * m, -1)


def check_a_block_alone_is_the_block_in_any_batch(case: Case) -> None:
    """Require the same mask, bit for bit, alone, in any batch, in any order and with any number of threads."""
    matrix, m = _matrix(case), case.pattern.m
    mask = case.mask(matrix)
    chunked = copy(case.solver)
    chunked.chunk_entries = 2 * m * m  # two blocks at a time, so that every thread has work
    for threads, worker in ((2, case.solver), (1, chunked), (2, chunked), (5, chunked)):
        if not np.array_equal(mask, replace(case, solver=worker).mask(matrix, threads=threads)):
            found = f"{threads} threads{', in chunks of two blocks,' if worker is chunked else ''} change it"
            case.fail("the mask must not depend on threads and chunks", found, "mixed matrix", matrix)
    for row in range(0, 2 * m, m):
        for column in range(0, matrix.shape[1], m):
            part = slice(row, row + m), slice(column, column + m)
            alone = case.mask(matrix[part])
            if not np.array_equal(mask[part], alone):
                found = f"alone\n{alone.astype(int)}\nin the matrix\n{mask[part].astype(int)}"
                case.fail("a block alone must get its mask in any batch", found, "mixed matrix", matrix[part])
    if not np.array_equal(case.mask(np.stack([matrix[m:], matrix[:m]])), np.stack([mask[m:], mask[:m]])):
        case.fail("a mask must not depend on the order of blocks", "swapping rows does", "mixed matrix", matrix)


def check_a_warm_start_keeps_as_much(case: Case) -> None:
    """Require feasible masks that keep as much from the duals of a former result, if the solver uses them."""
    if not case.solver.warm_startable:
        return
    for kind, block in case.blocks():
        options = {"constraint": case.constraint, "solver": case.solver, "threads": 1}
        cold = solve(block, case.pattern, **options)  # type: ignore[arg-type]
        warm = solve(block, case.pattern, start=cold, **options)  # type: ignore[arg-type]
        report = check_mask(warm.mask, case.pattern, constraint=case.constraint)
        if not report or (case.is_exact and abs(warm.kept - cold.kept) > ROUNDING * cold.kept):
            found = report.first_offender or f"{cold.kept!r} became {warm.kept!r}"
            case.fail("a warm start must keep as much", found, kind, block)


def check_no_block_and_no_choice(case: Case) -> None:
    """Require an empty mask for no block, and the only mask there is for N = 0 and N = M."""
    m = case.pattern.m
    for shape in ((0, m), (m, 0), (0, m, m)):
        if case.mask(np.zeros(shape)).shape != shape:
            case.fail("no block must give an empty mask", f"shape {shape} does not", "none", np.zeros(shape))
    for n, side in ((0, 1), (1, 1), (0, m), (m, m)):
        trivial = Pattern(n, side)
        mask = transposable_mask(np.ones((m, m)), trivial, constraint=case.constraint, solver=case.solver)
        if not np.array_equal(mask, np.full((m, m), n > 0)):
            case.fail(f"{trivial} must keep {'all' if n else 'nothing'}", f"got {mask!r}", "ones", np.ones((m, m)))


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_masks_are_feasible,
    check_weights_are_untouched,
    check_exact_masks_are_proven,
    check_declared_guarantee,
    check_transposing_transposes_the_value,
    check_permuting_keeps_the_value,
    check_scaling_changes_no_mask,
    check_a_block_alone_is_the_block_in_any_batch,
    check_a_warm_start_keeps_as_much,
    check_no_block_and_no_choice,
)
