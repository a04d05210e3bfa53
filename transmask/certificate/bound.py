"""Prove how good a mask is, by linear-programming duality.

For any u, v (with "at_most": u, v >= 0) no mask of a block keeps more than

    bound(u, v) = N * (sum_i u_i + sum_j v_j) + sum_ij max(0, S_ij - u_i - v_j)

and for an optimal mask some (u, v) reach it, because the constraint matrix is totally unimodular. With the reduced
scores r = S - u - v and the row and column sums of the mask X, the distance from the mask to the bound is how far
(u, v) are from complementary slackness,

    bound - kept = sum_{X=1} max(0, -r) + sum_{X=0} max(0, r) + sum_i u_i (N - X_i.) + sum_j v_j (N - X_.j)

which is how it is computed: as a sum of non-negative terms, without cancellation. The proof does not rely on where
(u, v) come from, since any prove their bound: `duals` finds good ones, `proof` and `kernel` check them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments import as_axes, as_mask, as_weights, matrix_view
from .._typing import Array
from ..blocks import Duals, empty_duals
from ..check import check_mask
from ..errors import InvalidArgumentError, InvalidTypeError
from ..pattern import Constraint, Pattern, PatternLike, as_constraint
from ..solving import check_block_side
from ..threads import resolve_threads
from .duals import exact_duals, is_within_reach, search_duals
from .proof import LARGEST_DUAL, Proof, prove, relative_gap

__all__ = ["Certificate", "certify", "certify_matrices"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Certificate:
    """How good a mask is, with the proof.

    Attributes
    ----------
    kept : float
        Sum of abs(weights) over the kept entries.
    upper_bound : float
        No mask of the same pattern and constraint keeps more.
    worst_gap : float
        The largest gap of a single block.
    unproven : int
        Number of blocks whose distance to their bound is more than 1e-12 of what they keep, measured by the median of
        their kept non-zero scores so that an outlier does not hide what its neighbours lose. 0: the mask is optimal.
    u : ndarray of float64, shape (..., R, ceil(C / M))
        Dual variables of the rows, one for each row of each block; the matrix axes moved last.
    v : ndarray of float64, shape (..., ceil(R / M), C)
        Dual variables of the columns.
    """

    kept: float
    upper_bound: float
    worst_gap: float
    unproven: int
    u: Floats
    v: Floats

    def __repr__(self) -> str:
        return (
            f"Certificate(kept={self.kept:.6g}, upper_bound={self.upper_bound:.6g}, gap={self.gap:.1e}, "
            f"worst_gap={self.worst_gap:.1e}, unproven={self.unproven})"
        )

    @property
    def gap(self) -> float:
        """The fraction of the upper bound that a better mask could still gain, at least 0."""
        return relative_gap(self.kept, self.upper_bound)


def certify(
    weights: ArrayLike,
    mask: ArrayLike,
    pattern: PatternLike,
    *,
    constraint: str = "exactly",
    axes: tuple[int, int] = (-2, -1),
    threads: int | None = None,
    duals: tuple[ArrayLike, ArrayLike] | None = None,
) -> Certificate:
    """Bound how much any transposable mask could keep, and compare with `mask`, whoever made it.

    Parameters
    ----------
    weights : array_like, shape (..., R, C)
        Finite real numbers of any dtype; not modified. Their magnitudes are the scores.
    mask : array_like of bool or of 0 and 1, the shape of `weights`
        True = kept. It must hold the constraint.
    pattern : Pattern, str or tuple of two int
        N entries kept of every M.
    constraint : {"exactly", "at_most"}, default "exactly"
        A mask can be optimal for one and not for the other.
    axes : tuple of two int, default (-2, -1)
        The axes that form the matrix.
    threads : int, optional
        Default: the environment variable TRANSMASK_NUM_THREADS, else every core.
    duals : (u, v), optional
        Dual variables of shapes (..., R, ceil(C / M)) and (..., ceil(R / M), C) whose bound is wanted, at least 0 in
        blocks that are "at_most", which cut blocks always are. Default: the best that are found.

    Returns
    -------
    Certificate
        For an optimal mask the relative gap is at most 1e-12, the rounding of float64.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used, the shapes differ, or the mask breaks the constraint.

    Notes
    -----
    One pass over the weights checks duals, in float64 and in place. Up to M = 64 those of the exact solver are checked;
    beyond, they are searched for, in a few passes for an optimal mask and up to a few hundred for one that is not.

    References
    ----------
    Schrijver 2003, "Combinatorial Optimization", sections 12.4 (potentials) and 21.2 (b-matchings).

    Examples
    --------
    >>> import numpy as np
    >>> certificate = certify(np.ones((4, 4)), np.eye(4), "1:4")
    >>> certificate.kept, certificate.upper_bound, certificate.gap
    (4.0, 4.0, 0.0)
    """
    array, kept, chosen, limit = as_weights(weights), as_mask(mask), Pattern.of(pattern), as_constraint(constraint)
    if kept.shape != array.shape:
        raise InvalidArgumentError(f"`mask` must have the shape of the weights, {array.shape}, got {kept.shape}.")
    matrix_axes, n_threads = as_axes(axes, array.ndim), resolve_threads(threads)
    check_block_side(chosen)
    views = matrix_view(array, matrix_axes), matrix_view(kept, matrix_axes)
    if duals is None:
        used = empty_duals(views[0].shape, chosen.m)
        proof = certify_matrices(*views, used, chosen, limit, threads=n_threads)
    else:
        used = _as_duals(duals, views[0].shape, chosen.m)
        given = used[0].copy(), used[1].copy()
        proof = prove(*views, used, chosen, limit, threads=n_threads)
        _refuse_overwritten(given, used)
    if proof.broken:
        report = check_mask(kept, chosen, constraint=limit, axes=matrix_axes)
        raise InvalidArgumentError(
            f"`mask` must keep {limit.replace('_', ' ')} {chosen.n} of every {chosen.m}, but {report.first_offender}. "
            "Only a mask that holds its constraint can be certified."
        )
    return Certificate(proof.kept, proof.upper_bound, proof.worst_gap, proof.unproven, *used)


def certify_matrices(
    weights: Array, mask: NDArray[np.bool_], duals: Duals, pattern: Pattern, constraint: Constraint, *, threads: int
) -> Proof:
    """Prove the masks of validated (..., R, C) arrays, and leave in `duals` what proves most.

    Parameters
    ----------
    weights : ndarray, shape (..., R, C)
    mask : ndarray of bool, shape (..., R, C)
    duals : (u, v)
        What the solver left; zeros will do. Overwritten by the best that was found.
    pattern : Pattern
    constraint : {"exactly", "at_most"}
    threads : int

    Returns
    -------
    Proof
        If it counts broken lines, nothing else in it means anything.
    """
    problem = weights, mask, duals, pattern, constraint
    within_reach = is_within_reach(pattern, constraint)
    proof = None
    if not within_reach or _are_left(duals):
        proof = prove(*problem, threads=threads)
        if proof.broken or not proof.unproven:
            return proof
    if within_reach:
        found = exact_duals(weights, pattern, constraint, threads=threads)
        better = prove(weights, mask, found, pattern, constraint, threads=threads)
        if proof is None or better.distance < proof.distance:
            proof = better
            for array, best in zip(duals, found, strict=True):
                array[...] = best
    assert proof is not None
    parts = proof.near_parts if within_reach else proof.unproven_parts
    if proof.broken or not parts:
        return proof
    search_duals(parts, pattern, constraint, near_only=within_reach, threads=threads)
    return prove(*problem, threads=threads)


def _are_left(duals: Duals) -> bool:
    """Tell whether a solver has left dual variables; the first few tell, where they are not zeros."""
    return any(bool(array.flat[:256].any() or array.any()) for array in duals)


def _as_duals(duals: tuple[ArrayLike, ArrayLike], shape: tuple[int, ...], m: int) -> Duals:
    """Return a float64 copy of a caller's dual variables, if they are finite and of the right shapes."""
    if not isinstance(duals, (tuple, list)) or len(duals) != 2:
        raise InvalidTypeError(f"`duals` must be a pair of arrays (u, v) or None, got {type(duals).__name__}.")
    u, v = (
        _as_dual(values, name, wanted.shape)
        for name, values, wanted in zip("uv", duals, empty_duals(shape, m), strict=True)
    )
    return u, v


