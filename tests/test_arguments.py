"""What the public functions accept as weights, masks and axes, and what they say about the rest."""

import warnings

import ml_dtypes
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import transmask as tm
from transmask._arguments import as_axes, as_integer, as_mask, as_number, as_weights, matrix_view
from transmask.testing import weights

EXTENSIONS = [getattr(ml_dtypes, name) for name in dir(ml_dtypes) if name.startswith(("float", "int", "uint"))]
EXTENSIONS.remove(ml_dtypes.float8_e8m0fnu)  # has no zero
REAL = [
    np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64,
    np.float16, np.float32, np.float64, np.longdouble, ml_dtypes.bfloat16, *EXTENSIONS,
]  # fmt: skip


@pytest.mark.parametrize("dtype", REAL, ids=lambda dtype: np.dtype(dtype).name)
def test_every_real_dtype_is_taken_as_it_is(dtype):
    values = np.random.default_rng(0).integers(0, 3, (5, 9))
    array = (values > 0 if np.dtype(dtype).name in ("int2", "int1", "uint1") else values).astype(dtype)
    assert as_weights(array) is array
    exact = np.abs(array.astype(np.float64))
    mask = tm.transposable_mask(array, "2:4")
    assert naive.kept_value(exact, mask) == naive.matrix_value(exact, 2, 4, "exactly")
    result = tm.solve(array, "2:4")
    assert result.kept == naive.kept_value(exact, mask)
    assert result.total == exact.sum()
    assert tm.certify(array, mask, "2:4").gap <= 1e-12
    assert np.array_equal(tm.nm_mask(array, "2:4"), tm.nm_mask(exact, "2:4"))


@pytest.mark.parametrize("info", [np.iinfo(np.int8), np.iinfo(np.int32), np.iinfo(np.int64), np.iinfo(np.uint64)])
def test_the_ends_of_the_integers(info):
    array = np.zeros((4, 4), info.dtype)
    array[1, 2], array[2, 1], array[0, 0] = info.min, info.max, 1
    mask = tm.transposable_mask(array, "1:4")
    assert mask[2, 1]
    assert mask[1, 2] or info.min == 0
    result = tm.solve(array, "1:4")
    assert result.kept == abs(float(info.min)) + float(info.max) + 1.0
    assert result.gap <= 1e-12
    assert tm.nm_mask(array, "1:4")[1, 2] or info.min == 0


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (3.0, "`weights` must have at least 2 axes, got shape (). A mask is made for matrices."),
        ([1.0, 2.0], "`weights` must have at least 2 axes, got shape (2,)."),
        (np.ones((4, 4), complex), "got dtype complex128. Pass its absolute value as scores."),
        (
            np.ones((4, 4), object),
            "`weights` must hold real numbers, got dtype object. Convert it with .astype(float).",
        ),
        ([["a", "b"]], "`weights` must hold real numbers, got dtype <U1."),
        (np.zeros((4, 4), "M8[s]"), "`weights` must hold real numbers, got dtype datetime64[s]."),
        (np.zeros((4, 4), "V8"), "`weights` must hold real numbers, got dtype |V8."),
        (np.zeros((4, 4), [("a", float)]), "`weights` must hold real numbers, got dtype [('a', '<f8')]."),
        (None, "`weights` must hold real numbers, got dtype object."),
        ([[1.0, 2.0], [3.0]], "`weights` must be an array, got nested sequences of different lengths."),
    ],
    ids=repr,
)
@pytest.mark.parametrize("function", [tm.transposable_mask, tm.solve, tm.nm_mask])
def test_what_is_no_matrix_of_real_numbers(function, array, text):
    with pytest.raises(tm.TransmaskError) as raised:
        function(array, "2:4")
    assert text in str(raised.value)
    assert isinstance(raised.value, TypeError if "dtype" in text else ValueError)


