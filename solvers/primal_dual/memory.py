"""What kernels work on: the caller's arrays, and the memory of one thread.

Kernels pass these named tuples on instead of a dozen arrays. To numba a tuple is its fields, one after the other, and
an array is seven words or nine, all pushed at every call: tuples that are passed for each block are short, and
`lanes_of` and `proof_of` cut memory into its parts where it is used, which costs nothing.
"""

# mypy: ignore-errors

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._jit import inlined_kernel
from .numbers import LANES, LARGEST_TILE_M

__all__ = ["Grid", "Lanes", "Problem", "Proof", "Queue", "ThreadMemory", "Tile", "aligned", "lanes_of", "proof_of"]

# Of `Grid.strides`: the arrays, and the steps in each of them
WEIGHTS, MASK, U, V = range(4)
MATRIX, BLOCK_ROW, BLOCK, LINE = range(4)

# Rows of a table of lanes: where a block starts in the four arrays, and its state; and, once for all lanes, where
# `find_block` stands, and how many lanes are taken
WEIGHTS_AT, MASK_AT, U_AT, V_AT, SHIFT, EXACT_SHIFT, BORN, STAGE, GRID_ROW, TAKEN = range(10)
TABLE_ROWS = 10


class Problem(NamedTuple):
    """What is asked for.

    Attributes
    ----------
    kernels : ndarray of int64
        The table of the pattern; see `vectors.native`.
    noise : ndarray of int32, shape (M * M,)
        The perturbation of tied blocks; see `vectors.perturbation`.
    at_most : bool
        Whether lines may keep less than N.
    """

    kernels: NDArray[np.int64]
    noise: NDArray[np.int32]
    at_most: bool


class Grid(NamedTuple):
    """The caller's memory: a block is M rows of contiguous entries somewhere in a flat view of each array.

    Attributes
    ----------
    weights : ndarray of uint8, one axis
        The memory of finite bfloat16, float16, float32 or float64.
    mask : ndarray of bool, one axis
        The answer.
    u, v : ndarray of float64, one axis
        Row duals and column duals: read for a warm start, and written. Empty if they are not wanted.
    strides : ndarray of int64, shape (4, 4)
        In entries, for each array (WEIGHTS, MASK, U, V) from a matrix to the next (MATRIX), from a row of blocks to the
        next (BLOCK_ROW), from a block to the next (BLOCK), and within a block from a row or a dual to the next (LINE).
    block_rows, block_columns : int
        Of each matrix, in blocks.
    """

    weights: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    u: NDArray[np.float64]
    v: NDArray[np.float64]
    strides: NDArray[np.int64]
    block_rows: int
    block_columns: int


class Lanes(NamedTuple):
    """LANES blocks on which the sweeps work, as int32: lane l of every vector belongs to one block.

    Attributes
    ----------
    scores : ndarray of int32, shape (M * M * LANES,)
        At (row * M + column) * LANES + lane. Aligned to 64 bytes, as are all.
    u, v, middles : ndarray of int32, shape (M * LANES,)
        Row duals, column duals, and the duals of the last half sweep without over-relaxation.
    floors : ndarray of int32, shape (LANES,)
        The least value of a dual.
    table : ndarray of int64, shape (TABLE_ROWS, LANES)
        Where each block lies, and its state.
    """

    scores: NDArray[np.int32]
    u: NDArray[np.int32]
    v: NDArray[np.int32]
    middles: NDArray[np.int32]
    floors: NDArray[np.int32]
    table: NDArray[np.int64]


class Proof(NamedTuple):
    """LANES blocks on which the proofs work, as int64; see `vectors.proof`.

    Attributes
    ----------
    exact : ndarray of int64, shape (M * M * LANES,)
        Aligned to 64 bytes, as are all before `seen`.
    sides : ndarray of int64, shape (4 * M * LANES,)
    u, v, row_from, column_from : ndarray of int64, shape ((M + 1) * LANES,)
    coarse : ndarray of int64, shape (LANES,)
    seen : ndarray of int64, shape (M + 1,)
    magnitudes : ndarray of int64, shape (M * M,)
    free : ndarray of int64, shape ((M + 1) * (M + 1),)
    counts : ndarray of int64, shape (4 * (M + 1),)
    """

    exact: NDArray[np.int64]
    sides: NDArray[np.int64]
    u: NDArray[np.int64]
    v: NDArray[np.int64]
    row_from: NDArray[np.int64]
    column_from: NDArray[np.int64]
    coarse: NDArray[np.int64]
    seen: NDArray[np.int64]
    magnitudes: NDArray[np.int64]
    free: NDArray[np.int64]
    counts: NDArray[np.int64]


