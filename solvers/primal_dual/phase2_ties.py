"""Blocks of M <= 8 that the tiles leave, LANES at a time: perturb, sweep, and prove the mask on the true scores.

The sweeps never settle a block whose scores tie. A small perturbation, fixed for each position, makes its optimum
unique. The perturbed blocks are swept until they settle, or for long enough, and go to `phase2_proof`.
"""

# mypy: ignore-errors

from __future__ import annotations

from ..._jit import bare_kernel, inner_kernel
from .grid import find_block
from .memory import EXACT_SHIFT, LINE, SHIFT, WEIGHTS, WEIGHTS_AT, lanes_of
from .numbers import ALL_LANES, EXACT_BITS, LANES, LARGEST_DUAL, SCORE_BITS
from .phase1_lanes import zoom_bits
from .phase2_proof import prove_lanes
from .vectors.exact_lanes import load_exact_lanes, quantise_lanes
from .vectors.half_sweep import ALL_LOW, NEW_SETTLED, half_sweep
from .vectors.native import M
from .vectors.perturbation import perturb_lanes

__all__ = ["settle_ties"]


@bare_kernel
def settle_ties(problem, grid, todo, queue, limit):
    """Solve the blocks `todo`.

    Parameters
    ----------
    problem : Problem
    grid : Grid
    todo : ndarray of int64, shape (count,)
        Numbers of blocks.
    queue : Queue
    limit : int
        Sweeps at most.
    """
    kernels, m = problem.kernels, problem.kernels[M]
    table = queue.table
    lanes = lanes_of(queue.scratch, table, m)
    exact, lost, shifts = queue.proof[: m * m * LANES], table[SHIFT], table[EXACT_SHIFT]
    for first in range(0, len(todo), LANES):
        taken = min(LANES, len(todo) - first)
        for lane in range(LANES):
            find_block(grid, todo[first + min(lane, taken - 1)], table, lane)
        stride = grid.strides[WEIGHTS, LINE]
        rounded = load_exact_lanes(kernels, grid.weights, table[WEIGHTS_AT], stride, exact, shifts)
        lost[:] = EXACT_BITS - SCORE_BITS
        quantise_lanes(kernels, exact, lost, lanes.scores)
        lanes.u[:] = 0
        lanes.v[:] = 0
        lanes.floors[:] = -LARGEST_DUAL
        flags = half_sweep(kernels, lanes.scores, m, 1, lanes.v, lanes.u, lanes.middles, lanes.floors)
        low = flags >> ALL_LOW & ALL_LANES
        if low:
            for lane in range(LANES):
                if low >> lane & 1:
                    lost[lane] = max(0, lost[lane] - zoom_bits(lanes, lane, m))
            quantise_lanes(kernels, exact, lost, lanes.scores)
        perturb_lanes(kernels, lanes.scores, exact, problem.noise)
        _sweep(kernels, lanes, m, limit)
        prove_lanes(problem, grid, lanes, lanes.middles, queue.proof, taken, rounded)


@inner_kernel
def _sweep(kernels, lanes, m, limit):
    """Sweep until all lanes settle at u and `middles`, or for long enough."""
    for _ in range(limit):
        rows = half_sweep(kernels, lanes.scores, m, 1, lanes.v, lanes.u, lanes.middles, lanes.floors)
        columns = half_sweep(kernels, lanes.scores, 1, m, lanes.u, lanes.v, lanes.middles, lanes.floors)
        if columns & (rows >> NEW_SETTLED) & ALL_LANES == ALL_LANES:
            break
