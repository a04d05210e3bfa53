"""Blocks of M <= 8 that the tiles leave, LANES at a time: perturb, sweep, and prove the mask on the true scores.

A block whose scores tie is never settled by the sweeps. A small perturbation, fixed for each position, makes its
optimum unique. The perturbed blocks are swept until they settle, and Bellman-Ford on the true scores either finds duals
that prove a mask, or a cycle along which an exchange improves it. The few that do not settle start from a fixed mask.
"""

# mypy: ignore-errors

from __future__ import annotations

from ._dual_sweep_kernels import LANES, LARGEST_DUAL, half_sweep
from ._jit import bare_kernel
from ._lane_kernels import NEVER, SCORE_BITS, load_exact_lane, load_lane
from ._lane_proof_kernels import mark_lanes, perturb_lanes, relax_lanes, store_masks
from ._primal_dual_kernels import (
    ALL_LANES,
    EXACT_SHIFT,
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

QUICK_ROUNDS = 3  # of Bellman-Ford, after which cycles are looked for
ROUNDS_A_LOOK = 2  # fewer, and most looks are in vain


@bare_kernel
def settle_ties(
    kernels, weights, mask, u_flat, v_flat, layout, todo, scratch, exact_scratch, lanes, noise, at_most, limit
):
    """Solve the blocks `todo`.

    Parameters
    ----------
    kernels, weights, mask, u_flat, v_flat, layout, todo, scratch, lanes, noise, at_most
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
    for first in range(0, len(todo), LANES):
        taken = min(LANES, len(todo) - first)
        for lane in range(LANES):
            place_block(kernels, weights, layout, todo[first + min(lane, taken - 1)], lanes, lane)
            lanes[EXACT_SHIFT, lane] = lanes[SHIFT, lane] + REPAIR_BITS - SCORE_BITS
            start = lanes[WEIGHTS_AT, lane]
            load_lane(kernels, weights, start, layout[1, 3], lanes[SHIFT, lane], scores, lane)
            load_exact_lane(kernels, weights, start, layout[1, 3], lanes[EXACT_SHIFT, lane], proof[0], lane)
        u[:] = 0
        v[:] = 0
        floors[:] = -LARGEST_DUAL
        low = half_sweep(kernels, scores, m, 1, v, u, middles, floors) >> (3 * LANES) & ALL_LANES
        for lane in range(LANES):
            if low >> lane & 1 and zoom_block(middles, v, lanes, lane, m):
                load_lane(kernels, weights, lanes[WEIGHTS_AT, lane], layout[1, 3], lanes[SHIFT, lane], scores, lane)
        perturb_lanes(kernels, scores, proof[0], noise)
        settled = _sweep(kernels, scores, u, v, middles, floors, m, limit)
        _prove(kernels, scores, u, middles, proof, n, m, at_most, settled)
        which = (1 << taken) - 1
        store_masks(kernels, proof[1], len(proof[3]) // LANES, mask, lanes[MASK_AT], layout[2, 3], which)
        if u_flat.size:
            for lane in range(taken):
                _store_duals(u_flat, v_flat, layout, proof[3], proof[4], lanes, lane, at_most)


@bare_kernel
def _sweep(kernels, scores, u, v, middles, floors, m, limit):
    """Sweep until all lanes settle; return which are settled at u and `middles`."""
    settled = 0
    for _ in range(limit):
        before = half_sweep(kernels, scores, m, 1, v, u, middles, floors)
        settled = half_sweep(kernels, scores, 1, m, u, v, middles, floors) & (before >> LANES) & ALL_LANES
        if settled == ALL_LANES:
            break
    return settled


@bare_kernel
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


@bare_kernel
def _prove(kernels, scores, u, v, proof, n, m, at_most, settled):
    """Make the masks of all lanes optimal, and find duals that prove it.

    Every exchange improves a mask, which ends the loop. A round moves no dual by more than 2**REPAIR_BITS, so that the
    few dozen rounds that occur stay far below NEVER.
    """
    exact, removable, addable, exact_u, exact_v, row_from, column_from = proof
    size, all_lines = m + 1 if at_most else m, (1 << m) - 1
    mark_lanes(kernels, scores, u, v, exact, removable, addable, size)
    for lane in range(LANES):
        if not settled >> lane & 1:
            _mark_fixed(exact, removable, addable, n, m, size, lane)
        if at_most:
            _set_dummies(removable, addable, n, m, lane, all_lines, all_lines)
            removable[(size * size - 1) * LANES + lane] = 0
            addable[(size * size - 1) * LANES + lane] = 0
    exact_u[:] = 2 * NEVER
    exact_v[:] = 0
    row_from[:] = -1
    column_from[:] = -1
    unproven, rounds = ALL_LANES, 0
    while unproven:
        unproven &= relax_lanes(kernels, removable, addable, exact_u, exact_v, row_from, column_from, size)
        rounds += 1
        looks = rounds > QUICK_ROUNDS and (rounds - QUICK_ROUNDS) % ROUNDS_A_LOOK == 1
        for lane in range(LANES if looks else 0):
            if unproven >> lane & 1:
                _cancel_cycle(exact, removable, addable, row_from, column_from, n, m, at_most, lane)


@bare_kernel
def _mark_fixed(exact, removable, addable, n, m, size, lane):
    """Mark a mask of a lane that keeps N in every line, whatever the scores."""
    for i in range(m):
        for j in range(m):
            place, score, kept = (i * size + j) * LANES + lane, exact[(i * m + j) * LANES + lane], (i + j) % m < n
            removable[place], addable[place] = score if kept else NEVER, -NEVER if kept else score


@bare_kernel
def _cancel_cycle(exact, removable, addable, row_from, column_from, n, m, at_most, lane):
    """Exchange along a cycle of the predecessors, if there is one: it improves the mask."""
    size = m + 1 if at_most else m
    j = _column_on_cycle(row_from, column_from, size, lane)
    if j < 0:
        return
    start, rows, columns = j, 0, 0
    while True:
        i = column_from[j * LANES + lane]
        if i < m and j < m:
            removable[(i * size + j) * LANES + lane] = exact[(i * m + j) * LANES + lane]
            addable[(i * size + j) * LANES + lane] = -NEVER
        rows |= (j == m) << i
        columns |= (i == m) << j
        j = row_from[i * LANES + lane]
        if i < m and j < m:
            removable[(i * size + j) * LANES + lane] = NEVER
            addable[(i * size + j) * LANES + lane] = exact[(i * m + j) * LANES + lane]
        rows |= (j == m) << i
        columns |= (i == m) << j
        if j == start:
            break
    if at_most:
        _set_dummies(removable, addable, n, m, lane, rows, columns)
    for line in range(size):
        row_from[line * LANES + lane] = -1
        column_from[line * LANES + lane] = -1


@bare_kernel
def _column_on_cycle(row_from, column_from, size, lane):
    """Return a column on a cycle of the predecessors of a lane, or -1."""
    seen = 0
    for start in range(size):
        j, path = start, 0
        while j >= 0 and not (seen | path) >> j & 1:
            path |= 1 << j
            i = column_from[j * LANES + lane]
            j = row_from[i * LANES + lane] if i >= 0 else -1
        if j >= 0 and path >> j & 1:
            return j
        seen |= path
    return -1


@bare_kernel
def _set_dummies(removable, addable, n, m, lane, rows, columns):
    """Let the dummies take up what some rows and columns of a lane leave free; cf. `_repair_kernels`."""
    size = m + 1
    for line in range(m):
        if rows >> line & 1:
            _set_dummy(removable, addable, n, m, line * size * LANES + lane, LANES)
        if columns >> line & 1:
            _set_dummy(removable, addable, n, m, line * LANES + lane, size * LANES)


@bare_kernel
def _set_dummy(removable, addable, n, m, start, step):
    kept = 0
    for entry in range(m):
        kept += removable[start + entry * step] < NEVER
    place = start + m * step
    removable[place] = 0 if kept < n else NEVER
    addable[place] = 0 if kept > 0 else -NEVER


@bare_kernel
def _store_duals(u_flat, v_flat, layout, u, v, lanes, lane, at_most):
    """Write the duals of a lane, so shifted that those of the dummies are 0."""
    m = layout[0, 3]
    centre = u[m * LANES + lane] if at_most else 0
    first, second = powers(-lanes[EXACT_SHIFT, lane])
    for j in range(m):
        u_flat[lanes[U_AT, lane] + j * layout[3, 3]] = (u[j * LANES + lane] - centre) * first * second
        v_flat[lanes[V_AT, lane] + j * layout[4, 3]] = (v[j * LANES + lane] + centre) * first * second