class Queue(NamedTuple):
    """Memory for LANES blocks that phase 2 proves together.

    Attributes
    ----------
    scratch : ndarray of int32
        See `lanes_of`.
    table : ndarray of int64, shape (TABLE_ROWS, LANES)
        A table of lanes, of which TAKEN are taken.
    proof : ndarray of int64
        See `proof_of`.
    """

    scratch: NDArray[np.int32]
    table: NDArray[np.int64]
    proof: NDArray[np.int64]


class Tile(NamedTuple):
    """LANES blocks side by side, copied from where they do not stand so.

    Attributes
    ----------
    weights : ndarray of uint8, shape (8 * M * M * LANES,)
        Room for float64.
    mask : ndarray of bool, shape (M * M * LANES,)
    u, v : ndarray of float64, shape (M * LANES,)
    """

    weights: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    u: NDArray[np.float64]
    v: NDArray[np.float64]


class ThreadMemory:
    """What one thread works in.

    Attributes
    ----------
    scratch : ndarray of int32
        See `lanes_of`.
    table : ndarray of int64, shape (TABLE_ROWS, LANES)
    queue : Queue
        Up to M = 8 it shares scratch and table with the sweeps, which are over when proofs begin.
    tile : Tile, or None for larger M
    """

    def __init__(self, m: int) -> None:
        small = m <= LARGEST_TILE_M
        self.scratch, self.table = _scratch(m), _table()
        queued = (self.scratch, self.table) if small else (_scratch(m), _table())
        self.queue = Queue(*queued, aligned(proof_size(m), np.int64))
        self.tile = _tile(m) if small else None


@inlined_kernel
def lanes_of(scratch, table, m):
    """Cut (M * M + 3 * M + 1) * LANES entries into the arrays of `Lanes`."""
    entries, lines = m * m * LANES, m * LANES
    return Lanes(
        scratch[:entries],
        scratch[entries : entries + lines],
        scratch[entries + lines : entries + 2 * lines],
        scratch[entries + 2 * lines : entries + 3 * lines],
        scratch[entries + 3 * lines :],
        table,
    )


@inlined_kernel
def proof_of(memory, m):
    """Cut `proof_size` entries into the arrays of `Proof`."""
    entries, lines, more = m * m * LANES, m * LANES, (m + 1) * LANES
    exact, sides, memory = memory[:entries], memory[entries : entries + 4 * lines], memory[entries + 4 * lines :]
    u, v, memory = memory[:more], memory[more : 2 * more], memory[2 * more :]
    row_from, column_from, memory = memory[:more], memory[more : 2 * more], memory[2 * more :]
    coarse, seen, memory = memory[:LANES], memory[LANES : LANES + m + 1], memory[LANES + m + 1 :]
    magnitudes, memory = memory[: m * m], memory[m * m :]
    free, counts = memory[: (m + 1) * (m + 1)], memory[(m + 1) * (m + 1) :]
    return Proof(exact, sides, u, v, row_from, column_from, coarse, seen, magnitudes, free, counts)


def proof_size(m: int) -> int:
    """Return how many int64 the arrays of `Proof` hold."""
    return (m * m + 8 * m + 5) * LANES + m * m + (m + 1) * (m + 6)


def aligned(entries: int, dtype: type[np.generic]) -> NDArray:
    """Allocate memory that starts at a whole vector."""
    size = entries * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64
    return memory[start : start + size].view(dtype)


def _scratch(m: int) -> NDArray[np.int32]:
    return aligned((m * m + 3 * m + 1) * LANES, np.int32)


def _table() -> NDArray[np.int64]:
    table = aligned(TABLE_ROWS * LANES, np.int64).reshape(TABLE_ROWS, LANES)
    table[:] = 0
    return table


def _tile(m: int) -> Tile:
    entries, lines = m * m * LANES, m * LANES
    return Tile(np.zeros(8 * entries, np.uint8), np.zeros(entries, np.bool_), np.zeros(lines), np.zeros(lines))
