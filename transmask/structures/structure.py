"""What every sparsity structure offers: counting its masks, finding the best one, checking one."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments import as_axes, as_mask, as_weights
from ..blocks import Array
from ..errors import InvalidArgumentError, InvalidTypeError
from .mask_count import MaskCount

__all__ = ["Structure", "StructureReport", "as_axis", "as_axis_pair", "as_shape"]


def as_shape(shape: Sequence[int], *, argument: str = "shape") -> tuple[int, ...]:
    """Return `shape` as a tuple of at least two sizes.

    Raises
    ------
    InvalidTypeError
        If it is not a sequence of integers.
    InvalidArgumentError
        If it has fewer than two axes or a negative size.

    Examples
    --------
    >>> as_shape([8, 8])
    (8, 8)
    """
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise InvalidTypeError(f"`{argument}` must be a sequence of integers such as (8, 8), got {shape!r}.") from None
    if len(sizes) < 2:
        raise InvalidArgumentError(
            f"`{argument}` must have at least 2 axes, got {sizes}. A structure is a set of masks for matrices."
        )
    if min(sizes) < 0:
        raise InvalidArgumentError(f"`{argument}` must hold sizes of at least 0, got {sizes}.")
    return sizes


def as_axis(axis: int, ndim: int | None = None) -> int:
    """Return `axis`, as a non-negative one if the number of axes is given.

    Raises
    ------
    InvalidTypeError
        If it is not an integer.
    InvalidArgumentError
        If there is no such axis.
    """
    if isinstance(axis, bool) or not hasattr(axis, "__index__"):
        raise InvalidTypeError(f"`axis` must be an integer, got {axis!r}.")
    axis = operator.index(axis)
    if ndim is None:
        return axis
    if not -ndim <= axis < ndim:
        raise InvalidArgumentError(f"`axis` must lie in [{-ndim}, {ndim - 1}], got {axis}.")
    return axis % ndim


def as_axis_pair(axes: Sequence[int]) -> tuple[int, int]:
    """Return `axes` as two different integers, negative ones as they are, before any shape is known.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        As `as_axes`.
    """
    as_axes(axes, 64)  # numpy's limit
    first, second = (operator.index(axis) for axis in axes)
    return first, second


@dataclass(frozen=True, slots=True)
class StructureReport:
    """Whether a mask belongs to a structure.

    Attributes
    ----------
    structure : Structure
    kept, size : int
        Entries kept, and entries in all.
    first_offender : str
        What breaks the structure, in words; empty if nothing does.
    """

    structure: Structure
    kept: int
    size: int
    first_offender: str

    @property
    def ok(self) -> bool:
        """Whether the mask belongs to the structure."""
        return not self.first_offender

    def __bool__(self) -> bool:
        return self.ok


class Structure(ABC):
    """A set of masks for every shape.

    To add one: write a frozen dataclass that implements `density`, `_count`, `_best_mask`, `_offence` and `__str__`.
    The public methods here validate; those four get an argument that can be used.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def density(self) -> float:
        """The fraction of the entries that is kept, before rounding and edges."""

    def count(self, shape: Sequence[int]) -> MaskCount:
        """Count the masks of this structure.

        Parameters
        ----------
        shape : sequence of int
            At least two sizes.

        Returns
        -------
        MaskCount
            Its logarithm, and the integer where that can be written down.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If `shape` is no shape, or this structure cannot hold it.
        UnsupportedPatternError
            If the masks of a block are too many to count.
        """
        sizes = as_shape(shape)
        return self._count(sizes) if math.prod(sizes) else MaskCount(())

    def best_mask(self, weights: ArrayLike) -> NDArray[np.bool_]:
        """Find the mask of this structure that keeps the largest sum of magnitudes.

        Parameters
        ----------
        weights : array_like, at least 2 axes
            Finite real numbers of any dtype; not modified. Other scores are passed the same way.

        Returns
        -------
        ndarray of bool, the shape of `weights`
            True = kept. Among equal sums the earlier entry, tile or slice is kept.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If `weights` cannot be used, or this structure cannot hold their shape.
        """
        return self._best_mask(as_weights(weights))

    def check(self, mask: ArrayLike) -> StructureReport:
        """Tell whether a mask belongs to this structure, and if not what breaks it.

        Parameters
        ----------
        mask : array_like of bool or of 0 and 1, at least 2 axes
            True = kept.

        Returns
        -------
        StructureReport
            True as a condition exactly when the mask belongs.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If `mask` is no mask, or this structure cannot hold its shape.
        """
        kept = as_mask(mask)
        return StructureReport(self, int(np.count_nonzero(kept)), kept.size, self._offence(kept) if kept.size else "")

    @abstractmethod
    def _count(self, shape: tuple[int, ...]) -> MaskCount:
        """Count the masks for a shape of at least two axes and one entry."""

    @abstractmethod
    def _best_mask(self, weights: Array) -> NDArray[np.bool_]:
        """Find the best mask for finite weights of at least two axes."""

    @abstractmethod
    def _offence(self, mask: NDArray[np.bool_]) -> str:
        """Say what breaks the structure, or return "" if this mask of at least one entry belongs."""