def _as_dual(values: ArrayLike, name: str, shape: tuple[int, ...]) -> Floats:
    """Return a float64 copy of the dual variables of the rows or of the columns, if they can be used."""
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise InvalidTypeError(f"`duals` must hold real numbers, got {name} of dtype {array.dtype}.")
    if array.shape != shape:
        raise InvalidArgumentError(
            f"`duals` must be (u, v) with {name} of shape {shape}, got {array.shape}: one a line of a block."
        )
    taken = array.astype(np.float64)
    usable = np.abs(taken) <= LARGEST_DUAL
    if not usable.all():
        first = tuple(int(index) for index in np.argwhere(~usable)[0])
        raise InvalidArgumentError(
            f"`duals` must be finite and at most {LARGEST_DUAL:g} in magnitude, got {taken[first]} in {name} at index "
            f"{first}. Leave them out to have the best found."
        )
    return taken


def _refuse_overwritten(given: Duals, used: Duals) -> None:
    """Raise if a dual of the caller was not valid, which the proof overwrites with 0."""
    for name, before, after in zip("uv", given, used, strict=True):
        changed = before != after
        if changed.any():
            first = tuple(int(index) for index in np.argwhere(changed)[0])
            raise InvalidArgumentError(
                f"`duals` must be at least 0 in blocks that keep at most N (cut blocks do), got {before[first]} in "
                f"{name} at index {first}. A negative dual proves nothing there."
            )
