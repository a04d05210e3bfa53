"""The plain N:M mask against loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transmask as tm
from transmask.testing import patterns, weights


def naive_line(values, n, m):
    """Keep the N largest of every M, the earlier one among equals."""
    kept = [False] * len(values)
    for start in range(0, len(values), m):
        group = range(start, min(start + m, len(values)))
        for index in sorted(group, key=lambda i: (-abs(float(values[i])), i))[:n]:
            kept[index] = True
    return kept


@settings(max_examples=200)
@given(weights(), patterns(), st.data())
def test_every_line_is_what_loops_find(array, pattern, data):
    axis = data.draw(st.integers(-array.ndim, array.ndim - 1))
    before = array.tobytes()
    mask = tm.nm_mask(array, pattern, axis=axis)
    assert array.tobytes() == before
    assert (mask.shape, mask.dtype, mask.flags.c_contiguous) == (array.shape, bool, True)
    lines, kept = np.moveaxis(array, axis, -1), np.moveaxis(mask, axis, -1)
    for index in np.ndindex(lines.shape[:-1]):
        assert kept[index].tolist() == naive_line(lines[index], pattern.n, pattern.m)


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
