"""Fill up masks that keep fewer than N entries in some lines.

First *additions*: entries whose row and column both have room, from heavy to light. Afterwards every row with room
keeps every column with room, so that nothing more can be added. Then *swaps*: for a row i and a column j with room,
drop a kept entry (r, c) and keep (i, c) and (r, j) instead. Row r and column c keep as many as before, row i and column
j one more.

A swap exists as long as there is room. Let r be a row that does not keep column j: as j has room, there are at least
M - N + 1 of them. Row r is full, or (r, j) could be added. It keeps more than row i does, so it keeps some c that row i
does not. Rows and columns have the same room in total, so that swaps end with N entries in every line. Of all swaps the
one with the largest gain S[i, c] + S[r, j] - S[r, c] is made. The M - N + 1 rows hold as many different entries (r, c),
of which the lightest is at most a (M - N + 1)-th of what the mask keeps: no swap loses more than that fraction.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import numpy as np

from .._jit import kernel

__all__ = ["add_and_swap"]


@kernel
def add_and_swap(scores, mask, n, max_swaps, with_loss):
    """Add free entries to masks, then swap; each block on its own.

    Parameters
    ----------
    scores : ndarray of float32 or float64, shape (B, M, M)
        Finite and non-negative.
    mask : ndarray of bool, shape (B, M, M)
        With at most N entries in every line; changed in place.
    n : int
        Entries that a full line keeps.
    max_swaps : int
        How many swaps a block may make.
    with_loss : bool
        Whether swaps are made that gain nothing, or less than nothing.
    """
    count, m, _ = scores.shape
    row_kept = np.empty(m, np.int64)
    column_kept = np.empty(m, np.int64)
    free, negated = np.empty(m * m, np.int64), np.empty(m * m, scores.dtype)
    drop, keep = np.empty((m, m), np.float64), np.empty(m, np.float64)
    gain, row = np.empty(m, np.float64), np.empty(m, np.int64)
    for block in range(count):
        lacking = n * m - _count(mask[block], row_kept, column_kept)
        if lacking == 0:
            continue
        lacking -= _add(scores[block], mask[block], n, row_kept, column_kept, free, negated)
        n_swaps = min(lacking, max_swaps)
        if n_swaps == 0:
            continue
        for r in range(m):
            for c in range(m):
                drop[r, c] = scores[block, r, c] if mask[block, r, c] else np.inf
        for _ in range(n_swaps):
            if not _swap(scores[block], mask[block], n, row_kept, column_kept, with_loss, drop, keep, gain, row):
                break


@kernel
def _count(mask, row_kept, column_kept):
    """Count the kept entries of every line, and return their number."""
    m = mask.shape[0]
    column_kept[:] = 0
    total = 0
    for i in range(m):
        in_row = 0
        for j in range(m):
            in_row += mask[i, j]
            column_kept[j] += mask[i, j]
        row_kept[i] = in_row
        total += in_row
    return total


@kernel
def _add(scores, mask, n, row_kept, column_kept, free, negated):
    """Add entries from heavy to light where there is room, equal ones by flat index; return their number."""
    m = scores.shape[0]
    n_free = 0
    for i in range(m):
        if row_kept[i] < n:
            for j in range(m):
                if column_kept[j] < n and not mask[i, j]:
                    free[n_free] = i * m + j
                    negated[n_free] = -scores[i, j]
                    n_free += 1
    if n_free == 0:
        return 0
    added = 0
    for index in np.argsort(negated[:n_free], kind="mergesort"):
        i, j = free[index] // m, free[index] % m
        if row_kept[i] < n and column_kept[j] < n:
            mask[i, j] = True
            row_kept[i] += 1
            column_kept[j] += 1
            added += 1
    return added


@kernel
def _swap(scores, mask, n, row_kept, column_kept, with_loss, drop, keep, gain, row):
    """Make the swap that gains most, of equal ones the first in the order of (i, j, c, r); tell whether one was made.

    drop[r, c] is the score of a kept entry and infinite for another one; the other three are room to work in.
    """
    m = scores.shape[0]
    best = -np.inf if with_loss else 0.0
    best_i = best_j = best_r = best_c = -1
    for i in range(m):
        if row_kept[i] == n:
            continue
        for c in range(m):
            keep[c] = -np.inf if mask[i, c] else scores[i, c]
        for j in range(m):
            if column_kept[j] == n:
                continue
            gain[:] = -np.inf
            for r in range(m):
                if mask[r, j]:
                    continue
                for c in range(m):
                    candidate = keep[c] + np.float64(scores[r, j]) - drop[r, c]
                    better = candidate > gain[c]
                    gain[c] = candidate if better else gain[c]
                    row[c] = r if better else row[c]
            for c in range(m):
                if gain[c] > best:
                    best, best_i, best_j, best_r, best_c = gain[c], i, j, row[c], c
    if best_i < 0:
        return False
    mask[best_r, best_c] = False
    mask[best_i, best_c] = True
    mask[best_r, best_j] = True
    drop[best_r, best_c] = np.inf
    drop[best_i, best_c] = scores[best_i, best_c]
    drop[best_r, best_j] = scores[best_r, best_j]
    row_kept[best_i] += 1
    column_kept[best_j] += 1
    return True
