"""Prove how good a mask is, by linear-programming duality.

For any u, v (with "at_most": u, v >= 0) no mask of a block keeps more than

    bound(u, v) = N * (sum_i u_i + sum_j v_j) + sum_ij max(0, S_ij - u_i - v_j)

and for an optimal mask some (u, v) reach it, because the constraint matrix is totally unimodular. With the reduced
scores r = S - u - v and the row and column sums of the mask X, the distance from the mask to the bound is how far
(u, v) are from complementary slackness,

    bound - kept = sum_{X=1} max(0, -r) + sum_{X=0} max(0, r) + sum_i u_i (N - X_i.) + sum_j v_j (N - X_.j)

which is how it is computed: as a sum of non-negative terms, without cancellation. Good (u, v) come from four places,
tried in turn for the blocks that need them: what the solver left, shortest paths in the residual graph of the mask
(Bellman-Ford; they exist exactly when the mask is optimal), alternating minimisation of the bound, and a linear program
where that stalls; see `duals`. The proof does not rely on their origin: any (u, v) prove their bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments import as_axes, as_mask, as_weights, matrix_view
from ..blocks import Array, Blocks, Duals, cut, empty_duals
from ..check import check_mask
from ..errors import InvalidArgumentError
from ..pattern import Constraint, Pattern, PatternLike, as_constraint
from ..threads import resolve_threads, run_parallel
from .duals import CertifiedBlocks, alternating_duals, shortest_path_duals

__all__ = ["PROVEN_GAP", "Certificate", "certify", "certify_matrices"]

PROVEN_GAP = 1e-12
"""A relative gap up to this is the rounding of float64 sums: the mask is optimal."""

_CHUNK_ENTRIES = 1 << 15  # 256 KB of float64: the few arrays of this size that a chunk works on stay in the L2 cache

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
    u : ndarray of float64, shape (..., R, ceil(C / M))
        Dual variables of the rows, one for each row of each block; the matrix axes moved last.
    v : ndarray of float64, shape (..., ceil(R / M), C)
        Dual variables of the columns.
    """

    kept: float
    upper_bound: float
    worst_gap: float
    u: Floats
    v: Floats

    def __repr__(self) -> str:
        return (
            f"Certificate(kept={self.kept:.6g}, upper_bound={self.upper_bound:.6g}, gap={self.gap:.1e}, "
            f"worst_gap={self.worst_gap:.1e})"
        )

    @property
    def gap(self) -> float:
        """The fraction of the upper bound that a better mask could still gain, at least 0."""
        return max(0.0, (self.upper_bound - self.kept) / self.upper_bound) if self.upper_bound > 0 else 0.0


def certify(
    weights: ArrayLike,
    mask: ArrayLike,
    pattern: PatternLike,
    *,
    constraint: str = "exactly",
    axes: tuple[int, int] = (-2, -1),
    threads: int | None = None,
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
    Works in float64 on chunks of blocks; a few passes over the weights for an optimal mask, up to a few hundred for one
    that is not.

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
    matrix_axes = as_axes(axes, array.ndim)
    report = check_mask(kept, chosen, constraint=limit, axes=matrix_axes)
    if not report:
        raise InvalidArgumentError(
            f"`mask` must keep {limit.replace('_', ' ')} {chosen.n} of every {chosen.m}, but {report.first_offender}. "
            "Only a mask that holds its constraint can be certified."
        )
    views = matrix_view(array, matrix_axes), matrix_view(kept, matrix_axes)
    duals = empty_duals(views[0].shape, chosen.m)
    total, bound, worst_gap = certify_matrices(*views, duals, chosen, limit, threads=resolve_threads(threads))
    return Certificate(total, bound, worst_gap, *duals)


def certify_matrices(
    weights: Array, mask: NDArray[np.bool_], duals: Duals, pattern: Pattern, constraint: Constraint, *, threads: int
) -> tuple[float, float, float]:
    """Certify validated (..., R, C) arrays: return (kept, upper_bound, worst_gap) and improve `duals` in place.

    Parameters
    ----------
    weights : ndarray, shape (..., R, C)
    mask : ndarray of bool, shape (..., R, C)
        Holds the constraint.
    duals : (u, v)
        Any starting point; zeros will do. Overwritten by the best that was found.
    pattern : Pattern
    constraint : {"exactly", "at_most"}
    threads : int

    Returns
    -------
    kept, upper_bound, worst_gap : float
    """
    found: list[tuple[float, float, float]] = []
    for blocks in cut(weights, mask, duals, pattern.m, constraint):
        parts = blocks.split(max(1, _CHUNK_ENTRIES // pattern.m**2))
        run_parallel(lambda part: found.append(_certify_part(part, pattern.n)), parts, threads)
    kept = math.fsum(kept for kept, _, _ in found)
    upper_bound = kept + math.fsum(distance for _, distance, _ in found)
    return kept, upper_bound, max((gap for _, _, gap in found), default=0.0)


def _certify_part(part: Blocks, n: int) -> tuple[float, float, float]:
    """Return what the mask keeps, its distance to the bound and the worst gap, and leave the best duals in the part."""
    assert part.u is not None and part.v is not None  # noqa: PT018
    m, at_most = part.mask.shape[-1], part.constraint == "at_most"
    # A solver is not trusted: whatever its duals are, those below are valid.
    u, v = (np.nan_to_num(start.reshape(-1, m), posinf=0.0, neginf=0.0) for start in (part.u, part.v))
    if at_most:
        u, v = np.maximum(u, 0.0), np.maximum(v, 0.0)
    scores, mask = part.scores().astype(np.float64), part.mask.reshape(-1, m, m)
    blocks = CertifiedBlocks(scores, mask, u, v, n, at_most)
    distance = blocks.distance()
    for improve in (shortest_path_duals, alternating_duals):
        open_blocks = np.flatnonzero(distance > PROVEN_GAP / 16 * blocks.kept())
        if open_blocks.size == 0:
            break
        rest = blocks.take(open_blocks)
        rest.u, rest.v = improve(rest)
        better = rest.distance() < distance[open_blocks]
        winners = open_blocks[better]
        blocks.u[winners], blocks.v[winners] = rest.u[better], rest.v[better]
        distance[winners] = rest.distance()[better]
    part.u[...] = blocks.u.reshape(part.u.shape)
    part.v[...] = blocks.v.reshape(part.v.shape)
    kept = blocks.kept()
    gaps = np.divide(distance, kept + distance, out=np.zeros_like(distance), where=distance > 0)
    return math.fsum(kept), math.fsum(distance), float(gaps.max(initial=0.0))
