"""Pattern: what it accepts, what it says about what it does not, and the conventions it translates."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import transmask as tm
from transmask.pattern import as_constraint

integers = st.integers(-3, 40)


@given(integers, integers)
def test_a_pattern_is_made_exactly_when_0_le_n_le_m(n, m):
    if m >= 1 and 0 <= n <= m:
        pattern = tm.Pattern(n, m)
        assert (pattern.n, pattern.m, str(pattern)) == (n, m, f"{n}:{m}")
        assert pattern.density == n / m
        assert (pattern.complement.n, pattern.complement.m) == (m - n, m)
        assert pattern.complement.complement == pattern
        assert tm.Pattern.parse(str(pattern)) == pattern == tm.Pattern.of((n, m)) == tm.Pattern.of(pattern)
        assert tm.Pattern.from_zeros(m - n, m) == pattern
        assert tm.Pattern.from_apex(f"m{m}n{n}_1d") == pattern
    else:
        with pytest.raises(tm.InvalidArgumentError):
            tm.Pattern(n, m)


@pytest.mark.parametrize("text", ["2:4", " 2:4", "2 : 4", "2:4\n", "02:04"])
def test_spaces_and_leading_zeros_are_read(text):
    assert tm.Pattern.parse(text) == tm.Pattern(2, 4)


def test_numpy_integers_become_int():
    pattern = tm.Pattern(np.int8(2), np.uint64(4))
    assert (type(pattern.n), type(pattern.m)) == (int, int)
    assert pattern == tm.Pattern(2, 4)
    assert hash(pattern) == hash(tm.Pattern(2, 4))


def test_patterns_are_values():
    pattern = tm.Pattern(2, 4)
    assert pickle.loads(pickle.dumps(pattern)) == copy.deepcopy(pattern) == pattern
    assert sorted([tm.Pattern(2, 8), tm.Pattern(1, 16), pattern]) == [tm.Pattern(1, 16), pattern, tm.Pattern(2, 8)]
    with pytest.raises(AttributeError):
        pattern.n = 3
    assert repr(pattern) == "Pattern(n=2, m=4)"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (
            "4:2",
            ValueError,
            "`n` must be at most m = 2, got 4. N counts the entries kept of every M: did you mean '2:4'?",
        ),
        ("2:0", ValueError, "`m` must be at least 1, got 0. It is the group size, 4 in '2:4'."),
        ("-1:4", ValueError, "`n` must be at least 0, got -1. It counts the entries kept."),
        ("2/4", ValueError, "`pattern` must read 'N:M', N entries kept of every M, got '2/4'. For example '2:4'."),
        ("", ValueError, "`pattern` must read 'N:M', N entries kept of every M, got ''. For example '2:4'."),
        ("2:4:8", ValueError, "got '2:4:8'. For example '2:4'."),
        ("2.0:4", ValueError, "got '2.0:4'. For example '2:4'."),
        ("\uff12:\uff14", ValueError, "got '\uff12:\uff14'. For example '2:4'."),
        ("9" * 5000 + ":4", ValueError, "`pattern` must read 'N:M'"),
        ([2, 4], TypeError, "`pattern` must be a Pattern, a string such as '2:4' or a pair (n, m), got [2, 4]."),
        ((2, 4, 8), TypeError, "or a pair (n, m), got (2, 4, 8)."),
        (2, TypeError, "or a pair (n, m), got 2."),
        (None, TypeError, "or a pair (n, m), got None."),
        ((2.0, 4), TypeError, "`n` must be an integer, got 2.0."),
        ((2, "4"), TypeError, "`m` must be an integer, got '4'."),
        ((True, 4), TypeError, "`n` must be an integer, got True."),
    ],
)
def test_what_is_no_pattern_is_told_so(value, error, text):
    with pytest.raises(tm.TransmaskError) as raised:
        tm.Pattern.of(value)
    assert isinstance(raised.value, error)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_parse_takes_strings_only():
    with pytest.raises(tm.InvalidTypeError, match=r"`pattern` must be a string such as '2:4', got \(2, 4\)"):
        tm.Pattern.parse((2, 4))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((5, 4), "`n_zeros` must lie in [0, m] = [0, 4], got 5."),
        ((-1, 4), "`n_zeros` must lie in [0, m] = [0, 4], got -1."),
        (("3", 4), "`n_zeros` must be an integer, got '3'."),
        ((1.5, 4), "`n_zeros` must be an integer, got 1.5."),
        ((0, 0), "`m` must be at least 1, got 0."),
        ((0, "4"), "`m` must be an integer, got '4'."),
    ],
)
def test_counts_of_zeros_that_make_no_pattern(arguments, text):
    with pytest.raises(tm.TransmaskError) as raised:
        tm.Pattern.from_zeros(*arguments)
    assert text in str(raised.value)


@pytest.mark.parametrize("name", ["m4n2", "m4n2_1d", "m4n2_2d_best", "m4n2_2d_greedy"])
def test_names_of_apex(name):
    assert tm.Pattern.from_apex(name) == tm.Pattern(2, 4)


@pytest.mark.parametrize("name", ["2:4", "n2m4_1d", "m4n2x", "", 4, None])
def test_what_is_no_name_of_apex(name):
    with pytest.raises(tm.InvalidArgumentError, match="`text` must be an apex pattern name such as 'm4n2_1d', got "):
        tm.Pattern.from_apex(name)


@pytest.mark.parametrize("value", ["exact", "at most", "EXACTLY", "", None, 3, ["exactly"], np.array(["exactly", "x"])])
def test_what_is_no_constraint(value):
    with pytest.raises(tm.InvalidArgumentError, match="`constraint` must be one of 'exactly', 'at_most', got "):
        as_constraint(value)


def test_the_closest_constraint_is_offered():
    with pytest.raises(tm.InvalidArgumentError, match=r"got 'at-most'\. Did you mean 'at_most'\?$"):
        as_constraint("at-most")


@pytest.mark.parametrize("value", ["exactly", "at_most"])
def test_constraints(value):
    assert as_constraint(value) == value
