"""Packing 2:4 matrices with numpy alone; tests/test_torch_semi_structured.py compares it with torch's converter."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import transmask as tm
from transmask.packing import Packed, pack, unpack

DTYPES = [np.float16, ml_dtypes.bfloat16, np.int8]


def matrix(dtype, row_groups, column_groups, seed, density=0.5):
    """A 2:4 matrix, with groups that hold fewer than two values at low densities."""
    rows, columns = row_groups * (16 if dtype is np.int8 else 32), column_groups * (64 if dtype is np.int8 else 32)
    rng = np.random.default_rng(seed)
    values = rng.integers(-127, 128, (rows, columns))
    plain = rng.permuted(np.tile([True, True, False, False], (rows, columns // 4, 1)), axis=-1).reshape(rows, columns)
    kept = plain & (rng.random((rows, columns)) < 2 * density)
    return (values * kept).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    row_groups=st.integers(1, 5),
    column_groups=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.0, 0.05, 0.3, 0.5]),
)
def test_a_packed_matrix_comes_back(dtype, row_groups, column_groups, seed, density):
    dense = matrix(dtype, row_groups, column_groups, seed, density)
    packed = pack(dense)
    assert packed.values.size == dense.size // 2
    back = unpack(packed)
    assert back.dtype == dense.dtype
    assert np.array_equal(back, dense)


def test_a_nibble_names_the_two_columns_of_a_group():
    dense = np.tile(np.array([0, 5, 0, 7], np.int8), (16, 16))
    packed = pack(dense)
    assert packed.values[0, :4].tolist() == [5, 7, 5, 7]
    assert set(packed.metadata.view(np.uint32).ravel().tolist()) == {0xDDDDDDDD}  # 0b1101: columns 1 and 3


def test_packing_needs_no_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; import numpy as np; from transmask.packing import pack, unpack\n"
        "dense = np.tile(np.array([0, 5, 0, 7], np.float16), (32, 8)); print((unpack(pack(dense)) == dense).all())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_a_transposable_matrix_is_packed_both_ways_at_half_the_size():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((64, 96)).astype(np.float16)
    weights *= tm.transposable_mask(weights, "2:4")
    forward, backward = pack(weights), pack(weights.T)
    assert np.array_equal(unpack(forward), weights)
    assert np.array_equal(unpack(backward), weights.T)
    assert forward.values.nbytes + forward.metadata.nbytes == weights.nbytes * 9 // 16


@pytest.mark.parametrize(
    ("dense", "error", "text"),
    [
        (np.zeros((32, 32), np.float32), tm.InvalidTypeError, "got float32. Sparse hardware takes float32 only as 1:2"),
        (np.zeros((32, 32), np.int16), tm.InvalidTypeError, "`matrix` must be float16, bfloat16 or int8, got int16"),
        (np.zeros((31, 32), np.float16), tm.InvalidArgumentError, r"rows in multiples of 32 .* got shape \(31, 32\)"),
        (np.zeros((32, 48), np.float16), tm.InvalidArgumentError, "columns in multiples of 32 for float16"),
        (np.zeros((16, 32), np.int8), tm.InvalidArgumentError, "columns in multiples of 64 for int8"),
        (np.zeros((0, 32), np.float16), tm.InvalidArgumentError, r"got shape \(0, 32\)"),
        (np.zeros((2, 32, 32), np.float16), tm.InvalidArgumentError, r"got shape \(2, 32, 32\)"),
        (np.full((32, 32), np.nan, np.float16), tm.InvalidArgumentError, "`matrix` must be finite"),
        (np.tri(32, dtype=np.float16), tm.InvalidArgumentError, "but row 2, columns 0 to 3 keeps 3, more than 2 of 4"),
    ],
)
def test_matrices_that_cannot_be_packed(dense, error, text):
    with pytest.raises(error, match=text):
        pack(dense)


def test_what_cannot_be_unpacked():
    packed = pack(matrix(np.float16, 1, 2, seed=1))
    with pytest.raises(tm.InvalidArgumentError, match=r"of shape \(32, 4\) for values of shape \(32, 32\), got"):
        unpack(Packed(packed.values, packed.metadata[:, :2]))
    with pytest.raises(tm.InvalidArgumentError, match="must name two columns of each group in rising order"):
        unpack(Packed(packed.values, np.zeros_like(packed.metadata)))
    with pytest.raises(tm.InvalidTypeError, match="got float64"):
        unpack(Packed(packed.values.astype(np.float64), packed.metadata))
    for other, kind in ((packed.values, "ndarray"), (None, "NoneType"), ((packed.values, packed.metadata), "tuple")):
        with pytest.raises(tm.InvalidTypeError, match=f"`packed` must be a Packed matrix, got {kind}. Pass what pack"):
            unpack(other)
