"""Keep entries from heavy to light while their row and their column have room.

`heavy_to_light` does just that: sort and walk. `defer_acceptance` finds the same mask without sorting the block.
Rows and columns of a block agree on which of two entries is better, so that the greedy mask is the only stable one in
the sense of Gale and Shapley 1962, and their deferred acceptance finds it: every row proposes its N best entries, every
column that gets more than N proposals rejects the worst for good, a row proposes its next best entry for each rejected
one, and so on until nobody rejects. It needs no more than the ranks in the lines, one byte each, and many blocks do it
side by side; further rounds leave a finished block as it is.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np

from .._jit import kernel
from ._rank_kernels import RANKED_LANES

__all__ = ["defer_acceptance", "heavy_to_light"]


@kernel
def heavy_to_light(scores, n):
    """Find the greedy masks by sorting each block.

    Parameters
    ----------
    scores : ndarray of float32 or float64, shape (B, M, M)
        Without NaN.
    n : int
        Room of every line.

    Returns
    -------
    ndarray of bool, shape (B, M, M)
        Of equal entries the one with the smaller flat index goes first.
    """
    count, m, _ = scores.shape
    mask = np.zeros((count, m, m), np.bool_)
    for block in range(count):
        row_kept = np.zeros(m, np.int64)
        column_kept = np.zeros(m, np.int64)
        for entry in np.argsort(-scores[block].ravel(), kind="mergesort"):
            i, j = entry // m, entry % m
            if row_kept[i] < n and column_kept[j] < n:
                mask[block, i, j] = True
                row_kept[i] += 1
                column_kept[j] += 1
    return mask


@kernel
def defer_acceptance(row_ranks, column_ranks, n):
    """Find the greedy masks by deferred acceptance.

    A row proposes what it ranks up to `reach` and a column still accepts what it ranks up to `bar`. A row that lacks k
    acceptances reaches k ranks further, some of which may be rejected already; a column with k proposals too many
    lowers its bar by k ranks, some of which may not be proposed. Neither can go too far.

    Parameters
    ----------
    row_ranks, column_ranks : ndarray of uint8, shape (G, M, M, RANKED_LANES)
        See `rank_lines`.
    n : int
        Room of every line, 1 <= n < M.

    Returns
    -------
    ndarray of bool, shape (G, M, M, RANKED_LANES)
    """
    groups, m = row_ranks.shape[:2]
    kept = np.empty(row_ranks.shape, np.bool_)
    reach = np.empty((m, RANKED_LANES), np.uint8)
    bar = np.empty((m, RANKED_LANES), np.uint8)
    row_kept = np.empty((m, RANKED_LANES), np.uint8)
    column_kept = np.empty((m, RANKED_LANES), np.uint8)
    old = np.empty(RANKED_LANES, np.uint8)
    for group in range(groups):
        row_rank, column_rank = row_ranks[group], column_ranks[group]
        reach[:] = n - 1
        bar[:] = m - 1
        row_kept[:] = n
        column_kept[:] = 0
        for i in range(m):
            for j in range(m):
                for lane in range(RANKED_LANES):
                    column_kept[j, lane] += row_rank[i, j, lane] < n
        changed = True
        while changed:
            changed = _reject(row_rank, column_rank, n, reach, bar, row_kept, column_kept, old)
            changed |= _propose(row_rank, column_rank, n, reach, bar, row_kept, column_kept, old)
        for i in range(m):
            for j in range(m):
                for lane in range(RANKED_LANES):
                    proposed = row_rank[i, j, lane] <= reach[i, lane]
                    kept[group, i, j, lane] = proposed & (column_rank[i, j, lane] <= bar[j, lane])
    return kept


@kernel
def _reject(row_rank, column_rank, n, reach, bar, row_kept, column_kept, old_bar):
    """Lower the bar of the columns that have more than n proposals; tell whether there are any."""
    m = row_rank.shape[0]
    any_change = False
    for j in range(m):
        change = np.uint8(0)
        for lane in range(RANKED_LANES):
            excess = np.uint8(max(column_kept[j, lane], np.uint8(n)) - np.uint8(n))
            old_bar[lane] = bar[j, lane]
            bar[j, lane] -= excess
            change |= excess
        if change == 0:
            continue
        any_change = True
        for i in range(m):
            for lane in range(RANKED_LANES):
                rank = column_rank[i, j, lane]
                rejected = (row_rank[i, j, lane] <= reach[i, lane]) & (rank <= old_bar[lane]) & (rank > bar[j, lane])
                row_kept[i, lane] -= rejected
                column_kept[j, lane] -= rejected
    return any_change


@kernel
def _propose(row_rank, column_rank, n, reach, bar, row_kept, column_kept, old_reach):
    """Extend the reach of the rows that keep fewer than n; tell whether there are any."""
    m = row_rank.shape[0]
    any_change = False
    for i in range(m):
        change = np.uint8(0)
        for lane in range(RANKED_LANES):
            lacking = np.uint8(np.uint8(n) - row_kept[i, lane])
            old_reach[lane] = reach[i, lane]
            step = min(lacking, np.uint8(np.uint8(m - 1) - reach[i, lane]))
            reach[i, lane] += step
            change |= step
        if change == 0:
            continue
        any_change = True
        for j in range(m):
            for lane in range(RANKED_LANES):
                rank = row_rank[i, j, lane]
                proposed = (rank > old_reach[lane]) & (rank <= reach[i, lane])
                accepted = proposed & (column_rank[i, j, lane] <= bar[j, lane])
                row_kept[i, lane] += accepted
                column_kept[j, lane] += accepted
    return any_change
