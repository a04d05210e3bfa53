"""Exact for small blocks: score every feasible mask and take the best.

Method
    All 0/1 M x M matrices that hold the constraint are listed once for a pattern (90 for 2:4 "exactly", 7343 for
    "at_most"). What each of them keeps of each block is one matrix product: blocks x entries by entries x masks.
Guarantee
    Exact, by exhaustion. The product is taken in float64 whatever the scores are, because float32 sums confuse masks
    whose values differ in the seventh digit.
Ties
    The mask that comes first in lexicographic order of its rows, where [True, ...] comes first, wins.
Cost
    (number of masks) * M^2 multiplications and as many comparisons a block.
When not to use it
    For more than 10^5 masks, which it refuses: 3:6 "exactly" has 297200. Any other exact solver takes those.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ..blocks import Array
from ..errors import UnsupportedPatternError
from ..pattern import Constraint, Pattern
from . import TABLE
from ._base import Solver

__all__ = ["Enumeration"]

MAX_MASKS = 100_000


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

    def check(self, pattern: Pattern, constraint: Constraint) -> None:
        """Raise UnsupportedPatternError if the pattern has more than 10^5 masks."""
        super().check(pattern, constraint)
        if feasible_masks(pattern, constraint) is None:
            raise UnsupportedPatternError(
                f"`solver` 'enumeration' must be given a pattern with at most {MAX_MASKS} masks a block, got "
                f"{str(pattern)!r} {constraint!r}. {self._alternatives(pattern, constraint)}"
            )

    def solve_scores(self, scores: Array, pattern: Pattern, constraint: Constraint) -> NDArray[np.bool_]:
        """Solve a batch of blocks; see `Solver.solve_scores`."""
        masks = feasible_masks(pattern, constraint)
        assert masks is not None
        entries = pattern.m**2
        values = scores.reshape(-1, entries).astype(np.float64) @ masks.reshape(-1, entries).T.astype(np.float64)
        return masks[np.argmax(values, axis=1)]


@lru_cache(maxsize=8)
def feasible_masks(pattern: Pattern, constraint: Constraint) -> NDArray[np.bool_] | None:
    """List the masks of one block, in lexicographic order with True first, or None if there are more than 10^5.

    Parameters
    ----------
    pattern : Pattern
    constraint : {"exactly", "at_most"}

    Returns
    -------
    ndarray of bool, shape (count, M, M), or None

    Examples
    --------
    >>> len(feasible_masks(Pattern(2, 4), "exactly")), len(feasible_masks(Pattern(2, 4), "at_most"))
    (90, 7343)
    """
    n, m = pattern.n, pattern.m
    sizes = [n] if constraint == "exactly" else range(n + 1)
    rows = np.array([np.isin(range(m), chosen) for size in sizes for chosen in combinations(range(m), size)])
    rows = rows[np.lexsort(~rows.T[::-1])]
    partial = np.zeros((1, 0, m), np.bool_)
    for rows_left in range(m - 1, -1, -1):
        extended = np.concatenate(
            [np.repeat(partial, len(rows), axis=0), np.tile(rows, (len(partial), 1))[:, None, :]], axis=1
        )
        sums = extended.sum(axis=1)
        feasible = sums <= n if constraint == "at_most" else (sums <= n) & (sums + rows_left >= n)
        partial = extended[feasible.all(axis=1)]
        if len(partial) > MAX_MASKS:
            return None
    return partial
