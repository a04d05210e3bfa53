"""Phase 1 for M <= 8: load, solve and store LANES blocks that stand side by side as whole vectors.

Where blocks are small, loading and storing one lane at a time would cost more than solving. A tile of LANES blocks gets
a fixed number of half sweeps (`vectors.tile`); a block that is settled stays settled. The others are left to
`phase2_ties`, and so is a block of "at_most" whose duals no shift makes positive: whatever is solved here has only one
optimum. Blocks that do not stand side by side are first copied to where they do, so that the duals of a block do not
depend on where it lies.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from ..._jit import bare_kernel, inner_kernel
from .grid import find_block
from .memory import BLOCK, BORN, GRID_ROW, LINE, MASK, MASK_AT, U_AT, V_AT, WEIGHTS, WEIGHTS_AT, U, V
from .numbers import ALL_LANES, LANES
from .vectors.native import WEIGHT_BYTES, M
from .vectors.tile import solve_tile

__all__ = ["solve_tiles"]


@bare_kernel
def solve_tiles(problem, grid, first, last, table, tile, left):
    """Solve what can be solved of the blocks `first` to `last` - 1, and list the blocks that are left.

    Parameters
    ----------
    problem : Problem
    grid : Grid
        For blocks that are left, what is written is not their answer.
    first, last : int
        Numbers of blocks.
    table : ndarray of int64, shape (TABLE_ROWS, LANES)
        A table of lanes, zeros to begin with.
    tile : Tile
    left : ndarray of int64, shape (last - first,)
        Its first entries are overwritten with the blocks that are left.

    Returns
    -------
    int
        How many blocks are left.
    """
    m, strides = problem.kernels[M], grid.strides
    side_by_side = strides[WEIGHTS, BLOCK] == m and strides[MASK, BLOCK] == m
    if grid.u.size:
        side_by_side = side_by_side and strides[U, BLOCK] == 1 and strides[V, BLOCK] == m and strides[V, LINE] == 1
    row, waiting = table[GRID_ROW], table[BORN]
    block = first
    count = waits = last - last  # numba would compile what they are passed to once more for a literal 0
    while block < last:
        find_block(grid, block, table, waits)
        if not side_by_side or row[0] + grid.block_columns - block < LANES or last - block < LANES:
            waiting[waits] = block
            waits += 1
            if waits == LANES:
                solved = _solve_apart(problem, grid, table, waits, tile)
                count = _list_unsolved(waiting, waits, solved, left, count)
                waits = 0
            block += 1
            continue
        solved = solve_tile(
            problem.kernels, grid.weights, table[WEIGHTS_AT, waits], strides[WEIGHTS, LINE],
            grid.mask, table[MASK_AT, waits], strides[MASK, LINE],
            grid.u, table[U_AT, waits], strides[U, LINE], grid.v, table[V_AT, waits], grid.u.size, problem.at_most,
        )  # fmt: skip
        if solved != ALL_LANES:
            for lane in range(LANES):
                left[count] = block + lane
                count += 1 - (solved >> lane & 1)
        block += LANES
    solved = _solve_apart(problem, grid, table, waits, tile)
    return _list_unsolved(waiting, waits, solved, left, count)


@inner_kernel
def _list_unsolved(blocks, length, solved, left, count):
    """Append to `left` the blocks whose bit is not set; return how many it lists."""
    for lane in range(length):
        if not solved >> lane & 1:
            left[count] = blocks[lane]
            count += 1
    return count


@inner_kernel
def _solve_apart(problem, grid, table, length, tile):
    """Solve blocks that do not stand side by side in a tile to which they are copied."""
    kernels, strides = problem.kernels, grid.strides
    m = kernels[M]
    stride = LANES * m
    words = kernels[WEIGHT_BYTES] // 4
    if words:
        _copy_blocks(grid.weights.view(np.uint32), strides, table, length, m, words, tile.weights.view(np.uint32))
    else:
        _copy_blocks(grid.weights.view(np.uint16), strides, table, length, m, 1, tile.weights.view(np.uint16))
    solved = solve_tile(
        kernels, tile.weights, 0, stride, tile.mask, 0, stride, tile.u, 0, LANES, tile.v, 0,
        grid.u.size, problem.at_most,
    )  # fmt: skip
    for lane in range(length):
        if not solved >> lane & 1:
            continue
        for i in range(m):
            for j in range(m):
                grid.mask[table[MASK_AT, lane] + i * strides[MASK, LINE] + j] = tile.mask[i * stride + lane * m + j]
            if grid.u.size:
                grid.u[table[U_AT, lane] + i * strides[U, LINE]] = tile.u[i * LANES + lane]
                grid.v[table[V_AT, lane] + i * strides[V, LINE]] = tile.v[lane * m + i]
    return solved


@inner_kernel
def _copy_blocks(weights, strides, table, length, m, words, target):
    """Copy blocks side by side, word by word; a weight has one or two."""
    for lane in range(length):
        for i in range(m):
            source = words * (table[WEIGHTS_AT, lane] + i * strides[WEIGHTS, LINE])
            place = words * m * (i * LANES + lane)
            for word in range(words * m):
                target[place + word] = weights[source + word]