FLOATS = [np.float16, np.float32, np.float64, np.longdouble, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("values", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf], [np.nan, np.inf, 1.0]])
def test_nan_and_infinity_are_counted_and_located(dtype, values):
    array = np.ones((2, 5, 7), dtype)
    array.reshape(-1)[[52, 60, 61][: len(values)]] = values
    bad = sum(not np.isfinite(value) for value in values)
    with pytest.raises(tm.InvalidArgumentError) as raised:
        tm.transposable_mask(array, "2:4")
    assert str(raised.value) == (
        f"`weights` must be finite, got {bad} of 70 entries NaN or infinite, "
        f"the first at index (1, 2, 3): {values[0]}. Replace them before a mask is made."
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_are_refused_by_their_bits_where_they_are_not_finite(dtype):
    """All 65536 of them, each among its 255 neighbours of the same sign or the other."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    finite = np.isfinite(halves.astype(np.float32))
    assert as_weights(halves[finite][None]).shape == (1, np.count_nonzero(finite))
    array = np.full((2, 3), -1, dtype)
    for half in halves[~finite]:
        array[1, 1] = half
        with pytest.raises(tm.InvalidArgumentError, match=r"got 1 of 6 entries .* first at index \(1, 1\)"):
            as_weights(array)


@pytest.mark.parametrize("layout", [lambda a: a.T, lambda a: a[::-1, ::-1], lambda a: a[::2]])
def test_the_index_is_one_of_the_callers_array(layout):
    array = layout(np.ones((6, 4)))
    array[1, 2] = np.nan
    with pytest.raises(tm.InvalidArgumentError, match=r"first at index \(1, 2\): nan"):
        tm.solve(array, "2:4")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_finite_numbers_whose_sum_overflows_their_dtype_are_fine(dtype):
    array = np.full((8, 8), ml_dtypes.finfo(dtype).max, dtype)
    result = tm.solve(array, "2:4")
    assert result.kept == 32 * float(ml_dtypes.finfo(dtype).max)
    assert result.gap == 0


@pytest.mark.parametrize(
    "value", [1.1e300, -1.7e308, np.longdouble("1e4000") if np.longdouble(0).itemsize > 8 else 1e308]
)
def test_magnitudes_whose_sums_overflow_are_refused_without_a_warning(value):
    array = np.ones((4, 4), np.asarray(value).dtype)
    array[2, 3] = value
    for function in (tm.transposable_mask, tm.solve, tm.nm_mask):
        with pytest.raises(
            tm.InvalidArgumentError, match=r"`weights` must be at most 1e\+300 in magnitude, or sums overf"
        ):
            function(array, "2:4")


def test_the_largest_magnitude_that_is_allowed_works():
    result = tm.solve(np.full((64, 64), -1e300), "32:64", solver="min_cost_flow")
    assert result.kept == pytest.approx(64 * 32 * 1e300, rel=1e-14)
    assert result.gap <= 1e-12


@given(weights())
def test_validation_copies_and_changes_nothing(array):
    before = array.tobytes()
    assert as_weights(array) is array
    assert array.tobytes() == before


@pytest.mark.parametrize(
    "dtype", [np.bool_, np.int8, np.uint8, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.int4]
)
def test_numbers_0_and_1_are_a_mask(dtype):
    mask = as_mask(np.eye(4).astype(dtype))
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, np.eye(4, dtype=bool))


@pytest.mark.parametrize(
    ("array", "text"),
    [
        ([[0, 2]], "`mask` must hold only 0 and 1, got 2 at index (0, 1). True or 1 means kept."),
        ([[0.0, 1.0], [1.0, np.nan]], "`mask` must hold only 0 and 1, got nan at index (1, 1)."),
        ([[0.0, -1.0]], "got -1.0 at index (0, 1)."),
        ([[0.5]], "got 0.5 at index (0, 0)."),
        (np.eye(2, dtype=complex), "`mask` must be bool, got dtype complex128. True means kept."),
        (np.eye(2, dtype=object), "`mask` must be bool, got dtype object."),
        ([["1", "0"]], "`mask` must be bool, got dtype <U1."),
        ([True, False], "`mask` must have at least 2 axes, got shape (2,)."),
        (True, "`mask` must have at least 2 axes, got shape ()."),
        ([[1], [0, 1]], "`mask` must be an array, got nested sequences of different lengths."),
    ],
    ids=repr,
)
def test_what_is_no_mask(array, text):
    for function in (lambda: tm.check_mask(array, "2:4"), lambda: tm.certify(np.ones((2, 2)), array, "2:4")):
        with pytest.raises(tm.TransmaskError) as raised:
            function()
        assert text in str(raised.value)


@given(st.integers(2, 5), st.data())
def test_axes_in_any_order_and_sign(ndim, data):
    first, second = data.draw(st.permutations(range(ndim)))[:2]
    signed = tuple(axis - ndim * data.draw(st.booleans()) for axis in (first, second))
    assert as_axes(signed, ndim) == (first, second)
    array = np.zeros(range(2, 2 + ndim))
    assert matrix_view(array, as_axes(signed, ndim)).shape[-2:] == (array.shape[first], array.shape[second])


@pytest.mark.parametrize("axes", [[0, 1], np.array([0, 1]), (np.int8(0), np.int64(1)), iter((0, 1))])
def test_pairs_of_any_kind(axes):
    assert as_axes(axes, 2) == (0, 1)


@pytest.mark.parametrize(
    ("axes", "text"),
    [
        (0, "`axes` must be a pair of integers, got 0."),
        (None, "`axes` must be a pair of integers, got None."),
        ((0,), "`axes` must be a pair of integers, got (0,)."),
        ((0, 1, 2), "`axes` must be a pair of integers, got (0, 1, 2)."),
        ("ab", "`axes` must be a pair of integers, got 'ab'."),
        ((0.0, 1), "`axes` must be a pair of integers, got (0.0, 1)."),
        ((True, False), "`axes` must be a pair of integers, got (True, False)."),
        ((0, 2), "`axes` must lie in [-2, 1], got (0, 2)."),
        ((-3, 0), "`axes` must lie in [-2, 1], got (-3, 0)."),
        ((1, 1), "`axes` must name two different axes, got (1, 1) for an array with 2 axes."),
        ((0, -2), "`axes` must name two different axes, got (0, -2) for an array with 2 axes."),
    ],
)
def test_what_are_no_axes(axes, text):
    for function in (tm.transposable_mask, tm.solve):
        with pytest.raises(tm.TransmaskError) as raised:
            function(np.ones((4, 4)), "2:4", axes=axes)
        assert text in str(raised.value)
    with pytest.raises(tm.TransmaskError):
        tm.check_mask(np.ones((4, 4)), "4:4", axes=axes)


def test_subclasses_are_plain_arrays():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matrix = np.asmatrix(np.arange(16.0).reshape(4, 4))
    assert type(tm.transposable_mask(matrix, "2:4")) is np.ndarray
    assert type(tm.solve(np.ma.masked_array(np.ones((4, 4))), "2:4").mask) is np.ndarray


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_integers_of_every_type_become_int(value):
    assert type(as_integer(value, argument="k")) is int


@pytest.mark.parametrize("value", [True, np.True_, 3.0, "3", None, np.array([3, 4])])
def test_what_is_not_an_integer_is_refused_with_its_remedy(value):
    with pytest.raises(tm.InvalidTypeError) as raised:
        as_integer(value, argument="k", remedy="Leave it out.")
    assert str(raised.value) == f"`k` must be an integer, got {value!r}. Leave it out."


def test_a_number_that_no_float_holds_is_refused():
    assert as_number(10**300, argument="k") == 1e300
    with pytest.raises(tm.InvalidArgumentError, match=r"`k` must fit a float, got an integer of 1000"):
        as_number(10**400, argument="k")


def test_an_integer_may_have_a_least_value():
    assert as_integer(1, argument="k", least=1) == 1
    with pytest.raises(tm.InvalidArgumentError, match=r"`k` must be at least 1, got 0\."):
        as_integer(0, argument="k", least=1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: tm.nm_mask(np.ones((4, 4)), "2:4", axis=True),
        lambda: tm.NM(2, 4, axis=True),
        lambda: tm.Channel(0.5, axis=True),
    ],
)
def test_a_bool_is_refused_as_an_axis_in_the_same_words_everywhere(call):
    with pytest.raises(tm.InvalidTypeError) as raised:
        call()
    assert str(raised.value) == "`axis` must be an integer, got True."


@pytest.mark.parametrize("call", [tm.transposable_mask, tm.solve, tm.nm_mask])
def test_masked_entries_are_refused(call):
    weights = np.ma.masked_array(np.arange(16.0).reshape(4, 4), mask=np.eye(4, dtype=bool))
    with pytest.raises(tm.InvalidArgumentError) as caught:
        call(weights, "2:4")
    assert str(caught.value) == (
        "`weights` must be an array without masked entries, got 4 of 16 masked. "
        "Fill them first, with .filled(0) to give them no worth."
    )
    unmasked = np.ma.masked_array(np.arange(16.0).reshape(4, 4))
    for plain in (unmasked, weights.filled(0)):
        mask = getattr(call(plain, "2:4"), "mask", None)
        mask = call(plain, "2:4") if mask is None else mask
        assert mask.sum() == 8
