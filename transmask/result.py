"""What a solve returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from .certificate import relative_gap
from .pattern import Constraint, Pattern

__all__ = ["MaskResult", "Status"]


class Status(Enum):
    """How good a mask is known to be."""

    OPTIMAL = "optimal"
    """No mask of the same pattern and constraint keeps more: the certificate proves it, block by block, to 1e-12 of
    what a block keeps. An outlier does not hide what its neighbours lose, unless a block keeps at least as many huge
    weights as others; see `MaskResult.unproven`."""

    FEASIBLE = "feasible"
    """The mask holds its constraint; `gap` bounds what a better one could gain."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MaskResult:
    """A transposable mask with the proof of how good it is.

    Attributes
    ----------
    mask : ndarray of bool, the shape of the weights
        True = kept.
    pattern : Pattern
    constraint : {"exactly", "at_most"}
    axes : tuple of two int
        The axes of the weights that form the matrix.
    solver : str
        Name of the solver that ran.
    kept : float
        Sum of abs(weights) over the kept entries, in float64.
    total : float
        Sum of abs(weights) over all entries.
    upper_bound : float
        No mask of this pattern and constraint keeps more than this; from (u, v) by weak duality.
    gap : float
        (upper_bound - kept) / upper_bound, at least 0; 0 where nothing can be kept.
    worst_gap : float
        The largest gap of a single block, which a huge weight elsewhere cannot hide.
    unproven : int
        Number of blocks that may not be optimal: those whose distance to their upper bound is more than 1e-12 times the
        number times the median of the non-zero scores that they keep. The median, so that one weight of 1e18 beside
        scores around 1 does not hide what is lost among them; that takes as many huge weights as small ones.
    status : Status
    n_blocks : int
        Number of M x M blocks, cut blocks at the edges included.
    seconds : float
        Wall time of the solver alone, without validation and certificate.
    u : ndarray of float64, shape (..., R, ceil(C / M))
        Dual variables of the rows, one for each row of each block; the matrix axes moved last.
    v : ndarray of float64, shape (..., ceil(R / M), C)
        Dual variables of the columns.

    Notes
    -----
    Anyone can verify the bound: with S = abs(weights) of shape (R, C) and M x M blocks,

        slack = S - u.repeat(M, 1)[:, :C] - v.repeat(M, 0)[:R]
        upper_bound = N * (u.sum() + v.sum()) + slack.clip(0).sum()
    """

    mask: NDArray[np.bool_]
    pattern: Pattern
    constraint: Constraint
    axes: tuple[int, int]
    solver: str
    kept: float
    total: float
    upper_bound: float
    worst_gap: float
    unproven: int
    n_blocks: int
    seconds: float
    u: NDArray[np.float64]
    v: NDArray[np.float64]

    @property
    def gap(self) -> float:
        """The fraction of the upper bound that a better mask could still gain, at least 0."""
        return relative_gap(self.kept, self.upper_bound)

    @property
    def status(self) -> Status:
        """OPTIMAL if no block is unproven, else FEASIBLE."""
        return Status.FEASIBLE if self.unproven else Status.OPTIMAL

    def __repr__(self) -> str:
        share = f" = {self.kept / self.total:.2%} of the total" if self.total else ""
        return (
            f"MaskResult({'x'.join(map(str, self.mask.shape))}, {self.pattern} {self.constraint!r}, {self.solver}: "
            f"kept {self.kept:.6g}{share}, {self.n_blocks} blocks, "
            f"gap {self.gap:.1e}, {self.status.value}, {self.seconds:.3g} s)"
        )
