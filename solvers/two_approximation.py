"""The published 2-approximation, filled up: prune from light to heavy what a line has to lose, then add what fits.

Method
    The published algorithm (`mutual_top_n` is that alone) prunes more than it has to. Here entries are added from heavy
    to light where row and column have room, and for "exactly" swaps fill every line, as in `greedy`
    (`_completion_kernels`).
Guarantee
    The masks are those of `greedy`, always: an entry that finds no room in a line finds N heavier ones there. For if
    one of them were lighter, the lightest would have N heavier ones in its line, and could not be in the published
    mask. So both factors hold for both solvers.
    "at_most": kept >= 1/2 of the optimum, as `greedy` shows, and pruned <= 2 x the optimum's, as `mutual_top_n` shows:
    additions prune less.
    "exactly": none. Of [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]] with 3 of 4 kept, the optimum prunes
    nothing but zeros, and this prunes a one.
Ties
    Of equal scores the one with the smaller index in the block, row by row, counts as the heavier one.
Cost
    2 M comparisons of scores an entry, then sorting the free entries. With M above 64 lines are sorted.
When not to use it
    It is here for comparison: `greedy` finds the same masks in less time.

Reference: Hubara et al. 2021, "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M
Transposable Masks", algorithm 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..blocks import Array
from ..pattern import Constraint, Pattern
from ._base import Solver
from ._completion_kernels import add_and_swap
from ._table import TABLE
from .mutual_top_n import published_masks

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
