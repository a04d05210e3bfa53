"""Blocks of M <= 8 that the tiles leave, LANES at a time: perturb, sweep, and prove the mask on the true scores.

A block whose scores tie is never settled by the sweeps. A small perturbation, fixed for each position, makes its
optimum unique. The perturbed blocks are swept until they settle, or for long enough, and go to `phase2_proof`.
"""

# mypy: ignore-errors

from __future__ import annotations

from .._jit import bare_kernel, inner_kernel
from .grid import EXACT_SHIFT, SHIFT, WEIGHTS_AT, find_block
from .phase1_lanes import zoom_bits
from .phase2_proof import ALL_LANES, prove_lanes
from .vectors.block_rows import SCORE_BITS
from .vectors.half_sweep import LANES, LARGEST_DUAL, half_sweep
from .vectors.lane import EXACT_BITS
from .vectors.ties import load_exact_lanes, perturb_lanes, quantise_lanes

__all__ = ["settle_ties"]


@bare_kernel
def settle_ties(kernels, weights, mask, u_flat, v_flat, layout, todo, scratch, memory, lanes, noise, at_most, limit):
    """Solve the blocks `todo`.

    Parameters
    ----------
    kernels, weights, mask, u_flat, v_flat, layout, todo, scratch, lanes, noise, at_most
        As for `solve_span`.
    memory : ndarray of int64, shape (proof_entries(M),), aligned to 64 bytes
    limit : int
        Sweeps at most.
    """
    m = layout[0, 3]
    entries, lines = m * m * LANES, m * LANES
    scores, u, v = scratch[:entries], scratch[entries : entries + lines], scratch[entries + lines : entries + 2 * lines]
    middles, floors = scratch[entries + 2 * lines : entries + 3 * lines], scratch[entries + 3 * lines :]
    exact, lost, shifts = memory[:entries], lanes[SHIFT], lanes[EXACT_SHIFT]
    for first in range(0, len(todo), LANES):
        taken = min(LANES, len(todo) - first)
        for lane in range(LANES):
            find_block(layout, todo[first + min(lane, taken - 1)], lanes, lane)
        load_exact_lanes(kernels, weights, lanes[WEIGHTS_AT], layout[1, 3], exact, shifts)
        lost[:] = EXACT_BITS - SCORE_BITS
        quantise_lanes(kernels, exact, lost, scores)
        u[:] = 0
        v[:] = 0
        floors[:] = -LARGEST_DUAL
        low = half_sweep(kernels, scores, m, 1, v, u, middles, floors) >> (3 * LANES) & ALL_LANES
        if low:
            for lane in range(LANES):
                if low >> lane & 1:
                    lost[lane] = max(0, lost[lane] - zoom_bits(middles, v, lane, m))
            quantise_lanes(kernels, exact, lost, scores)
        perturb_lanes(kernels, scores, exact, noise)
        _sweep(kernels, scores, u, v, middles, floors, m, limit)
        prove_lanes(kernels, mask, u_flat, v_flat, layout, scores, u, middles, memory, lanes, taken, at_most)


@inner_kernel
def _sweep(kernels, scores, u, v, middles, floors, m, limit):
    """Sweep until all lanes settle at u and `middles`, or for long enough."""
    for _ in range(limit):
        before = half_sweep(kernels, scores, m, 1, v, u, middles, floors)
        after = half_sweep(kernels, scores, 1, m, u, v, middles, floors)
        if after & (before >> LANES) & ALL_LANES == ALL_LANES:
            break
