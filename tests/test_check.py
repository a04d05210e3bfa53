"""check_mask against loops, and what it says about the first offender."""

import ml_dtypes
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transmask as tm

PATTERNS = [(0, 1), (1, 1), (1, 2), (2, 3), (2, 4), (1, 4), (4, 4), (0, 3), (3, 5)]


@settings(max_examples=300)
@given(
    st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 9)),
    st.sampled_from(PATTERNS),
    st.sampled_from(["exactly", "at_most"]),
    st.sampled_from([0.1, 0.4, 0.6, 1.0]),
    st.integers(0, 1000),
)
def test_the_report_is_what_loops_find(shape, pattern, constraint, density, seed):
    n, m = pattern
    masks = np.random.default_rng(seed).random(shape) < density
    report = tm.check_mask(masks, pattern, constraint=constraint)
    found = [(index, *entry) for index, mask in enumerate(masks) for entry in naive.offenders(mask, n, m, constraint)]
    assert report.row_violations == sum(name == "row" for _, name, *_ in found)
    assert report.column_violations == sum(name == "column" for _, name, *_ in found)
    assert report.ok == bool(report) == (not found)
    stacks, rows, columns = shape
    assert report.row_groups == stacks * rows * -(-columns // m)
    assert report.column_groups == stacks * columns * -(-rows // m)
    assert (report.kept, report.size) == (masks.sum(), masks.size)
    assert report.density == (masks.mean() if masks.size else 0.0)
    assert (report.pattern, report.constraint) == (tm.Pattern(n, m), constraint)
    if found:
        index, name, line, start, stop, kept = min(found, key=lambda entry: entry[1] != "row")
        other, relation = {"row": "columns", "column": "rows"}[name], "more" if kept > n else "fewer"
        assert report.first_offender == (
            f"matrix ({index},), {name} {line}, {other} {start} to {stop - 1} keeps {kept}, {relation} than {n} of {m}"
        )
    else:
        assert report.first_offender == ""


def test_at_most_is_the_default():
    assert tm.check_mask(np.zeros((4, 4)), "2:4").ok
    assert not tm.check_mask(np.zeros((4, 4)), "2:4", constraint="exactly").ok


@pytest.mark.parametrize("axes", [(0, 1), (1, 0), (0, 2), (2, 1), (-1, 0), (-2, -1)])
def test_axes(axes):
    rng = np.random.default_rng(0)
    matrices = np.stack([naive.random_mask(rng, 2, 4) for _ in range(3)])
    stack = np.moveaxis(matrices, (1, 2), axes)
    assert tm.check_mask(stack, "2:4", constraint="exactly", axes=axes).ok
    broken = np.moveaxis(matrices.copy(), (1, 2), axes)
    np.moveaxis(broken, axes, (1, 2))[1, 3] = True
    report = tm.check_mask(broken, "2:4", axes=axes)
    assert report.first_offender == "matrix (1,), row 3, columns 0 to 3 keeps 4, more than 2 of 4"


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8, ml_dtypes.bfloat16])
def test_numbers_are_taken(dtype):
    assert tm.check_mask(np.eye(8).astype(dtype), "1:4", constraint="exactly").kept == 8


def test_words_for_rows_come_before_words_for_columns():
    mask = np.zeros((8, 8), bool)
    mask[:4, 5] = True
    assert tm.check_mask(mask, "2:4").first_offender == "column 5, rows 0 to 3 keeps 4, more than 2 of 4"
    mask[7, 4:7] = True
    assert tm.check_mask(mask, "2:4").first_offender == "row 7, columns 4 to 7 keeps 3, more than 2 of 4"


def test_wrong_use():
    with pytest.raises(tm.InvalidArgumentError, match="`constraint` must be one of"):
        tm.check_mask(np.eye(4), "1:4", constraint="exact")
    with pytest.raises(tm.InvalidArgumentError, match="`axes` must name two different axes"):
        tm.check_mask(np.eye(4), "1:4", axes=(0, 0))
    with pytest.raises(tm.InvalidArgumentError, match="did you mean '2:4'"):
        tm.check_mask(np.eye(4), "4:2")


def test_a_read_only_strided_mask():
    mask = np.zeros((4, 512, 1024), bool)[:, ::2, ::-1]
    mask.flags.writeable = False
    assert tm.check_mask(mask, "2:4").ok
