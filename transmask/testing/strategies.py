"""Hypothesis strategies for weights, patterns and feasible masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..blocks import Array
from ..errors import MissingDependencyError
from ..pattern import Pattern, PatternLike, as_constraint

try:
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hnp
except ImportError as error:
    raise MissingDependencyError(
        '`transmask.testing` must have hypothesis, got an ImportError. Run: pip install "transmask[test]"'
    ) from error

__all__ = ["DTYPES", "masks", "patterns", "weights"]

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


@st.composite
def masks(
    draw: st.DrawFn, pattern: PatternLike, *, constraint: str = "exactly", max_blocks: int = 2
) -> NDArray[np.bool_]:
    """Draw masks that hold a pattern along rows and columns; each such mask can be drawn.

    Parameters
    ----------
    pattern : Pattern, str or tuple of two int
        N entries kept of every M.
    constraint : {"exactly", "at_most"}, default "exactly"
    max_blocks : int, default 2
        Most blocks along each side.

    Returns
    -------
    hypothesis strategy of ndarray of bool, shape (R, C)
        R and C are multiples of M.

    Examples
    --------
    >>> from hypothesis import find
    >>> find(masks("1:2", max_blocks=1), lambda mask: not mask[0, 0]).astype(int)
    array([[0, 1],
           [1, 0]])
    """
    chosen, limit = Pattern.of(pattern), as_constraint(constraint)
    rows, columns = draw(st.integers(1, max_blocks)), draw(st.integers(1, max_blocks))
    block = (_full_block if limit == "exactly" else _block)(chosen)
    return np.block([[draw(block) for _ in range(columns)] for _ in range(rows)])


@st.composite
def _full_block(draw: st.DrawFn, pattern: Pattern) -> NDArray[np.bool_]:
    """Start from a circulant and flip 2 x 2 checkerboards, which connect all 0/1 matrices of the same line sums."""
    n, m = pattern.n, pattern.m
    line = np.arange(m)
    rows, columns = draw(st.permutations(range(m))), draw(st.permutations(range(m)))
    mask: NDArray[np.bool_] = ((line - line[:, None]) % m < n)[rows][:, columns]
    if m == 1:
        return mask
    pair = st.lists(st.integers(0, m - 1), min_size=2, max_size=2, unique=True)
    for i, j in draw(st.lists(st.tuples(pair, pair), max_size=2 * m)):
        corners = mask[np.ix_(i, j)]
        if corners[0, 0] == corners[1, 1] != corners[0, 1] == corners[1, 0]:
            mask[np.ix_(i, j)] = ~corners
    return mask


@st.composite
def _block(draw: st.DrawFn, pattern: Pattern) -> NDArray[np.bool_]:
    """Keep what is drawn, row by row, as long as its row and its column have room."""
    mask = draw(hnp.arrays(np.bool_, (pattern.m, pattern.m)))
    for i, j in np.argwhere(mask):
        mask[i, j] = mask[i, :j].sum() < pattern.n and mask[:i, j].sum() < pattern.n
    return mask
