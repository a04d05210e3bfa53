"""A warm start: blocks that half a sweep settles are finished where they stand, before any is loaded into a lane.

After a small change of the weights most blocks keep their mask. The best column duals for the row duals of the last
solve take one pass over the block (`vectors.confirm`); where every row then keeps N, the mask is optimal.
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from ..._jit import bare_kernel
from .grid import place_block
from .memory import LINE, MASK, MASK_AT, SHIFT, U_AT, V_AT, WEIGHTS, WEIGHTS_AT, U, V
from .vectors.confirm import confirm_block

__all__ = ["confirm_start"]


@bare_kernel
def confirm_start(problem, grid, todo, table):
    """Finish the blocks `todo` that half a sweep from their row duals settles, and move the others to its front.

    Parameters
    ----------
    problem : Problem
    grid : Grid
    todo : ndarray of int64, shape (count,)
        Numbers of blocks. Its front is overwritten.
    table : ndarray of int64, shape (TABLE_ROWS, LANES)
        A table of lanes.

    Returns
    -------
    int
        How many blocks are left.
    """
    kernels, strides = problem.kernels, grid.strides
    left, lane = 0, np.int64(0)  # for a literal 0 numba would compile `place_block` once more
    for place in range(len(todo)):
        place_block(kernels, grid, todo[place], table, lane)
        confirmed = confirm_block(
            kernels, grid.weights, table[WEIGHTS_AT, lane], strides[WEIGHTS, LINE], table[SHIFT, lane],
            grid.u, table[U_AT, lane], strides[U, LINE], grid.v, table[V_AT, lane], strides[V, LINE],
            grid.mask, table[MASK_AT, lane], strides[MASK, LINE], problem.at_most,
        )  # fmt: skip
        todo[left] = todo[place]
        left += 1 - confirmed
    return left
