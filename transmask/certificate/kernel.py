"""Prove masks in one pass: is each feasible, what does it keep, and how far is it from the bound of its duals.

For reduced scores r = S - u - v, row and column sums of the mask X, and any u, v (at least 0 where a line may keep less
than N), the distance from the mask to the bound is a sum of non-negative terms, without cancellation:

    bound - kept = sum_{X=1} max(0, -r) + sum_{X=0} max(0, r) + sum_i u_i (N - X_i.) + sum_j v_j (N - X_.j)

each of them rounded once. Blocks cut by an edge need no padding: lines that do not exist have duals of 0 and no scores.

Every loop over entries runs along a row, on arrays of one axis, so that it becomes vector instructions; that halves the
time of the proof. Sums over the columns of one block, whose additions wait for each other, are taken only where a block
row has a distance.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from .._jit import inlined_kernel, inner_kernel, kernel
from .proof import LARGEST_DUAL, NEAR_GAP, PROVEN_GAP

__all__ = ["BROKEN", "DISTANCE", "KEPT", "NEAR", "SUMS", "TOTAL", "UNPROVEN", "WORST_GAP", "prove_matrices"]

KEPT, DISTANCE, TOTAL, WORST_GAP, BROKEN, UNPROVEN, NEAR = range(7)
"""Where the sums of `prove_matrices` stand."""
SUMS = 7

LARGEST_BYTE_SUM = 8 * 255
BYTES, PAIRS, HALF = np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0xFFFFFFFF)
"""Every other byte, pair of bytes and half of a word."""


@kernel
def prove_matrices(weights, mask, u, v, n, m, at_most, sums):
    """Check and sum up the masks of matrices, block by block.

    Parameters
    ----------
    weights : ndarray of float32 or float64, shape (K, R, C)
        Finite; their magnitudes are the scores.
    mask : ndarray of uint8, shape (K, R, C)
        0 or 1; C-contiguous.
    u : ndarray of float64, shape (K, R, ceil(C / M))
        Row duals. One beyond LARGEST_DUAL or NaN, or negative where its block is "at_most", is overwritten with 0.
    v : ndarray of float64, shape (K, ceil(R / M), C)
        Column duals, likewise.
    n, m : int
    at_most : bool
        For whole blocks; blocks cut by an edge are "at_most" in any case.
    sums : ndarray of float64, shape (K, SUMS)
        Written, a row for each matrix: KEPT, the sum of the kept scores; DISTANCE, from there to the bound; TOTAL, the
        sum of all scores; WORST_GAP, the largest relative gap of a block; BROKEN, the number of lines of blocks that
        break the constraint; UNPROVEN, the number of blocks whose optimality is not proven; NEAR, how many of those
        have a relative gap of at most NEAR_GAP.
    """
    matrices, rows, columns = weights.shape
    across = (columns + m - 1) // m
    floors, block_floors = np.empty(columns), np.empty(across)
    row_duals, row_counts = np.empty(columns), np.empty(across, np.int32)
    kept, distance, counts = np.empty(columns), np.empty(columns), np.empty(columns, np.int32)
    all_kept, total = np.empty(columns), np.empty(columns)
    sums[:] = 0.0
    for k in range(matrices):
        all_kept[:] = 0.0
        total[:] = 0.0
        for top in range(0, rows, m):
            bottom, column_duals = min(rows, top + m), v[k, top // m]
            if top == 0 or bottom - top < m:
                _set_floors(floors, block_floors, m, at_most or bottom - top < m)
            _make_valid(column_duals, floors)
            block_row = weights[k, top:bottom], mask[k, top:bottom], u[k, top:bottom]
            columns_of = total, kept, distance, counts
            _judge_rows(*block_row, column_duals, n, m, block_floors, row_duals, row_counts, *columns_of, sums[k])
            unlike, apart = _sum_up(kept, all_kept, counts, n, distance)
            for j in range(columns if unlike else 0):
                sums[k, BROKEN] += counts[j] > n or (counts[j] < n and floors[j] < 0.0)
                distance[j] += column_duals[j] * max(0, n - counts[j])
            for b in range(across if unlike or apart else 0):
                end = min(columns, b * m + m)
                block_kept, block_distance = 0.0, 0.0
                for j in range(b * m, end):
                    block_kept += kept[j]
                    block_distance += distance[j]
                if block_distance > 0.0:
                    sums[k, DISTANCE] += block_distance
                    gap = min(1.0, block_distance / (block_kept + block_distance))
                    sums[k, WORST_GAP] = max(sums[k, WORST_GAP], gap)
                    block = weights[k, top:bottom, b * m : end], mask[k, top:bottom, b * m : end]
                    if not _is_proven(*block, block_kept, block_distance):
                        sums[k, UNPROVEN] += 1.0
                        sums[k, NEAR] += gap <= NEAR_GAP
        for j in range(columns):
            sums[k, KEPT] += all_kept[j]
            sums[k, TOTAL] += total[j]


@inner_kernel
def _judge_rows(
    weights, mask, u, column_duals, n, m, floors, row_duals, row_counts, total, kept, distance, counts, sums
):
    """Sum up the entries of a block row by column, and what its rows lack; here no reference to an array is counted."""
    kept[:] = 0.0
    distance[:] = 0.0
    counts[:] = 0
    for i in range(len(weights)):
        _make_valid(u[i], floors)
        _spread(u[i], m, row_duals)
        _count(mask[i], m, row_counts)
        _judge(weights[i], mask[i], row_duals, column_duals, total, kept, distance, counts)
        for b in range(len(row_counts)):
            if row_counts[b] != n:
                sums[BROKEN] += row_counts[b] > n or floors[b] < 0.0
                distance[b * m] += u[i, b] * max(0, n - row_counts[b])


@inner_kernel
def _set_floors(floors, block_floors, m, at_most):
    """Set the least value of a valid dual, by column and by block: 0 where a block is "at_most", else any."""
    columns = len(floors)
    for b in range(len(block_floors)):
        block_floors[b] = 0.0 if at_most or b * m + m > columns else -LARGEST_DUAL
        for j in range(b * m, min(columns, b * m + m)):
            floors[j] = block_floors[b]


@inner_kernel
def _make_valid(duals, floors):
    """Overwrite the duals that are below their floor, infinite or NaN with 0."""
    valid = True
    for line in range(len(duals)):
        valid &= (duals[line] >= floors[line]) & (duals[line] <= LARGEST_DUAL)
    for line in range(0 if valid else len(duals)):
        if not floors[line] <= duals[line] <= LARGEST_DUAL:
            duals[line] = 0.0


@inner_kernel
def _spread(u, m, row_duals):
    """Repeat the duals of a row for the columns of their blocks."""
    whole = len(row_duals) // m
    if m == 4:  # loops of a constant length become vector instructions
        _spread_whole(u, whole, 4, 4, row_duals)
    elif m == 8:
        _spread_whole(u, whole, 8, 8, row_duals)
    elif m % 16 == 0:
        _spread_whole(u, whole, m, 16, row_duals)
    else:
        _spread_whole(u, whole, m, 1, row_duals)
    for j in range(whole * m, len(row_duals)):
        row_duals[j] = u[whole]


@inlined_kernel
def _spread_whole(u, whole, m, width, row_duals):
    for b in range(whole):
        dual = u[b]
        for first in range(b * m, b * m + m, width):
            for j in range(first, first + width):
                row_duals[j] = dual


@inlined_kernel
def _count(mask, m, counts):
    """Count what a row keeps in each block: where M allows, four or eight entries at a time, as bytes of a word."""
    whole = len(mask) // m
    if m == 4:
        _count_words(mask[: whole * m].view(np.uint32), 1, counts)
    elif m % 8 == 0 and m <= LARGEST_BYTE_SUM:
        _count_words(mask[: whole * m].view(np.uint64), m // 8, counts)
    else:
        for b in range(whole):
            counts[b] = 0
            for j in range(b * m, b * m + m):
                counts[b] += mask[j]
    if whole < len(counts):
        counts[whole] = 0
        for j in range(whole * m, len(mask)):
            counts[whole] += mask[j]


@inner_kernel
def _count_words(words, per_block, counts):
    """Add up the bytes of the words of each block, and then the halves of their sum three times."""
    for b in range(len(words) // per_block):
        total = np.uint64(words[b * per_block])
        for k in range(1, per_block):
            total += np.uint64(words[b * per_block + k])
        total = (total & BYTES) + ((total >> np.uint64(8)) & BYTES)
        total = (total & PAIRS) + ((total >> np.uint64(16)) & PAIRS)
        counts[b] = (total & HALF) + (total >> np.uint64(32))


@inner_kernel
def _judge(weights, mask, row_duals, column_duals, total, kept, distance, counts):
    """Add the entries of a row to the sums of their columns.

    S - u - v is exact but for its last rounding: what the two subtractions lose is found by Knuth's TwoSum and added.
    Else duals of 1e16 and -1e16, which are valid, would hide scores around 1 and prove what is not true.
    """
    for j in range(len(weights)):
        score, keep = np.float64(abs(weights[j])), mask[j]
        part = score - row_duals[j]
        taken = part - score
        lost = (score - (part - taken)) - (row_duals[j] + taken)
        reduced = part - column_duals[j]
        taken = reduced - part
        lost += (part - (reduced - taken)) - (column_duals[j] + taken)
        reduced += lost
        total[j] += score
        kept[j] += score if keep else 0.0
        distance[j] += max(0.0, -reduced if keep else reduced)
        counts[j] += keep


@inner_kernel
def _sum_up(kept, all_kept, counts, n, distance):
    """Add what a block row keeps, and tell whether a column does not keep `n`, and whether there is a distance."""
    unlike, apart = False, False
    for j in range(len(kept)):
        all_kept[j] += kept[j]
        unlike |= counts[j] != n
        apart |= distance[j] != 0.0
    return unlike, apart


@inner_kernel
def _is_proven(weights, mask, kept, distance):
    """Tell whether the distance of a block is rounding: at most PROVEN_GAP times count times median of what it keeps.

    Zeros do not count. The median instead of the mean, so that an outlier does not hide what its neighbours lose.
    """
    if distance > 2.0 * PROVEN_GAP * kept:  # count times median is at most twice the sum
        return False
    count = 0
    for i in range(weights.shape[0]):
        for j in range(weights.shape[1]):
            count += mask[i, j] and weights[i, j] != 0
    least, larger = distance / PROVEN_GAP / max(1, count), 0
    for i in range(weights.shape[0]):
        for j in range(weights.shape[1]):
            larger += mask[i, j] and weights[i, j] != 0 and abs(weights[i, j]) >= least
    return 2 * larger > count
