"""Blocks of M <= 8 that the tiles leave, LANES at a time: perturb, sweep, and prove the mask on the true scores.

A block whose scores tie is never settled by the sweeps. A small perturbation, fixed for each position, makes its
optimum unique. The perturbed blocks are swept until they settle, and Bellman-Ford on the true scores either finds duals
that prove a mask, or a cycle along which an exchange improves it. The few that do not settle start from a fixed mask.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from ._dual_sweep_kernels import LANES, LARGEST_DUAL, half_sweep
from ._jit import kernel
from ._lane_kernels import NEVER, SCORE_BITS, load_exact_lane, load_lane
from ._lane_proof_kernels import mark_lanes, perturb_lanes, relax_lanes, store_masks
from ._primal_dual_kernels import (
    ALL_LANES,
    MASK_AT,
    SHIFT,
    U_AT,
    V_AT,
    WEIGHTS_AT,
    place_block,
    powers,
    zoom_block,
)
from ._repair_kernels import REPAIR_BITS

__all__ = ["settle_ties"]

QUICK_ROUNDS = 2  # of Bellman-Ford, after which cycles are looked for


@kernel
def settle_ties(kernels, weights, mask, u_flat, v_flat, layout, todo, scratch, exact_scratch, noise, at_most, limit):
    """Solve the blocks `todo`.

    Parameters
    ----------
    kernels, weights, mask, u_flat, v_flat, layout, todo, scratch, noise, at_most
        As for `solve_span`.
    exact_scratch : ndarray of int64, shape ((3 * M + 7) * (M + 1) * LANES,), aligned to 64 bytes
    limit : int
        Sweeps at most.
    """
    n, m = layout[0, 2], layout[0, 3]
    entries, lines = m * m * LANES, m * LANES
    scores, u, v = scratch[:entries], scratch[entries : entries + lines], scratch[entries + lines : entries + 2 * lines]
    middles, floors = scratch[entries + 2 * lines : entries + 3 * lines], scratch[entries + 3 * lines :]
    proof = _proof_arrays(exact_scratch, m, m + 1 if at_most else m)
    lanes = np.zeros((7, LANES), np.int64)
    exact_shifts = np.zeros(LANES, np.int64)
    row = np.zeros(3, np.int64)
    for first in range(0, len(todo), LANES):
        taken = min(LANES, len(todo) - first)
        for lane in range(LANES):
            place_block(kernels, weights, layout, todo[first + min(lane, taken - 1)], row, lanes, lane)
            exact_shifts[lane] = lanes[SHIFT, lane] + REPAIR_BITS - SCORE_BITS
            start = lanes[WEIGHTS_AT, lane]
            load_lane(kernels, weights, start, layout[1, 3], lanes[SHIFT, lane], scores, lane)
            load_exact_lane(kernels, weights, start, layout[1, 3], exact_shifts[lane], proof[0], lane)
        u[:] = 0
        v[:] = 0
        floors[:] = -LARGEST_DUAL
        low = half_sweep(kernels, scores, m, 1, v, u, middles, floors) >> (3 * LANES) & ALL_LANES
        for lane in range(LANES):
            if low >> lane & 1 and zoom_block(middles, v, lanes, lane, m):
                load_lane(kernels, weights, lanes[WEIGHTS_AT, lane], layout[1, 3], lanes[SHIFT, lane], scores, lane)
        perturb_lanes(kernels, scores, noise)
        settled = _sweep(kernels, scores, u, v, middles, floors, m, limit)
        _prove(kernels, scores, u, middles, proof, n, m, at_most, settled)
        which = (1 << taken) - 1
        store_masks(kernels, proof[1], len(proof[3]) // LANES, mask, lanes[MASK_AT], layout[2, 3], which)
        if u_flat.size:
            for lane in range(taken):
                _store_duals(u_flat, v_flat, layout, proof[3], proof[4], exact_shifts[lane], lanes, lane, at_most)


@kernel
def _sweep(kernels, scores, u, v, middles, floors, m, limit):
    """Sweep until all lanes settle; return which are settled at u and `middles`."""
    settled = 0
    for _ in range(limit):
        before = half_sweep(kernels, scores, m, 1, v, u, middles, floors)
        settled = half_sweep(kernels, scores, 1, m, u, v, middles, floors) & (before >> LANES) & ALL_LANES
        if settled == ALL_LANES:
            break
    return settled


@kernel
def _proof_arrays(memory, m, size):
    """Divide memory into exact scores, removable, addable, u, v, row_from and column_from."""
    entries, arcs, lines = m * m * LANES, size * size * LANES, size * LANES
    arcs_end = entries + 2 * arcs
    return (
        memory[:entries],
        memory[entries : entries + arcs],
        memory[entries + arcs : arcs_end],
        memory[arcs_end : arcs_end + lines],
        memory[arcs_end + lines : arcs_end + 2 * lines],
        memory[arcs_end + 2 * lines : arcs_end + 3 * lines],
        memory[arcs_end + 3 * lines : arcs_end + 4 * lines],
    )


@kernel
def _prove(kernels, scores, u, v, proof, n, m, at_most, settled):
    """Make the masks of all lanes optimal, and find duals that prove it.

    Every exchange improves a mask, which ends the loop. A round moves no dual by more than 2**REPAIR_BITS, so that the
    few dozen rounds that occur stay far below NEVER.
    """
    exact, removable, addable, exact_u, exact_v, row_from, column_from = proof
    size = m + 1 if at_most else m
    mark_lanes(kernels, scores, u, v, exact, removable, addable, size)
    for lane in range(LANES):
        if not settled >> lane & 1:
            _mark_fixed(exact, removable, addable, n, m, size, lane)
        if at_most:
            _set_dummies(removable, addable, n, m, lane)
    exact_u[:] = 2 * NEVER
    exact_v[:] = 0
    row_from[:] = -1
    column_from[:] = -1
    unproven, rounds = ALL_LANES, 0
    while unproven:
        unproven &= relax_lanes(kernels, removable, addable, exact_u, exact_v, row_from, column_from, size)
        rounds += 1
        for lane in range(LANES if rounds > QUICK_ROUNDS else 0):
            if unproven >> lane & 1:
                _cancel_cycle(exact, removable, addable, row_from, column_from, n, m, at_most, lane)


@kernel
def _mark_fixed(exact, removable, addable, n, m, size, lane):
    """Mark a mask of a lane that keeps N in every line, whatever the scores."""
    for i in range(m):
        for j in range(m):
            place, score, kept = (i * size + j) * LANES + lane, exact[(i * m + j) * LANES + lane], (i + j) % m < n
            removable[place], addable[place] = score if kept else NEVER, -NEVER if kept else score


@kernel
def _cancel_cycle(exact, removable, addable, row_from, column_from, n, m, at_most, lane):
    """Exchange along a cycle of the predecessors, if there is one: it improves the mask."""
    size = m + 1 if at_most else m
    j = _column_on_cycle(row_from, column_from, size, lane)
    if j < 0:
        return
    start = j
    while True:
        i = column_from[j * LANES + lane]
        if i < m and j < m:
            removable[(i * size + j) * LANES + lane] = exact[(i * m + j) * LANES + lane]
            addable[(i * size + j) * LANES + lane] = -NEVER
        j = row_from[i * LANES + lane]
        if i < m and j < m:
            removable[(i * size + j) * LANES + lane] = NEVER
            addable[(i * size + j) * LANES + lane] = exact[(i * m + j) * LANES + lane]
        if j == start:
            break
    if at_most:
        _set_dummies(removable, addable, n, m, lane)
    for line in range(size):
        row_from[line * LANES + lane] = -1
        column_from[line * LANES + lane] = -1


@kernel
def _column_on_cycle(row_from, column_from, size, lane):
    """Return a column on a cycle of the predecessors of a lane, or -1."""
    seen = np.zeros(size, np.int64)
    for start in range(size):
        j = start
        while j >= 0 and seen[j] == 0:
            seen[j] = start + 1
            i = column_from[j * LANES + lane]
            j = row_from[i * LANES + lane] if i >= 0 else -1
        if j >= 0 and seen[j] == start + 1:
            return j
    return -1


@kernel
def _set_dummies(removable, addable, n, m, lane):
    """Let the dummies take up what the lines of a lane leave free; cf. `_repair_kernels`."""
    size = m + 1
    for line in range(m):
        in_row, in_column = 0, 0
        for other in range(m):
            in_row += removable[(line * size + other) * LANES + lane] < NEVER
            in_column += removable[(other * size + line) * LANES + lane] < NEVER
        row, column = (line * size + m) * LANES + lane, (m * size + line) * LANES + lane
        removable[row], addable[row] = 0 if in_row < n else NEVER, 0 if in_row > 0 else -NEVER
        removable[column], addable[column] = 0 if in_column < n else NEVER, 0 if in_column > 0 else -NEVER
    last = (size * size - 1) * LANES + lane
    removable[last], addable[last] = 0, 0


@kernel
def _store_duals(u_flat, v_flat, layout, u, v, shift, lanes, lane, at_most):
    """Write the duals of a lane, so shifted that those of the dummies are 0."""
    m = layout[0, 3]
    centre = u[m * LANES + lane] if at_most else 0
    first, second = powers(-shift)
    for j in range(m):
        u_flat[lanes[U_AT, lane] + j * layout[3, 3]] = (u[j * LANES + lane] - centre) * first * second
        v_flat[lanes[V_AT, lane] + j * layout[4, 3]] = (v[j * LANES + lane] + centre) * first * second
