"""From weights to masks: validate, cut into blocks, solve, assemble."""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ._arguments import as_axes, as_weights, matrix_view
from ._typing import Array
from .blocks import Duals, block_grid, empty_duals
from .certificate import Proof, certify_matrices, prove_each
from .errors import InvalidArgumentError, InvalidTypeError
from .pattern import Constraint, Pattern, PatternLike, as_constraint
from .plain_mask import nm_mask
from .result import MaskResult
from .solvers import Solver, as_solver
from .solving import naming, refuse_masks, solve_matrices
from .threads import resolve_threads

__all__ = ["nm_mask", "prepare", "solve", "solve_array", "solve_each", "transposable_mask"]


def transposable_mask(
    weights: ArrayLike,
    pattern: PatternLike,
    *,
    constraint: str = "exactly",
    solver: str | Solver = "auto",
    axes: tuple[int, int] = (-2, -1),
    threads: int | None = None,
) -> NDArray[np.bool_]:
    """Find the transposable N:M mask that keeps the largest sum of magnitudes.

    On each M x M block, with S = abs(weights):

        maximise   sum_ij S[i, j] X[i, j]
        subject to every row sum and every column sum of X == N   ("exactly")  or  <= N   ("at_most")

    Parameters
    ----------
    weights : array_like, shape (..., R, C)
        Finite real numbers of any dtype; not modified. Other scores (Wanda, SparseGPT) are passed the same way. Every
        axis but the two of `axes` is a batch. R and C need not be multiples of M: a block cut by an edge is solved as
        "at_most" on what is there.
    pattern : Pattern, str or tuple of two int
        Such as "2:4": N entries kept of every M.
    constraint : {"exactly", "at_most"}, default "exactly"
        With an exact solver "at_most" never keeps less weight; it is as legal on sparse hardware.
    solver : str or Solver, default "auto"
        A name from `list_solvers` or an instance with options of its own. "auto" is exact; `choose_solver` tells
        which solver it is.
    axes : tuple of two int, default (-2, -1)
        The axes that form the matrix: (-2, -1) for a linear layer, (0, 1) for a torch convolution (K, C, R, S).
    threads : int, optional
        Default: the environment variable TRANSMASK_NUM_THREADS, else every core. The mask does not depend on it.

    Returns
    -------
    ndarray of bool, the shape of `weights`
        True = kept.

    Raises
    ------
    InvalidTypeError
        If an argument has a type or dtype that cannot be used.
    InvalidArgumentError
        If a weight is NaN or infinite, or an argument has a value that cannot be used.
    UnsupportedPatternError
        If the solver cannot answer the pattern; the message names solvers that can.
    SolverError
        If a third-party solver stops without an answer.

    See Also
    --------
    solve : The same mask with a proof of how good it is.

    Examples
    --------
    >>> import numpy as np
    >>> weights = np.array([[9, 1, 8, 2], [3, 7, 1, 6], [5, 4, 6, 5], [2, 8, 3, 7]])
    >>> transposable_mask(weights, "2:4").astype(int)
    array([[1, 0, 1, 0],
           [0, 1, 0, 1],
           [1, 0, 1, 0],
           [0, 1, 0, 1]])
    """
    array, chosen, limit = as_weights(weights), Pattern.of(pattern), as_constraint(constraint)
    matrix_axes = as_axes(axes, array.ndim)
    mask = np.zeros(array.shape, np.bool_)
    views = matrix_view(array, matrix_axes), matrix_view(mask, matrix_axes)
    worker = as_solver(solver, chosen, limit)
    solve_matrices(*views, None, chosen, limit, worker, threads=resolve_threads(threads))
    return mask


def solve(
    weights: ArrayLike,
    pattern: PatternLike,
    *,
    constraint: str = "exactly",
    solver: str | Solver = "auto",
    axes: tuple[int, int] = (-2, -1),
    threads: int | None = None,
    start: MaskResult | None = None,
) -> MaskResult:
    """Find a transposable N:M mask and prove how good it is.

    The parameters that `transposable_mask` has mean the same here.

    Parameters
    ----------
    weights : array_like, shape (..., R, C)
        Finite real numbers of any dtype; not modified.
    pattern : Pattern, str or tuple of two int
        Such as "2:4": N entries kept of every M.
    constraint : {"exactly", "at_most"}, default "exactly"
    solver : str or Solver, default "auto"
    axes : tuple of two int, default (-2, -1)
    threads : int, optional
    start : MaskResult, optional
        A previous result for weights of the same shape, pattern, constraint and axes, whose dual variables are the
        starting point. It changes how long an exact solver takes, not how good its mask is; of several optimal masks
        it may pick another.

    Returns
    -------
    MaskResult
        The mask, what it keeps, an upper bound that no mask exceeds, and the dual variables that prove the bound.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError, UnsupportedPatternError, SolverError
        As `transposable_mask`; also if `start` does not fit or the solver cannot use one.

    Examples
    --------
    >>> import numpy as np
    >>> result = solve(np.arange(64.0).reshape(8, 8), "2:4")
    >>> result.kept, result.status.value
    (1008.0, 'optimal')
    """
    array, chosen, limit = as_weights(weights), Pattern.of(pattern), as_constraint(constraint)
    matrix_axes, n_threads = as_axes(axes, array.ndim), resolve_threads(threads)
    worker = as_solver(solver, chosen, limit)
    duals = None if start is None else _start_duals(start, array, chosen, limit, matrix_axes, worker)
    if array.size:
        prepare(worker, chosen, limit, array.dtype)
    return _solve(array, chosen, limit, worker, axes=matrix_axes, threads=n_threads, start=duals)


