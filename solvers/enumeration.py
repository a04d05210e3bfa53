"""Exact for small blocks: score every feasible mask and take the best.

Method
    All 0/1 M x M matrices that hold the constraint are listed once for a pattern (90 for 2:4 "exactly", 7343 for
    "at_most"). What each of them keeps of each block is one matrix product: blocks x entries by entries x masks.
Guarantee
    Exact, by exhaustion. The scores of each block are multiplied by a power of two and rounded to integers of as many
    bits as let every sum of N * M of them be exact in float64 (50 at 2:4), whatever order the matrix product adds in.
    Rounding loses at most 2 * (N * M)**2 / 2**53 of what the optimum keeps: 1.5e-14 at 2:4.
    So scores of about 1 are told apart beside one of 1e12, and not beside one of 1e18: primal_dual does that.
Ties
    The mask that comes first in lexicographic order of its rows, where [True, ...] comes first, wins.
Cost
    (number of masks) * M^2 multiplications and as many comparisons a block: 0.2 us at 2:4 "exactly", 5 us at 2:4
    "at_most", 60 us at 3:4 "at_most", whose 41503 masks are the most that M = 4 has. Up to 32 MB a thread.
When not to use it
    On a whole model: primal_dual is faster. With more than about 10^4 masks so is min_cost_flow, and patterns with more
    than 10^5 masks are refused. That leaves M <= 4; for "exactly" also M = 5, 1:6, 2:6 (67950 masks), 4:6, 5:6, 1:7,
    6:7, 1:8 and 7:8, for "at_most" also 1:5 and 1:6. 3:6 has 297200 masks, 2:8 more than 10^8.

References
----------
Hu et al. 2024, "Accelerating Transformer Pre-training with 2:4 Sparsity", section 5.1, for 2:4 "exactly".
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ..blocks import Array
from ..pattern import Constraint, Pattern
from ._base import Solver, scale_blocks
from ._table import TABLE

__all__ = ["Enumeration"]

MAX_MASKS = TABLE["enumeration"].max_masks or 0
"""How many masks a block may have; `Solver.check` counts them."""

_VALUES = 1 << 22
"""Values in one product, 32 MB. With a quarter of it 1:8 takes twice as long: BLAS copies all masks every time."""


class Enumeration(Solver):
    """Score every feasible mask of a block; see the module's docstring.

    Examples
    --------
    >>> from transmask import solve
    >>> solve([[3.0, 1.0], [1.0, 1.0]], "1:2", solver=Enumeration()).kept
    4.0
    """

    info = TABLE["enumeration"]
    chunk_entries = 1 << 13  # 512 blocks of 4 x 4: their values under 90 masks are 368 KB and stay in the L2 cache

    def solve_scores(self, scores: Array, pattern: Pattern, constraint: Constraint) -> NDArray[np.bool_]:
        """Solve a batch of blocks; see `Solver.solve_scores`."""
        columns = _mask_columns(pattern, constraint)
        bits = 53 - (pattern.n * pattern.m - 1).bit_length()
        integers = np.rint(scale_blocks(scores, bits)).reshape(len(scores), -1)
        mask = np.empty(integers.shape, np.bool_)
        step = max(1, _VALUES // columns.shape[1])
        for start in range(0, len(scores), step):
            part = slice(start, start + step)
            mask[part] = columns[:, np.argmax(integers[part] @ columns, axis=1)].T
        return mask.reshape(scores.shape)


@lru_cache(maxsize=8)
def feasible_masks(pattern: Pattern, constraint: Constraint) -> NDArray[np.bool_]:
    """List the masks of one block, in lexicographic order with True first.

    They are built row by row. Every list of first rows that no column rules out can be completed (by total
    unimodularity, as the average of what is left to each column is feasible), so there are never more such lists than
    masks.

    Parameters
    ----------
    pattern : Pattern
        With no more masks than fit in memory: one that `Enumeration.check` passed.
    constraint : {"exactly", "at_most"}

    Returns
    -------
    ndarray of bool, shape (count, M, M)

    Examples
    --------
    >>> len(feasible_masks(Pattern(2, 4), "exactly")), len(feasible_masks(Pattern(2, 4), "at_most"))
    (90, 7343)
    """
    n, m = pattern.n, pattern.m
    sizes = [n] if constraint == "exactly" else range(n + 1)
    rows = np.array([np.isin(range(m), chosen) for size in sizes for chosen in combinations(range(m), size)])
    rows = rows[np.lexsort(~rows.T[::-1])]
    lists = np.zeros((1, 0, m), np.bool_)
    for rows_left in range(m - 1, -1, -1):
        parts = []
        for part in np.array_split(lists, -(-len(lists) * len(rows) // MAX_MASKS)):
            longer = np.concatenate(
                [np.repeat(part, len(rows), axis=0), np.tile(rows, (len(part), 1))[:, None, :]], axis=1
            )
            sums = longer.sum(axis=1)
            feasible = sums <= n if constraint == "at_most" else (sums <= n) & (sums + rows_left >= n)
            parts.append(longer[feasible.all(axis=1)])
        lists = np.concatenate(parts)
    return lists


@lru_cache(maxsize=8)
def _mask_columns(pattern: Pattern, constraint: Constraint) -> NDArray[np.float64]:
    """Return the masks of a pattern as the columns of a (M * M, count) matrix."""
    masks = feasible_masks(pattern, constraint)
    return masks.reshape(len(masks), -1).T.astype(np.float64, order="C")
