"""Pack a 2:4 matrix the way sparse hardware reads it: half of the values, and two bits for the place of each.

Packing needs numpy and nothing else, on any machine. Of every 4 consecutive entries of a row it stores 2 values, and a
nibble with their columns, the first in its lower two bits. A group with fewer than 2 non-zero entries stores zeros as
well. Nibbles are gathered into integers, 16 bits for 2-byte values and 32 bits for 1-byte values, in the order of
CUTLASS: `torch.sparse` reads what is packed here, and `unpack` reads what torch packed.

A packed matrix cannot be transposed. W and W.T are packed separately, which a transposable mask allows.

References
----------
Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", section 3; NVIDIA CUTLASS,
``tools/util/include/cutlass/util/host_reorder.h`` (the order of the metadata).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arguments import as_weights
from .blocks import Array
from .check import check_mask
from .errors import InvalidArgumentError, InvalidTypeError

__all__ = ["Packed", "pack", "unpack"]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A 2:4 matrix, packed.

    Attributes
    ----------
    values : ndarray, shape (R, C / 2)
    metadata : ndarray of int16, shape (R, C / 16), or of int32, shape (R, C / 32)
        In the order of CUTLASS.
    """

    values: Array
    metadata: NDArray[Any]


def pack(matrix: ArrayLike) -> Packed:
    """Pack a matrix with at most 2 non-zero entries in every 4 of a row.

    Parameters
    ----------
    matrix : array_like or torch.Tensor on the CPU, shape (R, C)
        float16 or bfloat16 with R and C multiples of 32, or int8 with R a multiple of 16 and C of 64.

    Returns
    -------
    Packed

    Raises
    ------
    InvalidTypeError
        If the dtype is not float16, bfloat16 or int8.
    InvalidArgumentError
        If the shape does not fit, a value is NaN or infinite, or a group holds more than 2 non-zero entries; the
        message names the first such group.

    Examples
    --------
    >>> packed = pack(np.tile(np.array([0, 5, 0, 7], np.float16), (32, 8)))
    >>> packed.values[0, :4], packed.metadata.shape
    (array([5., 7., 5., 7.], dtype=float16), (32, 2))
    """
    array = as_weights(matrix, argument="matrix")
    nibbles = _nibbles_per_integer(array.dtype)
    row_multiple, column_multiple = 128 // nibbles, 8 * nibbles
    if array.ndim != 2 or array.shape[0] % row_multiple or array.shape[1] % column_multiple or not array.size:
        raise InvalidArgumentError(
            f"`matrix` must have rows in multiples of {row_multiple} and columns in multiples of {column_multiple} for "
            f"{array.dtype}, got shape {array.shape}. Pad it with zeros."
        )
    filled = array != 0
    report = check_mask(filled, "2:4")
    if report.row_violations:
        raise InvalidArgumentError(
            f"`matrix` must hold at most 2 non-zero entries in every 4 of a row, but {report.first_offender}. "
            "Apply a 2:4 mask first."
        )
    groups, filled = array.reshape(array.shape[0], -1, 4), filled.reshape(array.shape[0], -1, 4)
    columns = _stored_columns(filled)
    values = np.take_along_axis(groups, columns, axis=2).reshape(array.shape[0], -1)
    nibble = columns[..., 0] | columns[..., 1] << 2
    dtype = np.dtype(np.int16 if nibbles == 4 else np.int32)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    shifts = 4 * np.arange(nibbles, dtype=unsigned)
    integers = np.bitwise_or.reduce(nibble.astype(unsigned).reshape(len(array), -1, nibbles) << shifts, axis=2)
    metadata = np.empty(integers.size, unsigned)
    metadata[_cutlass_order(len(array), integers.shape[1], nibbles)] = integers
    return Packed(values, metadata.view(dtype).reshape(integers.shape))


def unpack(packed: Packed) -> Array:
    """Rebuild the matrix.

    Parameters
    ----------
    packed : Packed

    Returns
    -------
    ndarray, shape (R, C)

    Raises
    ------
    InvalidTypeError
        If `packed` is not a Packed, or its values are not float16, bfloat16 or int8.
    InvalidArgumentError
        If the shapes of values and metadata do not belong together, or the metadata names a column twice.

    Examples
    --------
    >>> matrix = np.tile(np.array([0, 5, 0, 7], np.int8), (16, 16))
    >>> np.array_equal(unpack(pack(matrix)), matrix)
    True
    """
    if not isinstance(packed, Packed):
        raise InvalidTypeError(
            f"`packed` must be a Packed matrix, got {type(packed).__name__}. Pass what pack returned."
        )
    nibbles = _nibbles_per_integer(packed.values.dtype)
    rows, half = packed.values.shape
    if packed.metadata.shape != (rows, half // (2 * nibbles)) or half % (4 * nibbles) or rows % (128 // nibbles):
        raise InvalidArgumentError(
            f"`packed` must hold metadata of shape {(rows, half // (2 * nibbles))} for values of shape "
            f"{packed.values.shape}, got {packed.metadata.shape}."
        )
    flat = packed.metadata.reshape(-1)
    unsigned = flat.view(f"u{flat.dtype.itemsize}")
    integers = unsigned[_cutlass_order(rows, packed.metadata.shape[1], nibbles)]
    nibble = (integers[:, :, None] >> (4 * np.arange(nibbles, dtype=integers.dtype)) & 15).reshape(rows, -1)
    columns = np.stack([nibble & 3, nibble >> 2], axis=2).astype(np.int64)
    if (columns[..., 0] >= columns[..., 1]).any():
        raise InvalidArgumentError("`packed` must name two columns of each group in rising order, got others.")
    matrix = np.zeros((rows, half // 2, 4), packed.values.dtype)
    np.put_along_axis(matrix, columns, packed.values.reshape(rows, -1, 2), axis=2)
    return matrix.reshape(rows, 2 * half)


def _nibbles_per_integer(dtype: np.dtype[Any]) -> int:
    """Return how many nibbles an integer of metadata holds: 4 for 2-byte values, 8 for int8."""
    if dtype == np.int8:
        return 8
    if dtype == np.float16 or dtype.name == "bfloat16":
        return 4
    raise InvalidTypeError(
        f"`matrix` must be float16, bfloat16 or int8, got {dtype}. "
        + ("Sparse hardware takes float32 only as 1:2. " if dtype == np.float32 else "")
        + "Convert it first."
    )


def _stored_columns(filled: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Choose the two columns to store of (R, G, 4) groups; which zeros fill up a group follows torch."""
    first, second, _, fourth = np.moveaxis(filled, 2, 0)
    low = np.where(first, 0, np.where(second, 1, 2))
    high = np.where(first & second, 1, np.where(fourth | ~(first | second), 3, 2))
    return np.stack([low, high], axis=2)


def _cutlass_order(rows: int, columns: int, nibbles: int) -> NDArray[np.int64]:
    """Return where the integer of each row and column stands in the metadata of CUTLASS; `columns` is even."""
    group, interleave = (32, 4) if nibbles == 4 else (16, 2)
    row, column = np.indices((rows, columns))
    row = row // group * group + row % 8 * interleave + row % group // 8
    swap = (row % 2 == 0).astype(np.int64) * (column % 2) - (row % 2) * (column % 2 == 0)
    row, column = row + swap, column - swap
    order: NDArray[np.int64] = column // 2 * rows * 2 + row * 2 + column % 2
    return order
