"""The published factor on what is pruned: prune from light to heavy what a line has to lose, then fill up.

Method
    The published algorithm walks from light to heavy, and prunes an entry while its row or its column has fewer than
    M - N pruned ones. An entry survives if M - N lighter ones are in its row and as many in its column, so what stays
    is what is among the N heaviest of its row *and* of its column: ranks in lines are compared with N, for all blocks
    at once (`_rank_kernels`). That prunes more than it has to. Entries are added from heavy to light where row and
    column have room, and for "exactly" swaps fill every line, as in `greedy` (`_completion_kernels`).
Guarantee
    "at_most": pruned <= 2 x the optimum's. What the published algorithm prunes are the M - N lightest of every row and
    the M - N lightest of every column. Any mask prunes M - N of every row, so at least the weight of the former, and
    likewise at least the weight of the latter. Additions prune less.
    Also kept >= 1/2 of the optimum, because the additions lead to the mask of `greedy`: an entry that finds no room in
    a line finds N heavier ones there. For if one of them were lighter, the lightest would have N heavier ones in its
    line, and could not be in the published mask.
    "exactly": none. Of [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]] with 3 of 4 kept, the optimum prunes
    nothing but zeros, and this prunes a one.
Ties
    Of equal scores the one with the smaller index in the block, row by row, counts as the heavier one.
Cost
    2 M comparisons of scores an entry, then sorting the free entries. With M above 64 lines are sorted.
When not to use it
    It is here for comparison: `greedy` finds the same masks in less time.

Reference: Hubara et al. 2021, "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M
Transposable Masks", 2-approximation algorithm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..blocks import Array
from ..pattern import Constraint, Pattern
from ._base import Solver
from ._completion_kernels import add_and_swap
from ._rank_kernels import MAX_RANKED_M, from_lanes, rank_lines
from ._table import TABLE

__all__ = ["TwoApproximation", "published_masks"]


class TwoApproximation(Solver):
    """Prune from light to heavy, then fill up; see the module's docstring.

    Examples
    --------
    >>> from transmask import solve
    >>> solve([[3.0, 2.0], [2.0, 0.0]], "1:2", solver=TwoApproximation()).kept
    3.0
    """

    info = TABLE["two_approximation"]
    chunk_entries = 1 << 18  # 64 blocks of 64 x 64: one in each lane

    def solve_scores(self, scores: Array, pattern: Pattern, constraint: Constraint) -> NDArray[np.bool_]:
        """Solve a batch of blocks; see `Solver.solve_scores`."""
        mask = published_masks(scores, pattern.n)
        add_and_swap(scores, mask, pattern.n, mask.size if constraint == "exactly" else 0, True)
        return mask


def published_masks(scores: Array, n: int) -> NDArray[np.bool_]:
    """Keep what is among the `n` heaviest of its row and of its column: the published mask, before it is filled up.

    Parameters
    ----------
    scores : ndarray of float32 or float64, shape (B, M, M)
        Without NaN, C-contiguous.
    n : int
        1 <= n < M.

    Returns
    -------
    ndarray of bool, shape (B, M, M)

    Examples
    --------
    >>> published_masks(np.array([[[3.0, 2.0], [2.0, 0.0]]]), 1).astype(int)
    array([[[1, 0],
            [0, 0]]])
    """
    count, m, _ = scores.shape
    mask: NDArray[np.bool_]
    if m <= MAX_RANKED_M:
        row_ranks, column_ranks = rank_lines(scores)
        mask = from_lanes((row_ranks < n) & (column_ranks < n), count)
    else:
        mask = _among_heaviest(scores, n, axis=2) & _among_heaviest(scores, n, axis=1)
    return mask


def _among_heaviest(scores: Array, n: int, *, axis: int) -> NDArray[np.bool_]:
    """Mark the `n` heaviest entries along an axis; of equal ones the first."""
    heaviest = np.argsort(-scores, axis=axis, kind="stable").take(range(n), axis=axis)
    mask = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(mask, heaviest, True, axis=axis)
    return mask
