"""Rank the entries of every row and every column of many blocks at once.

The rank of an entry in a line is the number of entries of that line that come before it: heavier ones, and equal ones
with a smaller index. Counting takes M comparisons an entry, more than sorting does, but no branch: RANKED_LANES blocks
stand side by side, one in each lane, and every comparison is one vector instruction for many of them.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import numba
import numpy as np

from .._jit import kernel

__all__ = ["MAX_RANKED_M", "RANKED_LANES", "from_lanes", "rank_lines"]

# Bytes in the widest vector: ranks take one each. Interpreted, lanes only cost.
RANKED_LANES = 1 if getattr(numba.config, "DISABLE_JIT") else 64  # noqa: B009 - set at run time, unknown to mypy
MAX_RANKED_M = 64  # 64 blocks of float32 are then 1 MB, and sorting them would soon be faster


@kernel
def rank_lines(scores):
    """Rank every entry in its row and in its column.

    Parameters
    ----------
    scores : ndarray of float32 or float64, shape (B, M, M)
        Without NaN; M at most MAX_RANKED_M.

    Returns
    -------
    row_ranks, column_ranks : ndarray of uint8, shape (ceil(B / RANKED_LANES), M, M, RANKED_LANES)
        Block b is lane b % RANKED_LANES of group b // RANKED_LANES. Lanes left over rank other blocks again, or zeros.
    """
    count, m, _ = scores.shape
    groups = (count + RANKED_LANES - 1) // RANKED_LANES
    row_ranks = np.zeros((groups, m, m, RANKED_LANES), np.uint8)
    column_ranks = np.zeros((groups, m, m, RANKED_LANES), np.uint8)
    lanes = np.zeros((m, m, RANKED_LANES), scores.dtype)
    for group in range(groups):
        first = group * RANKED_LANES
        for lane in range(min(RANKED_LANES, count - first)):
            for i in range(m):
                for j in range(m):
                    lanes[i, j, lane] = scores[first + lane, i, j]
        _rank_group(lanes, row_ranks[group], column_ranks[group])
    return row_ranks, column_ranks


@kernel
def _rank_group(lanes, row_ranks, column_ranks):
    """Of each pair of entries in a line, count up the one that comes later."""
    m = lanes.shape[0]
    for i in range(m):
        for j in range(m):
            for k in range(j):
                for lane in range(RANKED_LANES):
                    before = lanes[i, k, lane] >= lanes[i, j, lane]
                    row_ranks[i, j, lane] += before
                    row_ranks[i, k, lane] += not before
            for k in range(i):
                for lane in range(RANKED_LANES):
                    before = lanes[k, j, lane] >= lanes[i, j, lane]
                    column_ranks[i, j, lane] += before
                    column_ranks[k, j, lane] += not before


@kernel
def from_lanes(kept, count):
    """Put the masks of blocks in lanes one after the other.

    Parameters
    ----------
    kept : ndarray of bool, shape (G, M, M, RANKED_LANES)
    count : int
        Number of blocks, at most G * RANKED_LANES.

    Returns
    -------
    ndarray of bool, shape (count, M, M)
    """
    m = kept.shape[1]
    mask = np.empty((count, m, m), np.bool_)
    for block in range(count):
        for i in range(m):
            for j in range(m):
                mask[block, i, j] = kept[block // RANKED_LANES, i, j, block % RANKED_LANES]
    return mask
