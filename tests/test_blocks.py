"""Cutting matrices into blocks: which entry is where, what is a view, what is written back, any strides."""

import tracemalloc
from itertools import product

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transmask.blocks import Blocks, block_grid, constraints_used, cut, empty_duals, score_dtype
from transmask.testing import weights

CONSTRAINTS = ["exactly", "at_most"]


def naive_blocks(matrix, m):
    """Every block of a matrix in block order, padded with zeros: (row, column, whole, block)."""
    rows, columns = matrix.shape
    for row, column in product(range(0, rows, m), range(0, columns, m)):
        part = matrix[row : row + m, column : column + m]
        block = np.zeros((m, m), matrix.dtype)
        block[: part.shape[0], : part.shape[1]] = part
        yield row, column, part.shape == (m, m), block


@settings(max_examples=200)
@given(weights(), st.integers(1, 6), st.sampled_from(CONSTRAINTS))
def test_every_block_comes_once_with_its_constraint(array, m, constraint):
    matrices = array.reshape(-1, *array.shape[-2:]) if array.size else []
    expected = [
        (block.tobytes(), constraint if whole else "at_most")
        for matrix in matrices
        for _, _, whole, block in naive_blocks(matrix, m)
    ]
    found = [
        (block.tobytes(), grid.constraint)
        for grid in cut(array, np.zeros(array.shape, bool), None, m, constraint)
        for block in grid.weights.reshape(-1, m, m)
    ]
    assert sorted(found) == sorted(expected)
    assert {used for _, used in found} == (set(constraints_used(array.shape, m, constraint)) if array.size else set())


