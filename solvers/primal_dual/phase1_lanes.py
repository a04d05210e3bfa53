"""Phase 1 of `primal_dual`: keep LANES blocks in flight, and refill a lane as soon as its block is done.

A block is done when its row duals and its column duals are settled at once (`half_sweep`): thresholding the integer
scores q keeps exactly N in every line, and no q equals the sum u + v of its duals. Because q - 1 < scaled score <= q,
and all are integers, the true scores lie on the same side of u + v: the mask is optimal for them, and it is the only
one.

"at_most" asks for u, v >= 0 as well. A block is first solved as "exactly"; if a shift (u + c, v - c) makes all its
duals non-negative, the same mask is optimal for "at_most". Otherwise, and where scores tie, the sweeps go on with a
floor of 0 under the duals.

A block whose thresholds are tiny beside its largest score is *zoomed*: scaled up, with the larger scores capped. It is
finished only if all capped scores are kept, so that their true values, which are larger, would be kept as well.

A block whose scores tie is never done. It is found by its ties, gets a small fixed perturbation, and goes on. Perturbed
blocks that are done, and the few blocks that are not done after a number of half sweeps, wait for phase 2
(`phase2_proof`), which takes LANES of them at a time.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from .._jit import bare_kernel, inlined_kernel, inner_kernel
from .grid import (
    BORN,
    EXACT_SHIFT,
    MASK_AT,
    SHIFT,
    STAGE,
    TAKEN,
    U_AT,
    V_AT,
    WEIGHTS_AT,
    place_block,
    write_duals,
)
from .phase2_proof import ALL_LANES, prove_lanes
from .vectors.half_sweep import LANES, LARGEST_DUAL, half_sweep
from .vectors.lane import load_duals, load_exact_lane, load_lane, load_perturbed_lane, store_mask

__all__ = ["solve_span"]

# Stages of a block, and how an attempt to finish it ends
PLAIN, FLOORED, PERTURBED, GONE = range(4)
FINISHED, NEEDS_FLOOR, UNSOUND = range(3)

ZOOMED_BITS = 26  # thresholds of zoomed blocks; leaves two bits before scores are capped


@bare_kernel
def solve_span(
    kernels, weights, mask, u_flat, v_flat, layout, todo, scratch, lanes, queue, noise, at_most, warm, limit
):
    """Solve the blocks `todo` of a grid.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    weights : ndarray of uint8, one axis
        The caller's memory of finite float32 or float64.
    mask : ndarray of bool, one axis
        Flat view of the memory of the answer. Written.
    u_flat, v_flat : ndarray of float64, one axis
        Flat views of the memory of the duals: read for a warm start, and written. Empty if they are not wanted.
    layout : ndarray of int64, shape (5, 4)
        Row 0: Br, Bc, N, M. Rows 1 to 4, for weights, mask, u and v, in entries: the strides of the matrices, of the
        block rows, of the block columns, and of the rows of a block (weights, mask) or of its duals.
    todo : ndarray of int64, shape (count,)
        Numbers of blocks.
    scratch : ndarray of int32, shape ((M * M + 3 * M + 1) * LANES,), aligned to 64 bytes
    lanes : ndarray of int64, shape (TABLE_ROWS, LANES)
        The table of lanes, zeros to begin with.
    queue : tuple of (ndarray of int32, ndarray of int64, ndarray of int64)
        For the blocks that wait for phase 2: like `scratch` and `lanes`, and memory for `prove_lanes`.
    noise : ndarray of int32, shape (M * M,)
        The perturbation of tied blocks.
    at_most, warm : bool
    limit : int
        Half sweeps after which phase 2 takes over.
    """
    m = layout[0, 3]
    entries, lines = m * m * LANES, m * LANES
    scores, u, v = scratch[:entries], scratch[entries : entries + lines], scratch[entries + lines : entries + 2 * lines]
    middles, floors = scratch[entries + 2 * lines : entries + 3 * lines], scratch[entries + 3 * lines :]
    scratch[:] = 0
    settled, busy, zoomed, fresh, coming, half_sweeps, expiry = 0, 0, 0, 0, 0, 0, limit
    while busy or zoomed or coming < len(todo):
        if busy != ALL_LANES and (zoomed or coming < len(todo)):
            fresh = ALL_LANES & ~busy
            for lane in range(LANES):
                bit = 1 << lane
                if zoomed & bit:
                    load_block(kernels, weights, layout, scores, u, v, u_flat, v_flat, warm, floors, lanes, lane)
                elif not busy & bit and coming < len(todo):
                    place_block(kernels, weights, layout, todo[coming], lanes, lane)
                    load_block(kernels, weights, layout, scores, u, v, u_flat, v_flat, warm, floors, lanes, lane)
                    coming += 1
                else:
                    fresh &= ~bit
                    continue
                lanes[BORN, lane] = half_sweeps
            settled &= ~fresh
            busy |= fresh
            zoomed = 0
        for direction in range(2):
            half_sweeps += 1
            if direction == 0:
                flags = half_sweep(kernels, scores, m, 1, v, u, middles, floors)
                low = (flags >> (3 * LANES)) & fresh
            else:
                flags = half_sweep(kernels, scores, 1, m, u, v, middles, floors)
                low, fresh = 0, 0
            done = flags & settled & busy
            settled = (flags >> LANES) & ALL_LANES
            tied = (flags >> (2 * LANES)) & busy & ~done
            expired = 0
            if half_sweeps >= expiry:
                expired, expiry = _expired(lanes, busy, half_sweeps, limit)
            for lane in range(LANES):
                bit = 1 << lane
                if not (done | tied | expired | low) & bit:
                    continue
                bits = zoom_bits(middles, v, lane, m) if low & bit else 0
                if bits:
                    lanes[SHIFT, lane] += bits
                    zoomed |= bit
                    busy &= ~bit
                    continue
                stage = _advance(
                    kernels, weights, mask, u_flat, v_flat, layout, scores, u, v, middles, floors, direction,
                    lanes, lane, queue, noise, at_most, done & bit != 0, tied & bit != 0, expired & bit != 0,
                )  # fmt: skip
                if stage == GONE:
                    busy &= ~bit
                elif stage != lanes[STAGE, lane]:
                    lanes[STAGE, lane] = stage
                    lanes[BORN, lane] = half_sweeps if stage == FLOORED else lanes[BORN, lane]
                    settled &= ~bit
    if queue[1][TAKEN, 0]:
        _prove_queue(kernels, weights, mask, u_flat, v_flat, layout, queue, noise, at_most)


@inner_kernel
def _advance(
    kernels, weights, mask, u_flat, v_flat, layout, scores, u, v, middles, floors, direction, lanes, lane,
    queue, noise, at_most, done, tied, expired,
):  # fmt: skip
    """Finish a block or let it wait for phase 2, and return GONE, or prepare it for its next stage, and return that."""
    m, stage = layout[0, 3], lanes[STAGE, lane]
    row_duals, column_duals = (u, middles) if direction else (middles, v)
    if done and stage != PERTURBED:
        answer = _finish(kernels, weights, mask, u_flat, v_flat, layout, row_duals, column_duals, lanes, lane, at_most)
        if answer == FINISHED:
            return GONE
        expired = expired or answer == UNSOUND
    if expired or (done and stage == PERTURBED):
        _enqueue(queue, row_duals, column_duals, lanes, lane, m)
        if queue[1][TAKEN, 0] == LANES:
            _prove_queue(kernels, weights, mask, u_flat, v_flat, layout, queue, noise, at_most)
        return GONE
    if stage == PLAIN and at_most and (done or _rests_at_zero(middles, lane, m)):
        set_floor(u, v, floors, lane, m)
        return FLOORED
    if tied and stage != PERTURBED:
        floors[lane] = -LARGEST_DUAL
        if _load_perturbed(kernels, weights, layout, noise, scores, lanes, lane):
            for line in range(m):
                u[line * LANES + lane] = 0
                v[line * LANES + lane] = 0
        return PERTURBED
    return stage


@inner_kernel
def _expired(lanes, busy, half_sweeps, limit):
    """Return the lanes whose blocks are `limit` half sweeps old, and when the next one will be."""
    expired, expiry = 0, half_sweeps + limit
    for lane in range(LANES):
        if busy >> lane & 1:
            end = lanes[BORN, lane] + limit
            if end <= half_sweeps:
                expired |= 1 << lane
            else:
                expiry = min(expiry, end)
    return expired, expiry


@inner_kernel
def load_block(kernels, weights, layout, scores, u, v, u_flat, v_flat, warm, floors, lanes, lane):
    """Put the integer scores of a block into its lane, and the duals it starts from."""
    load_lane(kernels, weights, lanes[WEIGHTS_AT, lane], layout[1, 3], lanes[SHIFT, lane], scores, lane)
    lanes[STAGE, lane] = PLAIN
    floors[lane] = -LARGEST_DUAL
    if warm:
        load_duals(kernels, u_flat, lanes[U_AT, lane], layout[3, 3], lanes[SHIFT, lane], u, lane)
        load_duals(kernels, v_flat, lanes[V_AT, lane], layout[4, 3], lanes[SHIFT, lane], v, lane)
    else:
        for j in range(layout[0, 3]):
            u[j * LANES + lane] = 0
            v[j * LANES + lane] = 0


@inlined_kernel
def zoom_bits(middles, v, lane, m):
    """Return by how many bits to scale a block up whose thresholds are tiny beside its largest score; 0 for not at all.

    The larger scores are capped then, which is sound as long as all of them are kept.
    """
    highest_u, highest_v = 0, 0
    for line in range(m):
        highest_u = max(highest_u, np.int64(middles[line * LANES + lane]))
        highest_v = max(highest_v, np.int64(v[line * LANES + lane]))
    threshold = highest_u + highest_v
    bits = 0
    while threshold >> bits:
        bits += 1
    return 0 if bits == 0 or bits >= ZOOMED_BITS - 1 else ZOOMED_BITS - bits


@inner_kernel
def _finish(kernels, weights, mask, u_flat, v_flat, layout, u, v, lanes, lane, at_most):
    """Write the answer for a block that is done, unless "at_most" needs a floor or a capped score was lost."""
    shift = 0
    if at_most and lanes[STAGE, lane] == PLAIN:
        slack, shift = _least_sum(u, v, lane, layout[0, 3])
        if slack < 0:
            return NEEDS_FLOOR
    sound = store_mask(
        kernels, weights, lanes[WEIGHTS_AT, lane], layout[1, 3], lanes[SHIFT, lane], u, v, lane,
        mask, lanes[MASK_AT, lane], layout[2, 3],
    )  # fmt: skip
    if not sound:
        return UNSOUND
    if u_flat.size:
        write_duals(u_flat, v_flat, layout, u, v, shift, lanes[SHIFT, lane], lanes, lane)
    return FINISHED


@inner_kernel
def _least_sum(u, v, lane, m):
    """Return the least sum of a row dual and a column dual, and the shift that makes both minima equal."""
    least_u, least_v = u[lane], v[lane]
    for line in range(1, m):
        least_u = min(least_u, u[line * LANES + lane])
        least_v = min(least_v, v[line * LANES + lane])
    return np.int64(least_u) + least_v, (np.int64(least_v) - least_u) >> 1


@inner_kernel
def _rests_at_zero(middles, lane, m):
    """Tell whether the middle of a line is 0, as it is where zeros tie."""
    zeros = 0
    for line in range(m):
        zeros += middles[line * LANES + lane] == 0
    return zeros > 0


@inner_kernel
def set_floor(u, v, floors, lane, m):
    """Put a floor of 0 under the duals of a lane, after the shift that leaves the least below it."""
    floors[lane] = 0
    _, shift = _least_sum(u, v, lane, m)
    for line in range(m):
        u[line * LANES + lane] = max(0, u[line * LANES + lane] + shift)
        v[line * LANES + lane] = max(0, v[line * LANES + lane] - shift)


@inner_kernel
def _load_perturbed(kernels, weights, layout, noise, scores, lanes, lane):
    return load_perturbed_lane(
        kernels, weights, lanes[WEIGHTS_AT, lane], layout[1, 3], lanes[SHIFT, lane], lanes[EXACT_SHIFT, lane],
        noise, scores, lane,
    )  # fmt: skip


@inner_kernel
def _enqueue(queue, u, v, lanes, lane, m):
    """Let a block wait for phase 2, with the mask at the thresholds u + v of its lane to begin with."""
    scratch, table, _ = queue
    place = table[TAKEN, 0]
    start = m * m * LANES + place
    for row in range(STAGE + 1):
        table[row, place] = lanes[row, lane]
    for line in range(m):
        scratch[start + line * LANES] = u[line * LANES + lane]
        scratch[start + (m + line) * LANES] = v[line * LANES + lane]
    table[TAKEN, 0] += 1


@inner_kernel
def _prove_queue(kernels, weights, mask, u_flat, v_flat, layout, queue, noise, at_most):
    """Solve the blocks that wait for phase 2; lanes that are not taken get the first one."""
    scratch, table, memory = queue
    m, taken = layout[0, 3], table[TAKEN, 0]
    entries, lines = m * m * LANES, m * LANES
    scores, u, v = scratch[:entries], scratch[entries : entries + lines], scratch[entries + lines : entries + 2 * lines]
    for lane in range(LANES):
        if lane >= taken:
            for row in range(STAGE + 1):
                table[row, lane] = table[row, 0]
            for line in range(m):
                u[line * LANES + lane] = u[line * LANES]
                v[line * LANES + lane] = v[line * LANES]
        start, shift = table[WEIGHTS_AT, lane], table[EXACT_SHIFT, lane]
        load_exact_lane(kernels, weights, start, layout[1, 3], shift, memory, lane)
        if table[STAGE, lane] == PERTURBED:
            _load_perturbed(kernels, weights, layout, noise, scores, table, lane)
        else:
            load_lane(kernels, weights, start, layout[1, 3], table[SHIFT, lane], scores, lane)
    prove_lanes(kernels, mask, u_flat, v_flat, layout, scores, u, v, memory, table, taken, at_most)
    table[TAKEN, 0] = 0
