"""Tell whether a mask holds its pattern, in rows and in columns, and where it does not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arguments import as_axes, as_mask, matrix_view
from .pattern import Constraint, Pattern, PatternLike, as_constraint

__all__ = ["MaskReport", "check_mask"]


@dataclass(frozen=True, slots=True)
class MaskReport:
    """What `check_mask` found.

    Attributes
    ----------
    pattern : Pattern
    constraint : {"exactly", "at_most"}
    row_groups, column_groups : int
        Number of groups of at most M entries along the rows (what W needs) and along the columns (what W.T needs).
    row_violations, column_violations : int
        How many of them break the pattern.
    kept, size : int
        Entries kept, and entries in all.
    first_offender : str
        The first group that breaks the pattern, in words; empty if there is none.
    """

    pattern: Pattern
    constraint: Constraint
    row_groups: int
    row_violations: int
    column_groups: int
    column_violations: int
    kept: int
    size: int
    first_offender: str

    @property
    def ok(self) -> bool:
        """Whether every group of every row and of every column holds the pattern."""
        return not self.row_violations and not self.column_violations

    @property
    def density(self) -> float:
        """Fraction of the entries kept; 0 for an empty mask."""
        return self.kept / self.size if self.size else 0.0

    def __bool__(self) -> bool:
        return self.ok


def check_mask(
    mask: ArrayLike, pattern: PatternLike, *, constraint: str = "at_most", axes: tuple[int, int] = (-2, -1)
) -> MaskReport:
    """Check that every group of M entries of every row and every column keeps at most, or exactly, N.

    Parameters
    ----------
    mask : array_like of bool or of 0 and 1, shape (..., R, C)
        True = kept.
    pattern : Pattern, str or tuple of two int
        N entries kept of every M.
    constraint : {"exactly", "at_most"}, default "at_most"
        "at_most" is what sparse hardware asks for. Under "exactly" the groups that belong to a block cut by an edge
        still need only keep at most N.
    axes : tuple of two int, default (-2, -1)
        The axes that form the matrix; every other axis is a batch.

    Returns
    -------
    MaskReport
        Truthy exactly when the mask holds the pattern.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `mask` is not a mask, or an argument cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> report = check_mask(np.tri(4, dtype=bool), "2:4")
    >>> report.ok, report.first_offender
    (False, 'row 2, columns 0 to 3 keeps 3, more than 2 of 4')
    """
    kept, chosen, limit = as_mask(mask), Pattern.of(pattern), as_constraint(constraint)
    matrix_axes = as_axes(axes, kept.ndim)
    matrices = matrix_view(kept, matrix_axes)
    row_groups, row_violations, row_offender = _violations(matrices, chosen, limit, ("row", "columns"))
    column_groups, column_violations, column_offender = _violations(
        matrices.swapaxes(-2, -1), chosen, limit, ("column", "rows")
    )
    return MaskReport(
        pattern=chosen,
        constraint=limit,
        row_groups=row_groups,
        row_violations=row_violations,
        column_groups=column_groups,
        column_violations=column_violations,
        kept=int(np.count_nonzero(kept)),
        size=kept.size,
        first_offender=row_offender or column_offender,
    )


def _violations(
    matrices: NDArray[np.bool_], pattern: Pattern, constraint: Constraint, words: tuple[str, str]
) -> tuple[int, int, str]:
    """Count the groups along the last axis and those that break the pattern; name the first of these in words."""
    rows, columns = matrices.shape[-2:]
    if columns == 0:
        return 0, 0, ""
    smallest = np.uint8 if pattern.m <= np.iinfo(np.uint8).max else np.int64  # a quarter of the mask at M = 4
    counts = np.add.reduceat(matrices.view(np.uint8), np.arange(0, columns, pattern.m), axis=-1, dtype=smallest)
    bad = counts > pattern.n
    if constraint == "exactly":
        whole_rows, whole_groups = rows - rows % pattern.m, columns // pattern.m
        bad[..., :whole_rows, :whole_groups] |= counts[..., :whole_rows, :whole_groups] < pattern.n
    n_bad = int(np.count_nonzero(bad))
    return bad.size, n_bad, _describe(counts, bad, matrices.shape, pattern, words) if n_bad else ""


def _describe(
    counts: NDArray[np.integer],
    bad: NDArray[np.bool_],
    shape: tuple[int, ...],
    pattern: Pattern,
    words: tuple[str, str],
) -> str:
    """Say in words where the first group that breaks the pattern lies and what it keeps."""
    *batch, line, group = (int(index) for index in np.unravel_index(int(np.argmax(bad)), bad.shape))
    count = int(counts[*batch, line, group])
    start, stop = group * pattern.m, min((group + 1) * pattern.m, shape[-1])
    where = f"matrix {tuple(batch)}, " if batch else ""
    relation = "more" if count > pattern.n else "fewer"
    return (
        f"{where}{words[0]} {line}, {words[1]} {start} to {stop - 1} keeps {count}, "
        f"{relation} than {pattern.n} of {pattern.m}"
    )
