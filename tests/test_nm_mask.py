"""The plain N:M mask against loops, and against a stable sort where there is much to sort."""

import threading
import tracemalloc
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transmask as tm
from transmask import plain_mask
from transmask.testing import patterns, weights


def naive_line(values, n, m):
    """Keep the N largest of every M, the earlier one among equals."""
    kept = [False] * len(values)
    for start in range(0, len(values), m):
        group = range(start, min(start + m, len(values)))
        for index in sorted(group, key=lambda i: (-abs(float(values[i])), i))[:n]:
            kept[index] = True
    return kept


def sorted_mask(array, n, m, axis=-1):
    """Do the same by a stable sort of every group, as float64."""
    lines = np.moveaxis(array.astype(np.float64), axis, -1)
    kept = np.zeros(lines.shape, bool)
    for start in range(0, lines.shape[-1], m):
        group = slice(start, start + m)
        order = np.argsort(-np.abs(lines[..., group]), axis=-1, kind="stable")
        np.put_along_axis(kept[..., group], order[..., :n], True, axis=-1)
    return np.moveaxis(kept, -1, axis)


def unaligned(array):
    """Copy an array to an odd address."""
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    copy = memory.view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def broadcast(array):
    """Repeat the first column without memory for it."""
    return np.broadcast_to(array[..., :1], array.shape)


DTYPES = [
    np.bool_, np.int8, np.uint16, np.int32, np.int64, np.uint64, np.float16, ml_dtypes.bfloat16,
    ml_dtypes.float8_e5m2, np.float32, np.float64, np.dtype(">f2"), np.dtype(">f4"), np.dtype(">i4"),
]  # fmt: skip


@settings(max_examples=200)
@given(weights(), patterns(max_m=14), st.sampled_from([np.asarray, unaligned, broadcast]), st.data())
def test_every_line_is_what_loops_find(array, pattern, layout, data):
    """However the array is cut into pieces, and whichever way a piece is solved."""
    array = layout(array)
    axis = data.draw(st.integers(-array.ndim, array.ndim - 1))
    sizes = {
        "PIECE": data.draw(st.sampled_from([1, 20, 90, plain_mask.PIECE])),
        "LEAST_COLUMNS": data.draw(st.sampled_from([2, 5, plain_mask.LEAST_COLUMNS])),
        "LARGEST_RANKED_M": data.draw(st.sampled_from([0, 7, plain_mask.LARGEST_RANKED_M])),
    }
    before = array.tobytes()
    with mock.patch.multiple(plain_mask, **sizes):
        mask = tm.nm_mask(array, pattern, axis=axis, threads=data.draw(st.sampled_from([1, 3])))
    assert array.tobytes() == before
    assert (mask.shape, mask.dtype, mask.flags.c_contiguous) == (array.shape, bool, True)
    lines, kept = np.moveaxis(array, axis, -1), np.moveaxis(mask, axis, -1)
    for index in np.ndindex(lines.shape[:-1]):
        assert kept[index].tolist() == naive_line(lines[index], pattern.n, pattern.m)


