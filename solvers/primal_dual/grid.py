"""Where the blocks of a grid lie in the caller's memory, and the table of the lanes that hold them.

Blocks are addressed in place: a block is M rows of contiguous entries somewhere in a flat view of each array.
"""

# mypy: ignore-errors

from __future__ import annotations

import math

from .._jit import inlined_kernel, inner_kernel
from .vectors.half_sweep import LANES
from .vectors.lane import EXACT_BITS, SCORE_BITS, score_shift

__all__ = ["TABLE_ROWS", "find_block", "place_block", "write_duals"]

# Rows of the table of lanes: where a block starts in the four arrays, and its state; and, once for all lanes, where
# `find_block` stands, and how many lanes are taken
WEIGHTS_AT, MASK_AT, U_AT, V_AT, SHIFT, EXACT_SHIFT, BORN, STAGE, GRID_ROW, TAKEN = range(10)
TABLE_ROWS = 10


@inner_kernel
def place_block(kernels, weights, layout, block, lanes, lane):
    """Give a block to a lane: where it lies, and how its scores are scaled."""
    find_block(layout, block, lanes, lane)
    shift = score_shift(kernels, weights, lanes[WEIGHTS_AT, lane], layout[1, 3])
    lanes[SHIFT, lane], lanes[EXACT_SHIFT, lane] = shift, shift + EXACT_BITS - SCORE_BITS


@inlined_kernel
def find_block(layout, block, lanes, lane):
    """Write where a block starts in the four arrays into the table of lanes.

    GRID_ROW holds the number of the first block of a row, the matrix, and the row of blocks within. It is moved to the
    row of the block: two divisions take longer than loading a small block, and blocks mostly come in ascending order.
    """
    row = lanes[GRID_ROW]
    if block < row[0] or block - row[0] >= 4 * layout[0, 1]:
        number = block // layout[0, 1]
        row[0], row[1] = number * layout[0, 1], number // layout[0, 0]
        row[2] = number - row[1] * layout[0, 0]
    while block - row[0] >= layout[0, 1]:
        row[0] += layout[0, 1]
        row[2] += 1
        if row[2] == layout[0, 0]:
            row[1] += 1
            row[2] = 0
    for array in range(4):
        lanes[array, lane] = (
            row[1] * layout[array + 1, 0] + row[2] * layout[array + 1, 1] + (block - row[0]) * layout[array + 1, 2]
        )


@inner_kernel
def write_duals(u_flat, v_flat, layout, u, v, centre, shift, lanes, lane):
    """Write the duals u + centre and v - centre of a lane, divided by 2**shift, to the caller's memory."""
    m = layout[0, 3]
    half = -shift // 2  # 2**-shift may overflow
    first, second = math.ldexp(1.0, int(half)), math.ldexp(1.0, int(-shift - half))
    for j in range(m):
        u_flat[lanes[U_AT, lane] + j * layout[3, 3]] = (u[j * LANES + lane] + centre) * first * second
        v_flat[lanes[V_AT, lane] + j * layout[4, 3]] = (v[j * LANES + lane] - centre) * first * second
