"""What every sparsity structure offers: counting its masks, finding the best one, checking one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments import as_mask, as_shape, as_weights
from ..blocks import Array
from .mask_count import MaskCount

__all__ = ["Structure", "StructureReport"]


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
    The public methods here validate, so those four get valid arguments.
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
            If `shape` is not a shape, or this structure cannot hold it.
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
            Truthy exactly when the mask belongs.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If `mask` is not a mask, or this structure cannot hold its shape.
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
