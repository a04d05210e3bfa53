"""Find the N largest keys of every group of M by ranking, many groups at once.

The rank of an entry in its group is the number of entries that come before it: larger ones, and equal ones with a
smaller index. Counting takes (M - 1) / 2 comparisons an entry, more than selection does, but no branch: LANES groups
stand side by side, one in each lane, and every comparison is one vector instruction for many of them.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import numba
import numpy as np

from ._jit import inner_kernel, kernel

__all__ = ["LANES", "keep_largest"]

# Keys of 32 bits then fill eight vectors of 256 bits. Interpreted, lanes only cost.
LANES = 1 if getattr(numba.config, "DISABLE_JIT") else 64  # noqa: B009 - set at run time, unknown to mypy
STEP = 4  # entries of a group that are moved at a time; one by one takes up to twice as long


@kernel
def keep_largest(keys, n, kept):
    """Mark the `n` largest keys of every group, the earlier one among equals.

    Parameters
    ----------
    keys : ndarray of int16, int32 or int64, shape (G, M, C), C-contiguous
        Group g, c is keys[g, :, c]. M must not exceed 32767, the largest rank that an int16 holds.
    n : int
    kept : ndarray of bool, shape (G, M, C), C-contiguous
        Written.
    """
    groups, m, columns = keys.shape
    lanes = np.zeros((m, LANES), keys.dtype)
    ranks = np.zeros((m, LANES), keys.dtype)
    if columns == 1:
        for first in range(0, groups, LANES):
            width = min(LANES, groups - first)
            _load_groups(keys, first, width, lanes)
            _rank(lanes, ranks)
            _store_groups(ranks, n, first, width, kept)
        return
    for group in range(groups):
        for first in range(0, columns, LANES):
            width = min(LANES, columns - first)
            for i in range(m):
                for lane in range(width):
                    lanes[i, lane] = keys[group, i, first + lane]
            _rank(lanes, ranks)
            for i in range(m):
                for lane in range(width):
                    kept[group, i, first + lane] = ranks[i, lane] < n


@inner_kernel
def _rank(lanes, ranks):
    """Of each pair of entries in a group, count up the one that comes later."""
    m = lanes.shape[0]
    ranks[:] = 0
    for j in range(1, m):
        for i in range(j):
            for lane in range(LANES):
                before = lanes[i, lane] >= lanes[j, lane]
                ranks[j, lane] += before
                ranks[i, lane] += not before


@inner_kernel
def _load_groups(keys, first, width, lanes):
    """Put the groups keys[first : first + width, :, 0] into lanes."""
    m = lanes.shape[0]
    whole = m - m % STEP
    for i in range(0, whole, STEP):
        for lane in range(width):
            for k in range(STEP):
                lanes[i + k, lane] = keys[first + lane, i + k, 0]
    for i in range(whole, m):
        for lane in range(width):
            lanes[i, lane] = keys[first + lane, i, 0]


@inner_kernel
def _store_groups(ranks, n, first, width, kept):
    """Do the reverse for the answers: write kept[first : first + width, :, 0]."""
    m = ranks.shape[0]
    whole = m - m % STEP
    for i in range(0, whole, STEP):
        for lane in range(width):
            for k in range(STEP):
                kept[first + lane, i + k, 0] = ranks[i + k, lane] < n
    for i in range(whole, m):
        for lane in range(width):
            kept[first + lane, i, 0] = ranks[i, lane] < n
