"""The published 2-approximation as it is: keep what is among the N heaviest of its row and of its column.

Method
    The published algorithm walks from light to heavy, and prunes an entry while its row or its column has fewer than
    M - N pruned ones. An entry survives if M - N lighter ones are in its row and as many in its column, so what stays
    is what is among the N heaviest of its row *and* of its column: ranks in lines are compared with N, for all blocks
    at once (`_rank_kernels`). It stops there: many lines keep fewer than N. `two_approximation` goes on and fills up.
Guarantee
    "at_most": pruned <= 2 x the optimum's. What is pruned are the M - N lightest of every row and the M - N lightest of
    every column. Any mask prunes M - N of every row, so at least the weight of the former, and likewise at least the
    weight of the latter. In the words of graph theory the pruned entries are an edge cover that holds the nearest
    neighbours of every vertex, for which Ferdous et al. prove the same factor.
    No factor holds for what is kept: of [[1, 2, 0], [0, 3, 4], [0, 0, 5]] with 1 of 3 kept, where each of the numbers 1
    to 4 has a larger one in its row or in its column, this keeps the 5 alone and the optimum 9.
Ties
    Of equal scores the one with the smaller index in the block, row by row, counts as the heavier one.
Cost
    2 M comparisons of scores an entry. With M above 64 lines are sorted.
When not to use it
    It is here for comparison. `greedy` keeps all that this keeps, and more.

References
----------
Hubara et al. 2021, "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M Transposable
Masks", algorithm 1; Ferdous, Pothen and Khan 2018, "New Approximation Algorithms for Minimum Weighted Edge Cover".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..blocks import Array
from ..pattern import Constraint, Pattern
from ._base import Solver
from ._rank_kernels import MAX_RANKED_M, from_lanes, rank_lines
from ._table import TABLE

__all__ = ["MutualTopN", "published_masks"]


class MutualTopN(Solver):
    """Keep what is among the N heaviest of its row and of its column; see the module's docstring.

    Examples
    --------
    >>> from transmask import solve
    >>> solve([[3.0, 2.0], [2.0, 1.0]], "1:2", constraint="at_most", solver=MutualTopN()).mask.astype(int)
    array([[1, 0],
           [0, 0]])
    """

    info = TABLE["mutual_top_n"]
    chunk_entries = 1 << 18  # 64 blocks of 64 x 64: one in each lane

    def solve_scores(self, scores: Array, pattern: Pattern, constraint: Constraint) -> NDArray[np.bool_]:
        """Solve a batch of blocks; see `Solver.solve_scores`."""
        return published_masks(scores, pattern.n)


def published_masks(scores: Array, n: int) -> NDArray[np.bool_]:
    """Keep what is among the `n` heaviest of its row and of its column.

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
