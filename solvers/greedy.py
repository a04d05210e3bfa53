"""Fast and never below half: keep from heavy to light while there is room, then fill up.

Method
    Entries are looked at from heavy to light, and kept while their row and their column keep fewer than N. The
    published code sorts; here deferred acceptance finds the same mask for 64 blocks at once (`_greedy_kernels`). It
    leaves room in some lines, but for no entry: where row i and column j both have room, (i, j) is kept already.
    "at_most" ends there. "exactly" goes on with swaps, the best first, until every line is full
    (`_completion_kernels`).
Guarantee
    "at_most": kept >= 1/2 of the optimum. An entry of an optimal mask that is not kept met a full row or a full column,
    where all N entries are at least as heavy. A line has no more such entries than it has kept ones outside of the
    optimal mask. So each of these pays for one in its row and one in its column, and every other kept one for itself.
    Also pruned <= 2 x the optimum's, because the mask contains that of `mutual_top_n`, of which this is proven. It is
    always the mask of `two_approximation`.
    "exactly": swaps may lose weight. With 2 of 3 kept of [[1, 1, 0], [1, 1, 0], [0, 0, 0]], all four ones are kept
    before the swaps and three after them, which is the optimum. It is proven that a swap loses at most one part in
    M - N + 1 of what is kept; it is not proven that half of the optimum is left after all swaps. The search for a
    counterexample in ``tests/test_greedy.py`` finds none.
Ties
    Of equal scores the one with the smaller index in the block, row by row, is kept first. Of swaps with equal gain
    the first is made, in the order of row and column with room, then of column and row of the dropped entry.
Cost
    2 M comparisons of scores an entry, then rounds of a few operations on bytes an entry until the last of 64 blocks is
    done, more of them for larger M. M * M operations a swap. Blocks with M above 64 are sorted.
When not to use it
    Where "auto" will do, which is exact, and for M up to 64 faster as well, except on matrices below about 100 x 100;
    ``python -m benchmarks.solvers`` compares.

References: Avis 1983, "A survey of heuristics for the weighted matching problem"; Gale and Shapley 1962, "College
admissions and the stability of marriage"; Hubara et al. 2021, "Accelerated Sparse Neural Training", published code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..blocks import Array
from ..pattern import Constraint, Pattern
from ._base import Solver
from ._completion_kernels import add_and_swap
from ._greedy_kernels import defer_acceptance, heavy_to_light
from ._rank_kernels import MAX_RANKED_M, from_lanes, rank_lines
from ._table import TABLE

__all__ = ["Greedy", "greedy_masks"]


class Greedy(Solver):
    """Keep from heavy to light while there is room; see the module's docstring.

    Examples
    --------
    >>> from transmask import solve
    >>> solve([[3.0, 2.0], [2.0, 0.0]], "1:2", solver=Greedy()).kept
    3.0
    """

    info = TABLE["greedy"]
    chunk_entries = 1 << 18  # 64 blocks of 64 x 64: one in each lane

    def solve_scores(self, scores: Array, pattern: Pattern, constraint: Constraint) -> NDArray[np.bool_]:
        """Solve a batch of blocks; see `Solver.solve_scores`."""
        mask = greedy_masks(scores, pattern.n)
        if constraint == "exactly":
            add_and_swap(scores, mask, pattern.n, mask.size, True)
        return mask


def greedy_masks(scores: Array, n: int) -> NDArray[np.bool_]:
    """Keep entries from heavy to light while their row and their column keep fewer than `n`.

    Parameters
    ----------
    scores : ndarray of float32 or float64, shape (B, M, M)
        Without NaN, C-contiguous; of any sign.
    n : int
        1 <= n < M.

    Returns
    -------
    ndarray of bool, shape (B, M, M)

    Examples
    --------
    >>> greedy_masks(np.array([[[3.0, 2.0], [2.0, 0.0]]]), 1).astype(int)
    array([[[1, 0],
            [0, 1]]])
    """
    count, m, _ = scores.shape
    mask: NDArray[np.bool_]
    if m <= MAX_RANKED_M:
        mask = from_lanes(defer_acceptance(*rank_lines(scores), n), count)
    else:
        mask = heavy_to_light(scores, n)
    return mask
