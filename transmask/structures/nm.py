"""N:M sparsity as a structure: plain, along one axis, and transposable, along both."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .._arguments import as_axes, as_axis, as_axis_pair
from ..blocks import Array
from ..check import check_mask
from ..masks import transposable_mask
from ..pattern import Constraint, Pattern, as_constraint
from ..plain_mask import nm_mask
from .counting import asymptotic_log2, count_matrices, is_countable, measured_error_log2
from .mask_count import Binomial, Estimate, Factor, Integer, MaskCount
from .structure import Structure

__all__ = ["NM", "Transposable"]


@dataclass(frozen=True, slots=True)
class NM(Structure):
    """Plain N:M sparsity: of every M consecutive entries of a row exactly N are kept.

    Parameters
    ----------
    n, m : int
        N entries kept of every M.
    axis : int, default -1
        The axis along which entries are grouped. Where M does not divide it, the last group keeps at most N.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `n` and `m` make no pattern or `axis` is not an integer.

    References
    ----------
    Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", section 3.

    Examples
    --------
    >>> NM(2, 4).count((8, 8)).value == 6**16
    True
    """

    n: int
    m: int
    axis: int = field(default=-1, kw_only=True)

    def __post_init__(self) -> None:
        pattern = Pattern(self.n, self.m)
        object.__setattr__(self, "n", pattern.n)
        object.__setattr__(self, "m", pattern.m)
        object.__setattr__(self, "axis", as_axis(self.axis))

    def __str__(self) -> str:
        return f"{self.n}:{self.m} " + ("row-wise" if self.axis == -1 else f"along axis {self.axis}")

    @property
    def density(self) -> float:
        """N / M."""
        return self.n / self.m

    def _count(self, shape: tuple[int, ...]) -> MaskCount:
        length = shape[as_axis(self.axis, len(shape))]
        lines = math.prod(shape) // length
        cut = sum(math.comb(length % self.m, kept) for kept in range(min(self.n, length % self.m) + 1))
        whole = Binomial(self.m, self.n)
        return MaskCount.of([(whole, lines * (length // self.m)), (Integer(cut), lines if length % self.m else 0)])

    def _best_mask(self, weights: Array) -> NDArray[np.bool_]:
        return nm_mask(weights, (self.n, self.m), axis=self.axis)

    def _offence(self, mask: NDArray[np.bool_]) -> str:
        axis = as_axis(self.axis, mask.ndim)
        length = mask.shape[axis]
        counts = np.add.reduceat(mask, np.arange(0, length, self.m), axis=axis, dtype=np.int64)
        bad = np.moveaxis(counts != self.n, axis, -1)
        if length % self.m:
            bad[..., -1] = np.take(counts, -1, axis=axis) > self.n
        if not bad.any():
            return ""
        *line, group = (int(index) for index in np.unravel_index(int(np.argmax(bad)), bad.shape))
        start, stop = group * self.m, min((group + 1) * self.m, length)
        found = int(np.moveaxis(counts, axis, -1)[*line, group])
        where = ", ".join(str(index) for index in [*line[:axis], f"{start}:{stop}", *line[axis:]])
        return f"the entries [{where}] keep {found}, not {self.n}"


@dataclass(frozen=True, slots=True)
class Transposable(Structure):
    """N:M sparsity of a matrix and of its transpose: every M x M block keeps N in each row and each column.

    Parameters
    ----------
    n, m : int
        N entries kept of every M.
    constraint : {"exactly", "at_most"}, default "exactly"
        Whether a line of a block keeps exactly N or at most N. Where M does not divide a side, the blocks that the edge
        cuts keep at most N in each line of what is there.
    axes : tuple of two int, default (-2, -1)
        The axes that form the matrix: (-2, -1) for a linear layer, (0, 1) for a torch convolution (K, C, R, S).

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `n` and `m` make no pattern, `constraint` is unknown, or `axes` are not two integers.

    References
    ----------
    Hubara et al. 2021, "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M Transposable
    Masks", section 3.

    Examples
    --------
    >>> Transposable(2, 4).count((8, 8)).value == 90**4
    True
    >>> print(Transposable(2, 4).check([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]]).first_offender)
    column 1, rows 0 to 3 keeps 3, more than 2 of 4
    """

    n: int
    m: int
    constraint: Constraint = "exactly"
    axes: tuple[int, int] = field(default=(-2, -1), kw_only=True)

    def __post_init__(self) -> None:
        pattern = Pattern(self.n, self.m)
        object.__setattr__(self, "n", pattern.n)
        object.__setattr__(self, "m", pattern.m)
        as_constraint(self.constraint)
        object.__setattr__(self, "axes", as_axis_pair(self.axes))

    def __str__(self) -> str:
        limit = " at most" if self.constraint == "at_most" else ""
        return f"{self.n}:{self.m} transposable{limit}" + ("" if self.axes == (-2, -1) else f" in axes {self.axes}")

    @property
    def density(self) -> float:
        """N / M."""
        return self.n / self.m

    def _count(self, shape: tuple[int, ...]) -> MaskCount:
        axes = as_axes(self.axes, len(shape))
        rows, columns = (shape[axis] for axis in axes)
        matrices = math.prod(shape) // (rows * columns)
        (whole_rows, rest_rows), (whole_columns, rest_columns) = divmod(rows, self.m), divmod(columns, self.m)
        powers: list[tuple[Factor, int]] = []
        if whole_rows and whole_columns:
            powers.append((self._whole_block(), matrices * whole_rows * whole_columns))
        for height, width, times in (
            (self.m, rest_columns, whole_rows),
            (rest_rows, self.m, whole_columns),
            (rest_rows, rest_columns, 1),
        ):
            if height and width and times:
                powers.append((Integer(count_matrices(height, width, self.n, "at_most")), matrices * times))
        return MaskCount.of(powers)

    def _whole_block(self) -> Factor:
        """How many masks an M x M block has: exactly where they can be counted, else asymptotically."""
        if self.constraint == "exactly" and not is_countable(self.m, self.m, self.n, self.constraint):
            pattern = Pattern(self.n, self.m)
            return Estimate(asymptotic_log2(pattern), measured_error_log2(pattern))
        return Integer(count_matrices(self.m, self.m, self.n, self.constraint))

    def _best_mask(self, weights: Array) -> NDArray[np.bool_]:
        return transposable_mask(weights, (self.n, self.m), constraint=self.constraint, axes=self.axes)

    def _offence(self, mask: NDArray[np.bool_]) -> str:
        return check_mask(mask, (self.n, self.m), constraint=self.constraint, axes=self.axes).first_offender
