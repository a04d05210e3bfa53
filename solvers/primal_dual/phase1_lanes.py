"""Phase 1 for M > 8: keep LANES blocks in flight, and refill a lane as soon as its block is done.

A block is done when its row duals and its column duals are settled at once (`half_sweep`): thresholding the integer
scores q keeps exactly N in every line, and no q equals the sum u + v of its duals. Because q - 1 < scaled score <= q,
and all are integers, the true scores lie on the same side of u + v: the mask is optimal for them, and it is the only
one.

"at_most" asks for u, v >= 0 as well. A block is first solved as "exactly"; if a shift (u + c, v - c) makes all its
duals non-negative, the same mask is optimal for "at_most". Otherwise, and where scores tie, the sweeps go on with a
floor of 0 under the duals.

A block whose thresholds are tiny beside its largest score is *zoomed*: scaled up, with the larger scores capped. It is
finished only if all capped scores are kept: their true values are larger and would be kept as well.

A block whose scores tie is never done. Once its ties show, it gets a small fixed perturbation and goes on in its lane,
which is faster here than what `phase2_ties` does for small blocks (see the package's docstring). Perturbed blocks that
are done, and the few blocks that are not done after a number of half sweeps, wait for phase 2 (`phase2_proof`), which
takes LANES of them at a time.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from ..._jit import bare_kernel, inlined_kernel, inner_kernel
from .grid import place_block, write_duals
from .memory import (
    BORN,
    EXACT_SHIFT,
    LINE,
    MASK,
    MASK_AT,
    SHIFT,
    STAGE,
    TAKEN,
    U_AT,
    V_AT,
    WEIGHTS,
    WEIGHTS_AT,
    U,
    V,
    lanes_of,
)
from .numbers import ALL_LANES, LANES, LARGEST_DUAL, ZOOMED_BITS
from .phase2_proof import prove_lanes
from .vectors.half_sweep import ALL_LOW, NEW_SETTLED, TIED, half_sweep
from .vectors.lane import load_duals, load_exact_lane, load_lane, store_mask
from .vectors.native import M
from .vectors.perturbation import load_perturbed_lane

__all__ = ["solve_span", "zoom_bits"]

# Stages of a block, and how an attempt to finish it ends
PLAIN, FLOORED, PERTURBED, GONE = range(4)
FINISHED, NEEDS_FLOOR, UNSOUND = range(3)


@bare_kernel
def solve_span(problem, grid, todo, scratch, table, queue, warm, limit):
    """Solve the blocks `todo` of a grid.

    Parameters
    ----------
    problem : Problem
    grid : Grid
    todo : ndarray of int64, shape (count,)
        Numbers of blocks.
    scratch : ndarray of int32
        See `lanes_of`.
    table : ndarray of int64, shape (TABLE_ROWS, LANES)
        The table of lanes, zeros to begin with.
    queue : Queue
        For the blocks that wait for phase 2.
    warm : bool
        Whether sweeps start from the duals of the grid, or from 0.
    limit : int
        Half sweeps after which phase 2 takes over.
    """
    kernels, m = problem.kernels, problem.kernels[M]
    lanes = lanes_of(scratch, table, m)
    scratch[:] = 0
    settled, busy, zoomed, fresh, coming, half_sweeps, expiry = 0, 0, 0, 0, 0, 0, limit
    while busy or zoomed or coming < len(todo):
        if busy != ALL_LANES and (zoomed or coming < len(todo)):
            fresh = ALL_LANES & ~busy
            for lane in range(LANES):
                bit = 1 << lane
                if not zoomed & bit:
                    if busy & bit or coming == len(todo):
                        fresh &= ~bit
                        continue
                    place_block(kernels, grid, todo[coming], table, lane)
                    coming += 1
                _load_block(kernels, grid, lanes, warm, lane)
                table[BORN, lane] = half_sweeps
            settled &= ~fresh
            busy |= fresh
            zoomed = 0
        for direction in range(2):
            half_sweeps += 1
            if direction == 0:
                flags = half_sweep(kernels, lanes.scores, m, 1, lanes.v, lanes.u, lanes.middles, lanes.floors)
                low = (flags >> ALL_LOW) & fresh
            else:
                flags = half_sweep(kernels, lanes.scores, 1, m, lanes.u, lanes.v, lanes.middles, lanes.floors)
                low, fresh = 0, 0
            done = flags & settled & busy
            settled = (flags >> NEW_SETTLED) & ALL_LANES
            tied = (flags >> TIED) & busy & ~done
            expired = 0
            if half_sweeps >= expiry:
                expired, expiry = _expired(table, busy, half_sweeps, limit)
            for lane in range(LANES):
                bit = 1 << lane
                if not (done | tied | expired | low) & bit:
                    continue
                bits = zoom_bits(lanes, lane, m) if low & bit else 0
                if bits:
                    table[SHIFT, lane] += bits
                    zoomed |= bit
                    busy &= ~bit
                    continue
                stage = _advance(
                    problem, grid, lanes, queue, direction, lane, done & bit != 0, tied & bit != 0, expired & bit != 0
                )
                if stage == GONE:
                    busy &= ~bit
                elif stage != table[STAGE, lane]:
                    table[STAGE, lane] = stage
                    table[BORN, lane] = half_sweeps if stage == FLOORED else table[BORN, lane]
                    settled &= ~bit
    if queue.table[TAKEN, 0]:
        _prove_queue(problem, grid, queue)


@inner_kernel
def _advance(problem, grid, lanes, queue, direction, lane, done, tied, expired):
    """Finish a block or let it wait for phase 2, and return GONE, or prepare it for its next stage, and return that."""
    kernels, stage = problem.kernels, lanes.table[STAGE, lane]
    m = kernels[M]
    row_duals, column_duals = (lanes.u, lanes.middles) if direction else (lanes.middles, lanes.v)
    if done and stage != PERTURBED:
        answer = _finish(problem, grid, row_duals, column_duals, lanes.table, lane)
        if answer == FINISHED:
            return GONE
        expired = expired or answer == UNSOUND
    if expired or (done and stage == PERTURBED):
        _enqueue(queue, row_duals, column_duals, lanes.table, lane, m)
        if queue.table[TAKEN, 0] == LANES:
            _prove_queue(problem, grid, queue)
        return GONE
    if stage == PLAIN and problem.at_most and (done or _rests_at_zero(lanes.middles, lane, m)):
        set_floor(lanes, lane, m)
        return FLOORED
    if tied and stage != PERTURBED:
        lanes.floors[lane] = -LARGEST_DUAL
        if _load_perturbed(problem, grid, lanes.scores, lanes.table, lane):
            for line in range(m):
                lanes.u[line * LANES + lane] = 0
                lanes.v[line * LANES + lane] = 0
        return PERTURBED
    return stage


@inner_kernel
def _expired(table, busy, half_sweeps, limit):
    """Return the lanes whose blocks are `limit` half sweeps old, and when the next one will be."""
    expired, expiry = 0, half_sweeps + limit
    for lane in range(LANES):
        if busy >> lane & 1:
            end = table[BORN, lane] + limit
            if end <= half_sweeps:
                expired |= 1 << lane
            else:
                expiry = min(expiry, end)
    return expired, expiry


@inner_kernel
def _load_block(kernels, grid, lanes, warm, lane):
    """Put the integer scores of a block into its lane, and the duals it starts from."""
    table, strides = lanes.table, grid.strides
    shift = table[SHIFT, lane]
    load_lane(kernels, grid.weights, table[WEIGHTS_AT, lane], strides[WEIGHTS, LINE], shift, lanes.scores, lane)
    table[STAGE, lane] = PLAIN
    lanes.floors[lane] = -LARGEST_DUAL
    if warm:
        load_duals(kernels, grid.u, table[U_AT, lane], strides[U, LINE], shift, lanes.u, lane)
        load_duals(kernels, grid.v, table[V_AT, lane], strides[V, LINE], shift, lanes.v, lane)
    else:
        for line in range(kernels[M]):
            lanes.u[line * LANES + lane] = 0
            lanes.v[line * LANES + lane] = 0


@inlined_kernel
def zoom_bits(lanes, lane, m):
    """Return by how many bits to scale a block up whose thresholds are tiny beside its largest score; 0 for not at all.

    The larger scores are capped then, which is sound as long as all of them are kept.
    """
    highest_u, highest_v = 0, 0
    for line in range(m):
        highest_u = max(highest_u, np.int64(lanes.middles[line * LANES + lane]))
        highest_v = max(highest_v, np.int64(lanes.v[line * LANES + lane]))
    threshold = highest_u + highest_v
    bits = 0
    while threshold >> bits:
        bits += 1
    return 0 if bits == 0 or bits >= ZOOMED_BITS - 1 else ZOOMED_BITS - bits


@inner_kernel
def _finish(problem, grid, u, v, table, lane):
    """Write the answer for a block that is done, unless "at_most" needs a floor or a capped score was lost."""
    kernels, centre = problem.kernels, 0
    if problem.at_most and table[STAGE, lane] == PLAIN:
        slack, centre = _least_sum(u, v, lane, kernels[M])
        if slack < 0:
            return NEEDS_FLOOR
    sound = store_mask(
        kernels, grid.weights, table[WEIGHTS_AT, lane], grid.strides[WEIGHTS, LINE], table[SHIFT, lane], u, v, lane,
        grid.mask, table[MASK_AT, lane], grid.strides[MASK, LINE],
    )  # fmt: skip
    if not sound:
        return UNSOUND
    if grid.u.size:
        write_duals(kernels, grid, u, v, centre, table[SHIFT, lane], table, lane, False)
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
def set_floor(lanes, lane, m):
    """Put a floor of 0 under the duals of a lane, after the shift that leaves the least below it."""
    u, v = lanes.u, lanes.v
    lanes.floors[lane] = 0
    _, shift = _least_sum(u, v, lane, m)
    for line in range(m):
        u[line * LANES + lane] = max(0, u[line * LANES + lane] + shift)
        v[line * LANES + lane] = max(0, v[line * LANES + lane] - shift)


@inner_kernel
def _load_perturbed(problem, grid, scores, table, lane):
    return load_perturbed_lane(
        problem.kernels, grid.weights, table[WEIGHTS_AT, lane], grid.strides[WEIGHTS, LINE],
        table[SHIFT, lane], table[EXACT_SHIFT, lane], problem.noise, scores, lane,
    )  # fmt: skip


@inner_kernel
def _enqueue(queue, u, v, table, lane, m):
    """Let a block wait for phase 2, with the mask at the thresholds u + v of its lane to begin with."""
    place = queue.table[TAKEN, 0]
    start = m * m * LANES + place
    for row in range(STAGE + 1):
        queue.table[row, place] = table[row, lane]
    for line in range(m):
        queue.scratch[start + line * LANES] = u[line * LANES + lane]
        queue.scratch[start + (m + line) * LANES] = v[line * LANES + lane]
    queue.table[TAKEN, 0] += 1


@inner_kernel
def _prove_queue(problem, grid, queue):
    """Solve the blocks that wait for phase 2; lanes that are not taken get the first one."""
    kernels, table, m = problem.kernels, queue.table, problem.kernels[M]
    waiting, taken, rounded = lanes_of(queue.scratch, table, m), table[TAKEN, 0], 0
    for lane in range(LANES):
        if lane >= taken:
            for row in range(STAGE + 1):
                table[row, lane] = table[row, 0]
            for line in range(m):
                waiting.u[line * LANES + lane] = waiting.u[line * LANES]
                waiting.v[line * LANES + lane] = waiting.v[line * LANES]
        start, stride = table[WEIGHTS_AT, lane], grid.strides[WEIGHTS, LINE]
        inexact = load_exact_lane(kernels, grid.weights, start, stride, table[EXACT_SHIFT, lane], queue.proof, lane)
        rounded |= inexact << lane
        if table[STAGE, lane] == PERTURBED:
            _load_perturbed(problem, grid, waiting.scores, table, lane)
        else:
            load_lane(kernels, grid.weights, start, stride, table[SHIFT, lane], waiting.scores, lane)
    prove_lanes(problem, grid, waiting, waiting.v, queue.proof, taken, rounded)
    table[TAKEN, 0] = 0
