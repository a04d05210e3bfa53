"""Assertions on masks: they hold their pattern, and no mask keeps more."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..certificate import certify
from ..check import check_mask
from ..pattern import Pattern, PatternLike

__all__ = ["assert_optimal", "assert_transposable"]


def assert_transposable(
    array: ArrayLike,
    pattern: PatternLike,
    *,
    constraint: str = "at_most",
    axes: tuple[int, int] = (-2, -1),
) -> None:
    """Fail unless a mask, or the entries of weights that are not zero, hold N:M along the rows and along the columns.

    Parameters
    ----------
    array : array_like, shape (..., R, C)
        A mask of bool, True = kept; or weights, of which what is not zero counts as kept.
    pattern : Pattern, str or tuple of two int
        N entries kept of every M.
    constraint : {"exactly", "at_most"}, default "at_most"
        "at_most" is what sparse hardware asks for. Weights that hold it "exactly" keep no zero.
    axes : tuple of two int, default (-2, -1)
        The axes that form the matrix; every other axis is a batch.

    Raises
    ------
    AssertionError
        If a group breaks the pattern; the message names the first and counts the others.
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used.

    Examples
    --------
    >>> assert_transposable([[1.5, 0.0], [0.0, -2.0]], "1:2", constraint="exactly")
    >>> assert_transposable([[True, True], [False, False]], "1:2")
    Traceback (most recent call last):
    ...
    AssertionError: must hold 1:2 'at_most': row 0, columns 0 to 1 keeps 2, more than 1 of 2; 1 of 4 groups break it
    """
    values = np.asarray(array)
    report = check_mask(values if values.dtype == np.bool_ else values != 0, pattern, constraint=constraint, axes=axes)
    if not report:
        bad = report.row_violations + report.column_violations
        raise AssertionError(
            f"must hold {report.pattern} {report.constraint!r}: {report.first_offender}; "
            f"{bad} of {report.row_groups + report.column_groups} groups break it"
        )


def assert_optimal(
    mask: ArrayLike,
    weights: ArrayLike,
    pattern: PatternLike,
    *,
    constraint: str = "exactly",
    axes: tuple[int, int] = (-2, -1),
) -> None:
    """Fail unless a mask holds its pattern and provably no other keeps more of the weights' magnitudes.

    The proof is that of `transmask.certify`, which shares no code with any solver. Its resolution is 1e-12 of what a
    block keeps: beside an entry of 1e15, losses below 1000 are not seen.

    Parameters
    ----------
    mask : array_like of bool, shape (..., R, C)
        True = kept.
    weights : array_like, shape (..., R, C)
        Finite real numbers of any dtype.
    pattern : Pattern, str or tuple of two int
        N entries kept of every M.
    constraint : {"exactly", "at_most"}, default "exactly"
        A mask can be optimal for one and not for the other.
    axes : tuple of two int, default (-2, -1)
        The axes that form the matrix; every other axis is a batch.

    Raises
    ------
    AssertionError
        If a group breaks the pattern, or a better mask of some block is not ruled out.
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used.

    Examples
    --------
    >>> assert_optimal([[True, False], [False, True]], [[3.0, 1.0], [1.0, 1.0]], "1:2")
    >>> assert_optimal([[False, True], [True, False]], [[3.0, 1.0], [1.0, 1.0]], "1:2")
    Traceback (most recent call last):
    ...
    AssertionError: must be optimal for 1:2 'exactly': keeps 2.0, another mask may keep 4.0; worst gap 5.0e-01
    """
    kept = np.asarray(mask)
    if kept.shape == np.shape(weights):
        assert_transposable(kept, pattern, constraint=constraint, axes=axes)
    found = certify(weights, kept, pattern, constraint=constraint, axes=axes)
    if found.unproven:
        raise AssertionError(
            f"must be optimal for {Pattern.of(pattern)} {constraint!r}: keeps {found.kept!r}, another mask may keep "
            f"{found.upper_bound!r}; worst gap {found.worst_gap:.1e}"
        )
