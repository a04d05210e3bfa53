"""The plain N:M mask: the N largest magnitudes of every M consecutive entries.

The array is taken apart into pieces that fit in a core's cache. The magnitudes of a piece become integer keys of the
same order: the bits of floating-point numbers without the sign. Up to M = LARGEST_RANKED_M a kernel ranks them; above,
numpy finds the N-th largest key, which its vector instructions do faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arguments import as_axis, as_weights
from ._typing import Array
from .blocks import score_dtype
from .pattern import Pattern, PatternLike
from .threads import resolve_threads, run_parallel

__all__ = ["nm_mask"]

LARGEST_RANKED_M = 32
PIECE = 1 << 16  # entries: 256 KB of 32-bit keys
LEAST_COLUMNS = 32  # side by side in memory, below which it is faster to move the axis of the groups last

_BITS = {size: (np.dtype(f"i{size}"), np.dtype(f"i{size}").type(2 ** (8 * size - 1) - 1)) for size in (2, 4, 8)}
"""For floating-point numbers of each size in bytes: integers of that size, and the bits that are not the sign."""


def nm_mask(
    weights: ArrayLike, pattern: PatternLike, *, axis: int = -1, threads: int | None = None
) -> NDArray[np.bool_]:
    """Keep the N largest magnitudes of every M consecutive entries: the plain, one-sided N:M mask.

    Its transpose holds no pattern. It is what `transposable_mask` is compared with: no transposable mask of the same
    pattern keeps more.

    Parameters
    ----------
    weights : array_like, at least 2 axes
        Finite real numbers of any dtype; not modified.
    pattern : Pattern, str or tuple of two int
        N entries kept of every M.
    axis : int, default -1
        The axis along which entries are grouped. Its last group may be shorter than M; it keeps at most N.
    threads : int, optional
        As in `transposable_mask`. The mask does not depend on it.

    Returns
    -------
    ndarray of bool, the shape of `weights`
        True = kept. Among equal magnitudes the earlier one is kept. Integers above 2**53 and long doubles are compared
        as float64.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        As `transposable_mask`.

    References
    ----------
    Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", section 3.

    Examples
    --------
    >>> nm_mask([[3.0, -4.0, 1.0, 2.0]], "2:4")
    array([[ True,  True, False, False]])
    """
    array, chosen = as_weights(weights), Pattern.of(pattern)
    axis, n_threads = as_axis(axis, array.ndim), resolve_threads(threads)
    if chosen.n in (0, chosen.m):
        return np.full(array.shape, chosen.n > 0)
    from ._plain_kernels import keep_largest  # here, because `import transmask` loads numpy and nothing heavier

    mask = np.empty(array.shape, np.bool_)
    source, target, last = array, mask, array.ndim - 1
    if axis < last and (chosen.m > LARGEST_RANKED_M or math.prod(array.shape[axis + 1 :]) < LEAST_COLUMNS):
        source, target, axis = np.moveaxis(array, axis, last), np.moveaxis(mask, axis, last), last
    fill = partial(_fill, keep_largest, source, target, chosen.n, axis)
    run_parallel(fill, _pieces(source.shape, chosen.m, axis), n_threads)
    return mask


def _pieces(shape: tuple[int, ...], m: int, axis: int) -> Iterator[tuple[tuple[slice, ...], int]]:
    """Cut an array into pieces of about PIECE entries, or one group; yield each with the length of its groups."""
    if 0 in shape:
        return
    length = shape[axis]
    whole = length - length % m
    for first, end, size in ((0, whole, m), (whole, length, length - whole)):
        if first == end:
            continue
        budget = max(1, PIECE // size)  # in groups
        cuts: list[list[slice]] = []
        for index in reversed(range(len(shape))):
            start, stop, unit = (first, end, size) if index == axis else (0, shape[index], 1)
            taken = min(budget, (stop - start) // unit)
            budget = max(1, budget // taken)
            step = taken * unit
            cuts.insert(0, [slice(at, min(at + step, stop)) for at in range(start, stop, step)])
        yield from ((piece, size) for piece in product(*cuts))


def _fill(
    keep_largest: Callable[[Array, int, NDArray[np.bool_]], None],
    source: Array,
    target: NDArray[np.bool_],
    n: int,
    axis: int,
    work: tuple[tuple[slice, ...], int],
) -> None:
    """Write a piece of the mask, whose groups along `axis` all have one length."""
    piece, m = work
    part = target[piece]
    if n >= m:
        part[...] = True
        return
    keys = _magnitude_keys(source[piece])
    if m > LARGEST_RANKED_M:
        kept = _largest_by_partition(keys.reshape(-1, m), n)
    else:
        keys = keys.reshape(-1, m, math.prod(keys.shape[axis + 1 :]))
        kept = np.empty(keys.shape, np.bool_)
        keep_largest(keys, n, kept)
    part[...] = kept.reshape(part.shape)


def _magnitude_keys(values: Array) -> Array:
    """Return C-contiguous integers, at least 0, in the order of the magnitudes."""
    is_half = values.dtype.type.__name__ in ("float16", "bfloat16")  # dtype.name takes 2 us
    dtype = values.dtype.newbyteorder("=") if is_half else np.dtype(score_dtype(values.dtype))
    integer, all_but_the_sign = _BITS[dtype.itemsize]
    keys: Array = np.bitwise_and(values.astype(dtype, copy=False).view(integer), all_but_the_sign, order="C")
    return keys


def _largest_by_partition(keys: Array, n: int) -> NDArray[np.bool_]:
    """Mark the `n` largest of every row, the earlier one among equals; 0 < n < row length."""
    rows, m = keys.shape
    nth = np.partition(keys, m - n, axis=1)[:, m - n, np.newaxis]
    kept: NDArray[np.bool_] = keys >= nth
    if np.count_nonzero(kept) > rows * n:  # others equal the N-th
        larger, equal = keys > nth, keys == nth
        wanted = n - np.count_nonzero(larger, axis=1, keepdims=True)
        kept = larger | (equal & (np.cumsum(equal, axis=1) <= wanted))
    return kept