def solve_array(
    weights: Array, pattern: Pattern, constraint: Constraint, solver: Solver, *, axes: tuple[int, int], threads: int
) -> MaskResult:
    """Do what `solve` does with arguments that are validated but for NaN and infinities, and a solver that is ready."""
    return _solve(as_weights(weights), pattern, constraint, solver, axes=axes, threads=threads, start=None)


def solve_each(weights: Array, pattern: Pattern, constraint: Constraint, solver: Solver) -> list[MaskResult]:
    """Do what `solve_array` does for each matrix of a (K, R, C) stack alone.

    Small ones share the calls of the solver and of the proof, which take longer to begin than to do. Those without a
    proof are solved once more, alone, and their bound is searched for.
    """
    stack = as_weights(weights)
    masks, duals = np.zeros(stack.shape, np.bool_), empty_duals(stack.shape, pattern.m)
    began = time.perf_counter()
    solve_matrices(stack, masks, duals, pattern, constraint, solver, threads=1)
    seconds = (time.perf_counter() - began) / len(stack)
    return [
        solve_array(matrix, pattern, constraint, solver, axes=(0, 1), threads=1)
        if proof.broken or proof.unproven
        else _result(mask, (u, v), proof, pattern, constraint, solver, (0, 1), seconds)
        for matrix, mask, u, v, proof in zip(
            stack, masks, *duals, prove_each(stack, masks, duals, pattern, constraint), strict=True
        )
    ]


def prepare(solver: Solver, pattern: Pattern, constraint: Constraint, dtype: DTypeLike) -> None:
    """Have a solver compile what it needs, so that it is not part of the time it takes."""
    if 0 < pattern.n < pattern.m:
        solver.check(pattern, constraint)
        with naming(solver):
            solver.prepare(pattern, constraint, dtype)


def _solve(
    weights: Array,
    pattern: Pattern,
    constraint: Constraint,
    solver: Solver,
    *,
    axes: tuple[int, int],
    threads: int,
    start: Duals | None,
) -> MaskResult:
    """Solve and prove validated weights."""
    mask = np.zeros(weights.shape, np.bool_)
    weights_view, mask_view = matrix_view(weights, axes), matrix_view(mask, axes)
    duals = empty_duals(weights_view.shape, pattern.m) if start is None else start
    began = time.perf_counter()
    solve_matrices(weights_view, mask_view, duals, pattern, constraint, solver, threads=threads, warm=start is not None)
    seconds = time.perf_counter() - began
    proof = certify_matrices(weights_view, mask_view, duals, pattern, constraint, threads=threads)
    if proof.broken:
        refuse_masks(mask_view, pattern, constraint, solver)
    return _result(mask, duals, proof, pattern, constraint, solver, axes, seconds)


def _result(
    mask: NDArray[np.bool_],
    duals: Duals,
    proof: Proof,
    pattern: Pattern,
    constraint: Constraint,
    solver: Solver,
    axes: tuple[int, int],
    seconds: float,
) -> MaskResult:
    shape = matrix_view(mask, axes).shape
    block_rows, block_columns = block_grid(shape, pattern.m)
    return MaskResult(
        mask=mask,
        pattern=pattern,
        constraint=constraint,
        axes=axes,
        solver=solver.info.name,
        kept=proof.kept,
        total=proof.total,
        upper_bound=proof.upper_bound,
        worst_gap=proof.worst_gap,
        unproven=proof.unproven,
        n_blocks=math.prod(shape[:-2]) * block_rows * block_columns,
        seconds=seconds,
        u=duals[0],
        v=duals[1],
    )


def _start_duals(
    start: MaskResult, weights: Array, pattern: Pattern, constraint: Constraint, axes: tuple[int, int], solver: Solver
) -> Duals:
    """Copy the dual variables of a previous result, if they fit this problem."""
    if not isinstance(start, MaskResult):
        raise InvalidTypeError(
            f"`start` must be a MaskResult or None, got {type(start).__name__}. A mask alone holds no dual variables."
        )
    for name, duals in (("u", start.u), ("v", start.v)):
        if not isinstance(duals, np.ndarray) or duals.dtype.kind != "f":
            kind = getattr(duals, "dtype", type(duals).__name__)
            raise InvalidTypeError(f"`start.{name}` must be an array of floats, got {kind}. Pass a result of `solve`.")
    if not solver.warm_startable:
        raise InvalidArgumentError(
            f"`start` must be None for the solver {solver.info.name!r}, which has no warm start, got a MaskResult. "
            "Use 'primal_dual'."
        )
    shape = matrix_view(weights, axes).shape
    for name, had, has in (
        ("shape", start.mask.shape, weights.shape),
        ("pattern", str(start.pattern), str(pattern)),
        ("constraint", start.constraint, constraint),
        ("axes", start.axes, axes),
        ("shape of u and v", (start.u.shape, start.v.shape), tuple(d.shape for d in empty_duals(shape, pattern.m))),
    ):
        if had != has:
            raise InvalidArgumentError(
                f"`start` must be a result for the same {name}, got {had} where the weights have {has}. Leave it out."
            )
    return np.array(start.u, np.float64), np.array(start.v, np.float64)
