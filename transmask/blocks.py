"""Cut stacks of matrices into M x M blocks and put the answers back: the only file that knows about edges and strides.

Block row i of a matrix covers rows i*M .. i*M + M - 1, block columns likewise. Whole blocks are views of the caller's
memory. Where M does not divide a side, the last blocks are *cut*: they are copied, padded with zeros to M x M, solved
as "at_most" on what is there, and the answer is copied back without the padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._typing import Array
from .pattern import Constraint

__all__ = ["Array", "Blocks", "Duals", "block_grid", "constraints_used", "cut", "empty_duals", "score_dtype", "stacks"]

Duals: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Dual variables (u, v): u of shape (..., R, ceil(C / M)), v of shape (..., ceil(R / M), C)."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """A grid of M x M blocks that share one constraint, as views into whole matrices.

    Attributes
    ----------
    weights : ndarray, shape (K, Br, Bc, M, M)
        Signed weights of any real dtype; K matrices of Br x Bc blocks. Read only.
    mask : ndarray of bool, shape (K, Br, Bc, M, M)
        Where a solver writes its answer, True = kept.
    u, v : ndarray of float64, shape (K, Br, Bc, M), or None
        Dual variables of the rows and of the columns, read for a warm start and written, where they are wanted.
    constraint : {"exactly", "at_most"}
        What holds for these blocks.
    """

    weights: Array
    mask: NDArray[np.bool_]
    u: NDArray[np.float64] | None
    v: NDArray[np.float64] | None
    constraint: Constraint

    @property
    def count(self) -> int:
        """Number of blocks."""
        return math.prod(self.weights.shape[:3])

    def scores(self) -> Array:
        """Copy the magnitudes out.

        Returns
        -------
        ndarray of float32 or float64, shape (count, M, M)
            C-contiguous, non-negative, owned by the caller; float64 where float32 would round.
        """
        m = self.weights.shape[-1]
        scores = self.weights.astype(score_dtype(self.weights.dtype), order="C").reshape(-1, m, m)
        np.abs(scores, out=scores)
        return scores

    def split(self, limit: int) -> Iterator[Blocks]:
        """Cut the grid into grids of at most `limit` blocks, in block order; together they are this grid.

        Parameters
        ----------
        limit : int
            Largest number of blocks a part may have, at least 1.

        Yields
        ------
        Blocks
            Views of this one.
        """
        if self.count <= limit:
            yield self
            return
        axis = next(axis for axis in range(3) if self.weights.shape[axis] > 1)
        length = self.weights.shape[axis]
        step = max(1, limit * length // self.count)
        for start in range(0, length, step):
            part = (slice(None),) * axis + (slice(start, start + step),)
            yield from Blocks(
                self.weights[part],
                self.mask[part],
                None if self.u is None else self.u[part],
                None if self.v is None else self.v[part],
                self.constraint,
            ).split(limit)


def score_dtype(dtype: DTypeLike) -> type[np.float32] | type[np.float64]:
    """Return float32 where it holds every value of `dtype`, else float64.

    float64 holds everything but 64-bit integers above 2**53 and long doubles, which are rounded to it.

    Examples
    --------
    >>> score_dtype(np.int16), score_dtype(np.int32)
    (<class 'numpy.float32'>, <class 'numpy.float64'>)
    """
    dtype = np.dtype(dtype)
    if dtype.kind in "biu":
        return np.float32 if dtype.itemsize <= 2 else np.float64
    return np.float32 if dtype.itemsize <= 4 else np.float64


def block_grid(shape: tuple[int, ...], m: int) -> tuple[int, int]:
    """Return the number of block rows and block columns, cut blocks included, of a (..., R, C) shape.

    Examples
    --------
    >>> block_grid((3, 10, 8), 4)
    (3, 2)
    """
    return -(-shape[-2] // m), -(-shape[-1] // m)


def constraints_used(shape: tuple[int, ...], m: int, constraint: Constraint) -> list[Constraint]:
    """List the constraints under which the blocks of a (..., R, C) shape are solved: cut blocks are "at_most".

    Examples
    --------
    >>> constraints_used((8, 10), 4, "exactly")
    ['exactly', 'at_most']
    """
    rows, columns = shape[-2:]
    used: list[Constraint] = []
    if rows >= m and columns >= m:
        used.append(constraint)
    if (rows % m or columns % m) and "at_most" not in used:
        used.append("at_most")
    return used


def empty_duals(shape: tuple[int, ...], m: int) -> Duals:
    """Return zero duals (u, v) for weights of shape (..., R, C)."""
    block_rows, block_columns = block_grid(shape, m)
    batch, (rows, columns) = shape[:-2], shape[-2:]
    return np.zeros((*batch, rows, block_columns)), np.zeros((*batch, block_rows, columns))


def cut(
    weights: Array, mask: NDArray[np.bool_], duals: Duals | None, m: int, constraint: Constraint
) -> Iterator[Blocks]:
    """Cut matrices into grids of blocks; what the consumer writes into a grid is in place when it asks for the next.

    Parameters
    ----------
    weights : ndarray, shape (..., R, C)
        Any real dtype, any strides; not modified.
    mask : ndarray of bool, shape (..., R, C)
        Read into the grids, and written by the consumer if it is writeable.
    duals : (u, v) or None
        Shapes (..., R, ceil(C/M)) and (..., ceil(R/M), C), in the same way.
    m : int
        Block side.
    constraint : {"exactly", "at_most"}
        For whole blocks.

    Yields
    ------
    Blocks
        One to four grids a stack: whole blocks, then those cut at the right, at the bottom, and at the corner.
    """
    if weights.size == 0:
        return
    tiles = ((m, m), (m, m), (m, 1), (1, m))
    for stack in stacks((weights, mask, *(duals or ()))):
        rows, columns = stack[0].shape[-2:]
        whole_rows, whole_columns = rows // m, columns // m
        if rows == whole_rows * m and columns == whole_columns * m:
            yield _grid(stack, tiles, constraint)
            continue
        all_rows, all_columns = block_grid((rows, columns), m)
        if whole_rows and whole_columns:
            views = [_take(*pair, (0, whole_rows), (0, whole_columns)) for pair in zip(stack, tiles, strict=False)]
            yield _grid(views, tiles, constraint)
        for block_rows, block_columns in (
            ((0, whole_rows), (whole_columns, all_columns)),
            ((whole_rows, all_rows), (0, whole_columns)),
            ((whole_rows, all_rows), (whole_columns, all_columns)),
        ):
            if block_rows[0] == block_rows[1] or block_columns[0] == block_columns[1]:
                continue
            views = [_take(*pair, block_rows, block_columns) for pair in zip(stack, tiles, strict=False)]
            padded = [_pad(*pair, block_rows, block_columns) for pair in zip(views, tiles, strict=False)]
            yield _grid(padded, tiles, "at_most")
            for view, copy in zip(views[1:], padded[1:], strict=True):
                if view.flags.writeable:
                    view[...] = copy[:, : view.shape[1], : view.shape[2]]


def stacks(arrays: tuple[Array, ...]) -> Iterator[tuple[Array, ...]]:
    """Merge the batch axes of (..., R, C) arrays into one where no copy is needed, else walk along the first."""
    try:
        merged = tuple(array.reshape(-1, *array.shape[-2:], copy=False) for array in arrays)
    except ValueError:
        for index in range(arrays[0].shape[0]):
            yield from stacks(tuple(array[index] for array in arrays))
        return
    yield merged


def _take(array: Array, tile: tuple[int, int], block_rows: tuple[int, int], block_columns: tuple[int, int]) -> Array:
    """View the part of (K, R, C) that belongs to a range of blocks, of which each owns a `tile` of the array."""
    return array[
        :,
        block_rows[0] * tile[0] : block_rows[1] * tile[0],
        block_columns[0] * tile[1] : block_columns[1] * tile[1],
    ]


def _pad(array: Array, tile: tuple[int, int], block_rows: tuple[int, int], block_columns: tuple[int, int]) -> Array:
    """Copy the part of a range of blocks that exists into zeros of the size of the whole range."""
    rows = (block_rows[1] - block_rows[0]) * tile[0]
    columns = (block_columns[1] - block_columns[0]) * tile[1]
    copy = np.zeros((len(array), rows, columns), array.dtype)
    copy[:, : array.shape[1], : array.shape[2]] = array
    return copy


def _grid(stack: Sequence[Array], tiles: tuple[tuple[int, int], ...], constraint: Constraint) -> Blocks:
    """Turn (K, R, C) arrays whose sides are multiples of their tiles into grids of blocks, without a copy."""
    grids = []
    for array, (tile_rows, tile_columns) in zip(stack, tiles, strict=False):
        n, rows, columns = array.shape
        split = array.reshape(n, rows // tile_rows, tile_rows, columns // tile_columns, tile_columns, copy=False)
        grids.append(split.transpose(0, 1, 3, 2, 4))
    if len(grids) == 2:
        return Blocks(grids[0], grids[1], None, None, constraint)
    return Blocks(grids[0], grids[1], grids[2][..., 0], grids[3][..., 0, :], constraint)
