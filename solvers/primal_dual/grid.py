"""Where the blocks of a grid lie in the caller's memory."""

# mypy: ignore-errors

from __future__ import annotations

import math

from ..._jit import inlined_kernel, inner_kernel
from .memory import BLOCK, BLOCK_ROW, EXACT_SHIFT, GRID_ROW, LINE, MATRIX, SHIFT, U_AT, V_AT, WEIGHTS, WEIGHTS_AT, U, V
from .numbers import EXACT_BITS, LANES, SCORE_BITS
from .vectors.lane import score_shift
from .vectors.native import M

__all__ = ["find_block", "place_block", "write_duals"]


@inner_kernel
def place_block(kernels, grid, block, table, lane):
    """Give a block to a lane: where it lies, and how its scores are scaled."""
    find_block(grid, block, table, lane)
    shift = score_shift(kernels, grid.weights, table[WEIGHTS_AT, lane], grid.strides[WEIGHTS, LINE])
    table[SHIFT, lane], table[EXACT_SHIFT, lane] = shift, shift + EXACT_BITS - SCORE_BITS


@inlined_kernel
def find_block(grid, block, table, lane):
    """Write where a block starts in the four arrays into a table of lanes.

    GRID_ROW holds the number of the first block of a row, the matrix, and the row of blocks within. It is moved to the
    row of the block: two divisions take longer than loading a small block, and blocks mostly come in ascending order.
    """
    row, strides = table[GRID_ROW], grid.strides
    if block < row[0] or block - row[0] >= 4 * grid.block_columns:
        number = block // grid.block_columns
        row[0], row[1] = number * grid.block_columns, number // grid.block_rows
        row[2] = number - row[1] * grid.block_rows
    while block - row[0] >= grid.block_columns:
        row[0] += grid.block_columns
        row[2] += 1
        if row[2] == grid.block_rows:
            row[1] += 1
            row[2] = 0
    for array in range(4):
        table[array, lane] = (
            row[1] * strides[array, MATRIX]
            + row[2] * strides[array, BLOCK_ROW]
            + (block - row[0]) * strides[array, BLOCK]
        )


@inner_kernel
def write_duals(kernels, grid, u, v, centre, shift, table, lane, add):
    """Write the duals u + centre and v - centre of a lane, divided by 2**shift, to the caller's memory, or add them."""
    half = -shift // 2  # 2**-shift may overflow
    first, second = math.ldexp(1.0, int(half)), math.ldexp(1.0, int(-shift - half))
    for j in range(kernels[M]):
        row, column = table[U_AT, lane] + j * grid.strides[U, LINE], table[V_AT, lane] + j * grid.strides[V, LINE]
        u_before, v_before = (grid.u[row], grid.v[column]) if add else (0.0, 0.0)
        grid.u[row] = u_before + (u[j * LANES + lane] + centre) * first * second
        grid.v[column] = v_before + (v[j * LANES + lane] - centre) * first * second
