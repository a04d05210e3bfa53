"""The strategies draw what they promise, and the assertion fails on what it should."""

import subprocess
import sys
import textwrap

import ml_dtypes
import naive
import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

import transmask as tm
from transmask import testing
from transmask.testing import assert_transposable, patterns, weights


@settings(max_examples=300)
@given(weights())
def test_weights_are_finite_matrices_of_the_promised_size(array):
    assert array.ndim >= 2
    assert array.dtype in [np.dtype(dtype) for dtype in testing.DTYPES]
    assert max(array.shape[-2:]) <= 12
    assert all(length <= 3 for length in array.shape[:-2])
    assert np.isfinite(array.astype(np.float64)).all()


@settings(max_examples=100)
@given(weights(max_side=3, max_batch_axes=0, dtypes=[np.float32]))
def test_options_of_weights(array):
    assert array.ndim == 2
    assert array.dtype == np.float32
    assert max(array.shape) <= 3


@pytest.mark.parametrize(
    "wanted",
    {
        "empty": lambda array: array.size == 0,
        "tied": lambda array: array.size > 8 and len(np.unique(array)) <= 3 and array.any(),
        "mostly zero": lambda array: array.size > 8 and 0 < np.count_nonzero(array) < array.size / 2,
        "huge": lambda array: array.size > 0 and array.dtype == np.float64 and np.abs(array).max() > 1e290,
        "denormal": lambda array: array.size > 0 and array.dtype == np.float64 and 0 < np.abs(array).max() < 1e-310,
        "negative": lambda array: (array.astype(np.float64) < 0).any(),
        "bfloat16": lambda array: array.dtype == ml_dtypes.bfloat16,
        "least int64": lambda array: array.dtype == np.int64 and (array == np.iinfo(np.int64).min).any(),
        "read-only": lambda array: not array.flags.writeable,
        "negative strides": lambda array: array.size > 1 and array.strides[-1] < 0,
        "strided": lambda array: array.shape[-1] > 1 and array.strides[-1] == 3 * array.itemsize,
        "batch innermost": lambda array: array.ndim == 3 and array.strides[0] == array.itemsize < array.strides[-1],
        "not a multiple of 4": lambda array: array.shape[-1] % 4 == 3 and array.shape[-2] > 4,
    }.items(),
    ids=lambda item: item[0],
)
def test_weights_reach_every_corner(wanted):
    find(weights(), wanted[1], settings=settings(max_examples=5_000, phases=[Phase.generate]))


@settings(max_examples=200)
@given(patterns(max_m=5))
def test_patterns(pattern):
    assert isinstance(pattern, tm.Pattern)
    assert 0 <= pattern.n <= pattern.m <= 5


def test_all_small_patterns_are_drawn():
    for m in range(1, 4):
        for n in range(m + 1):
            find(patterns(max_m=3), lambda pattern, wanted=(n, m): (pattern.n, pattern.m) == wanted)


@settings(max_examples=200)
@given(data=st.data())
def test_the_assertion_says_what_the_oracle_says(data):
    rows, columns = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    n, m = data.draw(st.sampled_from([(1, 2), (2, 3), (2, 4), (0, 2), (3, 3)]))
    constraint = data.draw(st.sampled_from(["exactly", "at_most"]))
    density = data.draw(st.sampled_from([0.2, 0.5, 0.8, 1.0]))
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((rows, columns)) < density
    expected = naive.offender(mask, n, m, constraint)
    if expected is None:
        assert_transposable(mask, (n, m), constraint=constraint)
    else:
        with pytest.raises(AssertionError, match=f"must hold {n}:{m} '{constraint}': {expected[0]} {expected[1]}, "):
            assert_transposable(mask, (n, m), constraint=constraint)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("line", ["row", "column"])
def test_one_entry_too_many_or_too_few_is_found(seed, line):
    rng = np.random.default_rng(seed)
    mask = np.block([[naive.random_mask(rng, 2, 4) for _ in range(3)] for _ in range(2)])
    assert_transposable(mask, "2:4", constraint="exactly")
    more, fewer = mask.copy(), mask.copy()
    more[tuple(rng.choice(np.argwhere(~mask)))] = True
    fewer[tuple(rng.choice(np.argwhere(mask)))] = False
    with pytest.raises(AssertionError, match=r"more than 2 of 4; 2 of 48 groups break it"):
        assert_transposable(more, "2:4")
    assert_transposable(fewer, "2:4")
    with pytest.raises(AssertionError, match=r"fewer than 2 of 4; 2 of 48 groups break it"):
        assert_transposable(fewer, "2:4", constraint="exactly")


def test_a_mask_that_holds_in_rows_alone_fails():
    weights_ = np.random.default_rng(0).standard_normal((8, 8))
    with pytest.raises(AssertionError, match=r"column \d, rows \d to \d keeps [34], more than 2 of 4"):
        assert_transposable(tm.nm_mask(weights_, "2:4"), "2:4")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.complex64])
def test_weights_count_as_kept_where_they_are_not_zero(dtype):
    mask = np.eye(4, dtype=bool)
    assert_transposable((mask * -3.0).astype(dtype), "1:4", constraint="exactly")
    with pytest.raises(AssertionError, match="row 0, columns 0 to 3 keeps 4, more than 1 of 4"):
        assert_transposable(np.full((4, 4), 2).astype(dtype), "1:4")


def test_nan_counts_as_kept():
    with pytest.raises(AssertionError, match="keeps 2"):
        assert_transposable([[np.nan, np.nan], [0.0, 0.0]], "1:2")


def test_axes():
    stack = np.moveaxis(np.stack([naive.random_mask(np.random.default_rng(seed), 2, 4) for seed in range(3)]), 0, -1)
    assert_transposable(stack, "2:4", constraint="exactly", axes=(0, 1))
    with pytest.raises(AssertionError):
        assert_transposable(np.ones((4, 4, 3), bool), "2:4", axes=(0, 1))


def test_wrong_use_is_no_assertion_error():
    with pytest.raises(tm.InvalidArgumentError, match="`pattern` must read 'N:M'"):
        assert_transposable(np.eye(4), "2-4")
    with pytest.raises(tm.InvalidArgumentError, match="at least 2 axes"):
        assert_transposable(np.ones(4), "2:4")
    with pytest.raises(tm.InvalidArgumentError, match="Did you mean 'exactly'"):
        assert_transposable(np.eye(4), "2:4", constraint="exact")


def test_without_hypothesis_the_pip_line_is_named():
    code = """
        import sys
        sys.modules["hypothesis"] = None
        import transmask
        try:
            import transmask.testing
        except transmask.MissingDependencyError as error:
            print(error)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith('Run: pip install "transmask[test]"')
    assert run.stdout.startswith("`transmask.testing` must have hypothesis")