@settings(max_examples=200)
@given(weights(dtypes=[np.float64]), st.integers(1, 6))
def test_what_is_written_into_a_block_is_at_its_place(array, m):
    mask, duals = np.zeros(array.shape, bool), empty_duals(array.shape, m)
    for grid in cut(array, mask, duals, m, "exactly"):
        grid.mask[...] = grid.weights > 0.1
        grid.u[...] = grid.weights.astype(float).max(axis=-1)
        grid.v[...] = grid.weights.astype(float).min(axis=-2)
    assert np.array_equal(mask, array > 0.1)
    rows, columns = array.shape[-2:]
    flat = [part.reshape(-1, *part.shape[-2:]) if array.size else [] for part in (array, *duals)]
    for matrix, u, v in zip(*flat, strict=True):
        for row, column, _, block in naive_blocks(matrix, m):
            assert np.array_equal(u[row : row + m, column // m], block.max(axis=1)[: rows - row])
            assert np.array_equal(v[row // m, column : column + m], block.min(axis=0)[: columns - column])


@settings(max_examples=100)
@given(weights(dtypes=[np.float32]), st.integers(1, 6))
def test_a_mask_is_read_into_the_blocks_and_a_read_only_one_is_left_alone(array, m):
    mask = array > 0
    mask.flags.writeable = False
    before = mask.tobytes()
    for grid in cut(array, mask, None, m, "exactly"):
        assert np.array_equal(grid.mask, grid.weights > 0)
        if grid.mask.flags.writeable:
            grid.mask[...] = True
    assert mask.tobytes() == before


LAYOUTS = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "reversed": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
    "every second": lambda a: np.repeat(np.repeat(a, 2, axis=0), 2, axis=1)[::2, ::2],
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_blocks_are_views_of_the_callers_memory(layout):
    array = LAYOUTS[layout](np.arange(35.0 * 23).reshape(35, 23))
    mask, duals = np.zeros(array.shape, bool), empty_duals(array.shape, 4)
    whole = next(cut(array, mask, duals, 4, "exactly"))
    assert whole.weights.shape == (1, 8, 5, 4, 4)
    assert np.shares_memory(whole.weights, array)
    assert np.shares_memory(whole.mask, mask)
    assert np.shares_memory(whole.u, duals[0])
    assert np.shares_memory(whole.v, duals[1])


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), (2, 3, 0, 1), (3, 0, 1, 2), (0, 2, 1, 3)])
def test_batch_axes_that_cannot_be_merged_are_walked_not_copied(order):
    array = np.arange(3.0 * 5 * 160 * 80).reshape(3, 5, 160, 80).transpose(np.argsort(order))
    array = np.moveaxis(array, (array.shape.index(160), array.shape.index(80)), (-2, -1))
    mask = np.zeros(array.shape, bool)
    tracemalloc.start()
    try:
        grids = list(cut(array, mask, None, 4, "exactly"))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(grid.count for grid in grids) == 3 * 5 * 40 * 20
    assert all(np.shares_memory(grid.weights, array) for grid in grids)
    assert peak_bytes < array.nbytes / 20


def test_a_big_matrix_with_edges_costs_only_its_edges():
    array, mask = np.zeros((1027, 2050), np.float32), np.zeros((1027, 2050), bool)
    tracemalloc.start()
    try:
        for grid in cut(array, mask, None, 4, "exactly"):
            grid.mask[...] = True
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert mask.all()
    assert peak_bytes < 200_000


@settings(max_examples=200)
@given(st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)), st.integers(1, 60))
def test_parts_of_a_grid_are_the_grid_in_order(grid_shape, limit):
    array = np.arange(np.prod(grid_shape) * 4.0).reshape(*grid_shape, 2, 2)
    mask, u, v = np.zeros(array.shape, bool), array[..., 0] + 0.5, array[..., 0, :] + 0.25
    whole = Blocks(array, mask, u, v, "at_most")
    parts = list(whole.split(limit))
    assert all(1 <= part.count <= limit for part in parts)
    assert len(parts) <= 4 * -(-whole.count // limit) + sum(grid_shape)
    for name in ("weights", "mask", "u", "v"):
        values = getattr(whole, name)
        tail = values.shape[3:]
        joined = np.concatenate([getattr(part, name).reshape(-1, *tail) for part in parts])
        assert np.array_equal(joined, values.reshape(-1, *tail))
        assert all(np.shares_memory(getattr(part, name), values) for part in parts)
    assert {part.constraint for part in parts} == {"at_most"}
    assert all(part.u is None is part.v for part in Blocks(array, mask, None, None, "exactly").split(limit))


@settings(max_examples=100)
@given(weights(max_side=8, max_batch_axes=1), st.integers(1, 4))
def test_scores_are_fresh_contiguous_magnitudes_in_block_order(array, m):
    for grid in cut(array, np.zeros(array.shape, bool), None, m, "exactly"):
        scores = grid.scores()
        assert scores.shape == (grid.count, m, m)
        assert scores.dtype == score_dtype(array.dtype)
        assert scores.flags.c_contiguous
        assert scores.flags.writeable
        assert not np.shares_memory(scores, array)
        assert np.array_equal(scores, np.abs(grid.weights.astype(np.float64)).reshape(-1, m, m))


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ([bool, np.int8, np.uint8, np.int16, np.uint16], np.float32),
        ([np.float16, np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4], np.float32),
        ([np.int32, np.uint32, np.int64, np.uint64, np.float64, np.longdouble], np.float64),
    ],
)
def test_scores_are_float32_exactly_where_that_holds_every_value(dtypes, expected):
    for dtype in dtypes:
        assert score_dtype(dtype) is expected


@pytest.mark.parametrize(
    ("shape", "m", "grid", "exactly", "at_most"),
    [
        ((8, 12), 4, (2, 3), ["exactly"], ["at_most"]),
        ((8, 13), 4, (2, 4), ["exactly", "at_most"], ["at_most"]),
        ((5, 3, 9, 12), 4, (3, 3), ["exactly", "at_most"], ["at_most"]),
        ((3, 12), 4, (1, 3), ["at_most"], ["at_most"]),
        ((1, 1), 4, (1, 1), ["at_most"], ["at_most"]),
        ((7, 5), 1, (7, 5), ["exactly"], ["at_most"]),
        ((0, 8), 4, (0, 2), [], []),
    ],
)
def test_grids_and_the_constraints_they_need(shape, m, grid, exactly, at_most):
    assert block_grid(shape, m) == grid
    assert constraints_used(shape, m, "exactly") == exactly
    assert constraints_used(shape, m, "at_most") == at_most
    u, v = empty_duals(shape, m)
    assert u.shape == (*shape[:-1], grid[1])
    assert v.shape == (*shape[:-2], grid[0], shape[-1])
