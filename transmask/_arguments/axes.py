"""Validate axes and shapes, and view an array as a stack of matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .._typing import Array
from ..errors import InvalidArgumentError, InvalidTypeError
from .numbers import as_integer

__all__ = ["as_axes", "as_axis", "as_axis_pair", "as_shape", "matrix_view"]

LARGEST_SIZE = 10**18


def as_axis(axis: int, ndim: int | None = None) -> int:
    """Return `axis`, made non-negative if the number of axes is given.

    Raises
    ------
    InvalidTypeError
        If it is not an integer.
    InvalidArgumentError
        If there is no such axis.
    """
    axis = as_integer(axis, argument="axis")
    if ndim is None:
        return axis
    if not -ndim <= axis < ndim:
        raise InvalidArgumentError(f"`axis` must lie in [{-ndim}, {ndim - 1}], got {axis}.")
    return axis % ndim


def as_axes(axes: Sequence[int], ndim: int) -> tuple[int, int]:
    """Return two different non-negative axes of an array with `ndim` axes.

    Raises
    ------
    InvalidTypeError
        If `axes` is not a pair of integers.
    InvalidArgumentError
        If an axis is out of range or both are the same.
    """
    first, second = _as_pair(axes)
    for axis in (first, second):
        if not -ndim <= axis < ndim:
            raise InvalidArgumentError(f"`axes` must lie in [{-ndim}, {ndim - 1}], got {(first, second)}.")
    if first % ndim == second % ndim:
        raise InvalidArgumentError(
            f"`axes` must name two different axes, got {(first, second)} for an array with {ndim} axes."
        )
    return first % ndim, second % ndim


def as_axis_pair(axes: Sequence[int]) -> tuple[int, int]:
    """Return `axes` as two different integers, leaving negative ones as they are, before any shape is known.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        As `as_axes`.
    """
    as_axes(axes, 64)  # numpy's limit
    return _as_pair(axes)


def _as_pair(axes: Sequence[int]) -> tuple[int, int]:
    """Return two integers, or raise InvalidTypeError."""
    try:
        first, second = (as_integer(axis, argument="axes") for axis in axes)
    except (TypeError, ValueError):
        raise InvalidTypeError(f"`axes` must be a pair of integers, got {axes!r}.") from None
    return first, second


def as_shape(shape: Sequence[int], *, argument: str = "shape") -> tuple[int, ...]:
    """Return `shape` as a tuple of at least two sizes.

    Raises
    ------
    InvalidTypeError
        If it is not a sequence of integers.
    InvalidArgumentError
        If it has fewer than two axes, a negative size, or one above 10^18, with which nothing is counted.

    Examples
    --------
    >>> as_shape([8, 8])
    (8, 8)
    """
    try:
        sizes = tuple(as_integer(size, argument=argument) for size in shape)
    except TypeError:
        raise InvalidTypeError(f"`{argument}` must be a sequence of integers such as (8, 8), got {shape!r}.") from None
    if len(sizes) < 2:
        raise InvalidArgumentError(
            f"`{argument}` must have at least 2 axes, got {sizes}. A structure is a set of masks for matrices."
        )
    if min(sizes) < 0:
        raise InvalidArgumentError(f"`{argument}` must hold sizes of at least 0, got {sizes}.")
    if max(sizes) > LARGEST_SIZE:
        raise InvalidArgumentError(f"`{argument}` must hold sizes of at most 10^18, got a larger one.")
    return sizes


def matrix_view(array: Array, axes: tuple[int, int]) -> Array:
    """View `array` with the two `axes` moved last, in their order."""
    if axes == (array.ndim - 2, array.ndim - 1):
        return array
    return np.moveaxis(array, axes, (-2, -1))