@pytest.mark.parametrize("m", [2, 3, 4, 6, 8, 13, 16, 31, 32, 33, 64])
@pytest.mark.parametrize("others", [1, 31, 64, 129])
def test_every_number_of_groups_side_by_side(m, others):
    """Ties and a short last group, along the last axis and along the first."""
    rng = np.random.default_rng(m * others)
    array = rng.integers(-3, 4, (others, 2 * m + m // 2)).astype(np.float32)
    n = max(1, m // 3)
    expected = sorted_mask(array, n, m)
    assert np.array_equal(tm.nm_mask(array, (n, m)), expected)
    assert np.array_equal(tm.nm_mask(array.T, (n, m), axis=0), expected.T)


SMALL_TYPES = [np.float16, np.int16, np.uint16, np.int8, np.uint8, np.bool_] + [
    getattr(ml_dtypes, name)
    for name in dir(ml_dtypes)
    if name.startswith(("bfloat16", "float8", "float6", "float4", "int", "uint")) and name != "float8_e8m0fnu"
]


@pytest.mark.parametrize("dtype", SMALL_TYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("pattern", [(1, 4), (20, 40)])
def test_every_number_of_a_small_type_in_random_order(dtype, pattern):
    codes = np.arange(2 ** (8 * np.dtype(dtype).itemsize), dtype=f"u{np.dtype(dtype).itemsize}")
    array = (codes > 127 if dtype is np.bool_ else codes).view(dtype)
    with np.errstate(invalid="ignore"):
        values = array.astype(np.float64)
    proper = values.astype(dtype).view(codes.dtype) == array.view(codes.dtype)  # int4 uses half of its byte
    array = array[np.isfinite(values) & proper]
    copies = 3 if array.size < 512 else 1
    order = np.random.default_rng(0).permuted(np.tile(np.arange(array.size), (copies, 1)), axis=1)
    shuffled = array[order]
    assert np.array_equal(tm.nm_mask(shuffled, pattern), sorted_mask(shuffled, *pattern))
    if array.size < 512:
        assert np.array_equal(tm.nm_mask(shuffled.T, pattern, axis=0), sorted_mask(shuffled, *pattern).T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_groups_with_and_without_ties(dtype):
    values = np.random.default_rng(1).integers(0, 127, (3, 2500))
    for n, m in ((1, 33), (700, 1000), (2048, 4096), (2499, 10**6), (4000, 4096)):
        for array in (values.astype(dtype), np.zeros_like(values, dtype)):
            assert np.array_equal(tm.nm_mask(array, (n, m)), sorted_mask(array, n, m))
    distinct = np.random.default_rng(1).permutation(7500).reshape(3, 2500).astype(np.float32)
    assert np.array_equal(tm.nm_mask(distinct, (30, 64)), sorted_mask(distinct, 30, 64))


def test_equal_magnitudes_keep_the_earlier_one():
    assert tm.nm_mask([[-0.0, 0.0, 0.0, -0.0], [1.0, -2.0, 2.0, -2.0]], "2:4").tolist() == [
        [True, True, False, False],
        [False, True, True, False],
    ]
    beyond = np.array([[2**53, 2**53 + 1, -(2**53), 0]])  # equal as float64
    for dtype in (np.int64, np.longdouble):
        assert tm.nm_mask(beyond.astype(dtype), "1:4").tolist() == [[True, False, False, False]]
    assert tm.nm_mask(np.array([[1, -(2**63), 2**63 - 1, 0]]), "1:4").tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3, 0, 5), (0, 0)])
@pytest.mark.parametrize("pattern", ["0:4", "2:4", "4:4", "40:80"])
def test_an_array_without_entries(shape, pattern):
    for axis in range(len(shape)):
        assert tm.nm_mask(np.ones(shape), pattern, axis=axis).shape == shape


def test_all_and_nothing():
    array = np.ones((3, 7), np.float32)
    assert not tm.nm_mask(array, "0:4").any()
    assert tm.nm_mask(array, "4:4").all()
    assert tm.nm_mask(array, "7:9").all()
    assert tm.nm_mask(array, "1:1").all()


@pytest.mark.compiled
def test_many_pieces_on_many_threads_give_one_mask():
    array = np.random.default_rng(2).integers(-9, 9, (7, 150, 333)).astype(np.int16)
    for axis in range(3):
        expected = sorted_mask(array, 3, 8, axis)
        assert all(np.array_equal(tm.nm_mask(array, "3:8", axis=axis, threads=n), expected) for n in (1, 2, 7))


def test_the_work_is_shared_among_threads():
    workers, real = set(), plain_mask._fill

    def spy(*arguments):
        workers.add(threading.current_thread().name)
        both.wait(timeout=60)
        return real(*arguments)

    both = threading.Barrier(2)
    with mock.patch.object(plain_mask, "_fill", spy), mock.patch.object(plain_mask, "PIECE", 8):
        tm.nm_mask(np.ones((4, 4)), "2:4", threads=2)
    assert len(workers) == 2


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", [np.float32, np.int8, ml_dtypes.bfloat16])
def test_the_array_is_never_copied_as_a_whole(dtype):
    array = np.ones((3000, 4000), dtype)[::-1, ::-2]
    for axis, pattern in ((0, "2:4"), (1, "2:4"), (1, "20:40")):
        tracemalloc.start()
        try:
            mask = tm.nm_mask(array, pattern, axis=axis, threads=1)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak - mask.nbytes < 3e6


@settings(max_examples=50)
@given(weights(dtypes=[np.float32, np.int8]), patterns(max_m=4))
def test_no_transposable_mask_keeps_more(array, pattern):
    scores = np.abs(array.astype(np.float64))
    best = (scores * tm.transposable_mask(array, pattern, constraint="at_most", solver="min_cost_flow")).sum()
    for axis in (-1, -2):
        assert best <= (scores * tm.nm_mask(array, pattern, axis=axis)).sum() * (1 + 1e-12)


@pytest.mark.parametrize(
    ("axis", "error", "text"),
    [
        (2, ValueError, "`axis` must lie in [-2, 1], got 2."),
        (-3, ValueError, "`axis` must lie in [-2, 1], got -3."),
        (0.5, TypeError, "`axis` must be an integer, got 0.5."),
        (None, TypeError, "`axis` must be an integer, got None."),
        (True, TypeError, "`axis` must be an integer, got True."),
    ],
)
def test_what_is_no_axis(axis, error, text):
    with pytest.raises(error) as raised:
        tm.nm_mask(np.ones((4, 4)), "2:4", axis=axis)
    assert isinstance(raised.value, tm.TransmaskError)
    assert text in str(raised.value)


def test_no_thread_at_all_is_refused():
    with pytest.raises(tm.InvalidArgumentError, match=r"`threads` must be at least 1, got 0\."):
        tm.nm_mask(np.ones((4, 4)), "2:4", threads=0)
