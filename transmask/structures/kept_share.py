"""Structures that keep a fixed share of equal units: entries, tiles or slices. They differ only in what a unit is."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from .._arguments import as_axes, as_axis, as_axis_pair, as_integer, as_number, matrix_view
from ..blocks import Array, score_dtype
from ..errors import InvalidArgumentError
from .mask_count import Binomial, MaskCount
from .structure import Structure

__all__ = ["Block", "Channel", "Unstructured"]


def as_density(density: float) -> float:
    """Return `density` as a float in [0, 1].

    Raises
    ------
    InvalidTypeError
        If it is not a real number.
    InvalidArgumentError
        If it lies outside.
    """
    share = as_number(density, argument="density")
    if not 0 <= share <= 1:
        raise InvalidArgumentError(f"`density` must lie in [0, 1], got {density}. It is the fraction that is kept.")
    return share


def largest(scores: Array, count: int) -> NDArray[np.bool_]:
    """Mark the `count` largest scores, of equal ones the earlier."""
    marked = np.zeros(scores.shape, np.bool_)
    marked.flat[np.argsort(-scores, axis=None, kind="stable")[:count]] = True
    return marked


@dataclass(frozen=True, slots=True)
class _KeptShare(Structure):
    """Some units (entries, tiles or slices) are kept whole and the others pruned whole.

    Of K units floor(density * K + 1/2) are kept: subclasses say what a unit is.
    """

    @abstractmethod
    def _grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the number of units along each axis of their grid."""

    @abstractmethod
    def _reduce(self, values: Array) -> Array:
        """Sum the values of each unit, in float64."""

    @abstractmethod
    def _spread(self, kept: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Expand one bool a unit to one an entry."""

    def _kept_units(self, shape: tuple[int, ...]) -> tuple[int, int]:
        units = math.prod(self._grid(shape))
        return units, math.floor(Fraction(repr(self.density)) * units + Fraction(1, 2))

    def _count(self, shape: tuple[int, ...]) -> MaskCount:
        return MaskCount(((Binomial(*self._kept_units(shape)), 1),))

    def _best_mask(self, weights: Array) -> NDArray[np.bool_]:
        scores = np.abs(weights.astype(score_dtype(weights.dtype)))
        return self._spread(largest(self._reduce(scores), self._kept_units(weights.shape)[1]), weights.shape)

    def _offence(self, mask: NDArray[np.bool_]) -> str:
        kept = self._reduce(mask) > 0
        broken = self._spread(kept, mask.shape) & ~mask
        if broken.any():
            first = tuple(int(index) for index in np.unravel_index(int(np.argmax(broken)), mask.shape))
            return f"the entry {first} is pruned where its neighbours are kept"
        units, wanted = self._kept_units(mask.shape)
        found = int(np.count_nonzero(kept))
        return "" if found == wanted else f"it keeps {found} of {units}, not {wanted}"


@dataclass(frozen=True, slots=True)
class Unstructured(_KeptShare):
    """Any entries, a fixed share of them.

    Parameters
    ----------
    density : float
        Share of the entries kept, in [0, 1]. Of K entries floor(density * K + 1/2) are kept, whatever the shape.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `density` is not a number in [0, 1].

    Examples
    --------
    >>> Unstructured(0.5).count((8, 8)).value
    1832624140942590534
    >>> Unstructured(0.25).best_mask([[3.0, -4.0], [1.0, 2.0]])
    array([[False,  True],
           [False, False]])
    """

    density: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", as_density(self.density))

    def __str__(self) -> str:
        return f"unstructured {self.density:g}"

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def _reduce(self, values: Array) -> Array:
        return values

    def _spread(self, kept: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
        return kept


@dataclass(frozen=True, slots=True)
class Block(_KeptShare):
    """Whole tiles are kept or pruned.

    Parameters
    ----------
    shape : tuple of two int
        Rows and columns of a tile. Where it does not divide the matrix, the last tiles are smaller and count as tiles.
    density : float
        Share of the tiles kept, in [0, 1]. Of K tiles floor(density * K + 1/2) are kept, of all matrices together.
    axes : tuple of two int, default (-2, -1)
        The axes that form the matrix.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `shape` is not a pair of positive integers or `density` not a number in [0, 1].

    Examples
    --------
    >>> Block((4, 4), 0.5).count((8, 8)).value
    6
    """

    shape: tuple[int, int]
    density: float
    axes: tuple[int, int] = field(default=(-2, -1), kw_only=True)

    def __post_init__(self) -> None:
        try:
            tile = tuple(as_integer(side, argument="shape") for side in self.shape)
        except TypeError:
            tile = ()
        if len(tile) != 2 or min(tile) < 1:
            raise InvalidArgumentError(f"`shape` must be the two sides of a tile, such as (4, 4), got {self.shape!r}.")
        object.__setattr__(self, "shape", tile)
        object.__setattr__(self, "density", as_density(self.density))
        object.__setattr__(self, "axes", as_axis_pair(self.axes))

    def __str__(self) -> str:
        axes = "" if self.axes == (-2, -1) else f" in axes {self.axes}"
        return f"blocks {self.shape[0]}x{self.shape[1]} {self.density:g}{axes}"

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes = as_axes(self.axes, len(shape))
        batch = [size for axis, size in enumerate(shape) if axis not in axes]
        return (*batch, *(-(-shape[axis] // side) for axis, side in zip(axes, self.shape, strict=True)))

    def _reduce(self, values: Array) -> Array:
        sums = matrix_view(values, as_axes(self.axes, values.ndim))
        if sums.size == 0:
            return np.zeros(self._grid(values.shape))
        for axis, side in zip((-2, -1), self.shape, strict=True):
            sums = np.add.reduceat(sums, np.arange(0, sums.shape[axis], side), axis=axis, dtype=np.float64)
        return sums

    def _spread(self, kept: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
        axes = as_axes(self.axes, len(shape))
        mask = kept.repeat(self.shape[0], axis=-2).repeat(self.shape[1], axis=-1)[
            ..., : shape[axes[0]], : shape[axes[1]]
        ]
        return np.ascontiguousarray(np.moveaxis(mask, (-2, -1), axes))


@dataclass(frozen=True, slots=True)
class Channel(_KeptShare):
    """Whole slices are kept or pruned: the rows of a matrix, the filters of a convolution.

    Parameters
    ----------
    density : float
        Share of the slices kept, in [0, 1]. Of K slices floor(density * K + 1/2) are kept.
    axis : int, default 0
        The axis whose slices they are: 0 for the rows of (R, C) and the filters of a torch convolution (K, C, R, S).

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `density` is not a number in [0, 1] or `axis` not an integer.

    Examples
    --------
    >>> Channel(0.5).best_mask([[1, 9], [6, 5]])
    array([[False, False],
           [ True,  True]])
    """

    density: float
    axis: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", as_density(self.density))
        object.__setattr__(self, "axis", as_axis(self.axis))

    def __str__(self) -> str:
        return f"channels {self.density:g}" + (f" along axis {self.axis}" if self.axis else "")

    def _grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[as_axis(self.axis, len(shape))],)

    def _reduce(self, values: Array) -> Array:
        lines = np.moveaxis(values, as_axis(self.axis, values.ndim), 0)
        return np.asarray(np.sum(lines, axis=tuple(range(1, lines.ndim)), dtype=np.float64))

    def _spread(self, kept: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
        axis = as_axis(self.axis, len(shape))
        along = kept.reshape([-1 if other == axis else 1 for other in range(len(shape))])
        return np.broadcast_to(along, shape).copy()
