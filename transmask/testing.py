"""Property-test your own masks: hypothesis strategies for weights and patterns, and an assertion.

Needs the extra "test": ``pip install "transmask[test]"``. A property test of a mask function of your own reads

    from hypothesis import given
    from transmask.testing import assert_transposable, patterns, weights

    @given(weights(), patterns())
    def test_my_mask(array, pattern):
        assert_transposable(my_mask(array, pattern.n, pattern.m), pattern)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .blocks import Array
from .check import check_mask
from .errors import MissingDependencyError
from .pattern import Pattern, PatternLike

try:
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hnp
except ImportError as error:
    raise MissingDependencyError(
        '`transmask.testing` must have hypothesis, got an ImportError. Run: pip install "transmask[test]"'
    ) from error

__all__ = ["DTYPES", "assert_transposable", "patterns", "weights"]

DTYPES: tuple[DTypeLike, ...] = (
    np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.int64, np.uint8, np.bool_,
)  # fmt: skip
"""What `weights` draws from unless told otherwise."""


def patterns(*, max_m: int = 8) -> st.SearchStrategy[Pattern]:
    """Draw patterns N:M with 1 <= M <= `max_m` and 0 <= N <= M, N = 0 and N = M included.

    Parameters
    ----------
    max_m : int, default 8
        Largest group size.

    Returns
    -------
    hypothesis strategy of Pattern

    Examples
    --------
    >>> from hypothesis import find
    >>> str(find(patterns(), lambda pattern: 0 < pattern.n < pattern.m))
    '1:2'
    """
    sizes = st.integers(1, max_m)
    return sizes.flatmap(lambda m: st.integers(0, m).map(lambda n: Pattern(n, m)))


@st.composite
def weights(
    draw: st.DrawFn, *, max_side: int = 12, max_batch_axes: int = 2, dtypes: Sequence[DTypeLike] = DTYPES
) -> Array:
    """Draw stacks of matrices that break careless code.

    The values are Gaussian, tied, mostly zero, of every magnitude the dtype has up to 1e300, or denormal, of both
    signs. The sides are anything, so that blocks are cut by edges. The memory is in C or Fortran order,
    reversed, strided, with the batch axes innermost, or read-only. One in twenty is empty.

    Parameters
    ----------
    max_side : int, default 12
        Most rows and most columns.
    max_batch_axes : int, default 2
        Most axes before the last two; each has length 1 to 3.
    dtypes : sequence of dtype, default `DTYPES`
        Real dtypes to draw from; bfloat16 is `ml_dtypes.bfloat16`.

    Returns
    -------
    hypothesis strategy of ndarray, shape (..., R, C)
        Finite.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(weights(), lambda array: array.ndim == 2 and array.size > 0).shape
    (1, 1)
    """
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    batch = draw(st.lists(st.integers(1, 3), max_size=max_batch_axes))
    lengths = [*batch, draw(st.integers(1, max_side)), draw(st.integers(1, max_side))]
    if draw(st.integers(0, 19)) == 19:
        lengths[draw(st.integers(0, len(lengths) - 1))] = 0
    values = draw((_integers if dtype.kind in "biu" else _floats)(dtype, tuple(lengths)))
    layout = draw(st.sampled_from(LAYOUTS))
    return layout(values.astype(dtype))


def _integers(dtype: np.dtype[Any], shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    """Draw integers of the whole range of a dtype, or small ones, which tie."""
    low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    small = st.integers(max(low, -3), min(high, 3))
    large = st.one_of(st.sampled_from([low, high]), st.integers(low, high))
    return st.one_of(
        hnp.arrays(dtype, shape, elements=small.map(dtype.type), fill=st.nothing()),
        hnp.arrays(dtype, shape, elements=large.map(dtype.type)),
    )


def _floats(dtype: np.dtype[Any], shape: tuple[int, ...]) -> st.SearchStrategy[Array]:
    """Draw float64 values that `dtype` represents without overflow."""
    limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    largest, smallest = min(float(limits.max), 1e300), float(limits.smallest_subnormal)
    levels = st.sampled_from([0.0, 1.0, -1.0, 0.5, -2.0, 3.0])
    denormals = st.integers(-8, 8).map(lambda steps: steps * smallest)
    mostly_zero = st.one_of(st.just(0.0), st.just(0.0), st.floats(-1.0, 1.0))
    everything = st.one_of(st.sampled_from([largest, -largest, smallest]), st.floats(-largest, largest))
    elements = (levels, mostly_zero, denormals, everything)
    drawn = [hnp.arrays(np.float64, shape, elements=values) for values in elements]
    seeds = st.integers(0, 2**32 - 1)
    return st.one_of(seeds.map(lambda seed: np.random.default_rng(seed).standard_normal(shape)), *drawn)


def _reversed(array: Array) -> Array:
    return np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1]


def _strided(array: Array) -> Array:
    rows, columns = array.shape[-2:]
    wide = np.zeros((*array.shape[:-2], 2 * rows, 3 * columns), array.dtype)
    wide[..., ::2, ::3] = array
    return wide[..., ::2, ::3]


def _batch_innermost(array: Array) -> Array:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, (-2, -1), (0, 1))), (0, 1), (-2, -1))


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


LAYOUTS: tuple[Callable[[Array], Array], ...] = (
    np.ascontiguousarray, np.asfortranarray, _reversed, _strided, _batch_innermost, _read_only,
)  # fmt: skip


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
