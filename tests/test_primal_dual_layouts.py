"""The answer for a block depends on its scores alone: not on its neighbours, nor where and how they lie in memory."""

import subprocess
import sys
import tracemalloc

import families
import ml_dtypes
import numba
import numpy as np
import pytest

import transmask as tm
from transmask.solvers import PrimalDual

pytestmark = pytest.mark.many_patterns

PATTERNS = [(2, 4), (3, 5), (4, 8)]
DTYPES = [np.float32, np.float64]
COUNT = 1 if numba.config.DISABLE_JIT else 3  # blocks of each family


def all_kinds(m, dtype, repeats=COUNT):
    """Blocks of every family, (B, M, M), those that need it scaled to the range of the dtype."""
    rng = np.random.default_rng(m)
    blocks = []
    for family in families.FAMILIES:
        scores = np.asarray(family(rng, repeats, m), np.float64)
        if dtype == np.float32 and scores.max(initial=0.0) > 1e38:
            scores = scores / scores.max() * 1e38
        blocks.append(scores.astype(dtype))
    return rng.permutation(np.concatenate(blocks))


def rank_one(rng, count, m):
    """Blocks |a_i b_j| of up to two hundred binary orders."""
    exponents = rng.uniform(-100, 0, (2, count, m)) * rng.random((2, count, 1))
    return (2.0 ** exponents[0][:, :, None] * 2.0 ** exponents[1][:, None]).astype(np.float32)


def side_by_side(blocks, columns):
    """Lay (B, M, M) blocks out as a matrix with that many blocks side by side; what is left over is dropped."""
    m = blocks.shape[-1]
    rows = len(blocks) // columns
    grid = blocks[: rows * columns].reshape(rows, columns, m, m)
    return np.ascontiguousarray(grid.swapaxes(1, 2)).reshape(rows * m, columns * m)


def solve(weights, pattern, constraint, **options):
    result = tm.solve(weights, pattern, constraint=constraint, solver="primal_dual", **options)
    return result.mask, result.u, result.v


def mask_of(weights, pattern, constraint, **options):
    return tm.transposable_mask(weights, pattern, constraint=constraint, solver="primal_dual", **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_a_block_alone_equals_the_block_in_any_batch(n, m, dtype, constraint):
    blocks = all_kinds(m, dtype)
    expected = [solve(block, (n, m), constraint, threads=1) for block in blocks]
    order = np.random.default_rng(0).permutation(len(blocks))
    for numbers in (np.arange(len(blocks)), order):
        mask, u, v = solve(blocks[numbers], (n, m), constraint, threads=2)
        for index, number in enumerate(numbers):
            for found, alone in zip((mask, u, v), expected[number], strict=True):
                assert found[index].tobytes() == alone.tobytes()


@pytest.mark.parametrize("limit", [2, 5, 8, 13])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_nor_does_it_matter_when_phase_2_takes_over_the_neighbours(limit, n, m, constraint, monkeypatch):
    monkeypatch.setattr("transmask.solvers.primal_dual.half_sweep_limit", lambda m: limit)
    blocks = np.concatenate([all_kinds(m, np.float32), rank_one(np.random.default_rng(m), 30 * COUNT, m)])
    expected = np.stack([mask_of(block, (n, m), constraint, threads=1) for block in blocks])
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(blocks)), 2))
        assert np.array_equal(mask_of(blocks[order], (n, m), constraint, threads=1), expected[order])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_neither_does_it_matter_how_many_stand_side_by_side(n, m, dtype, constraint):
    """Sixteen blocks in a row are solved where they stand; what is left over is copied side by side first."""
    blocks = all_kinds(m, dtype)
    expected = np.stack([mask_of(block, (n, m), constraint, threads=1) for block in blocks])
    for columns in (1, 15, 16, 17, len(blocks)):
        wanted = side_by_side(expected, columns)
        matrix = side_by_side(blocks, columns)
        assert np.array_equal(mask_of(matrix, (n, m), constraint, threads=1), wanted)
        assert np.array_equal(solve(matrix, (n, m), constraint, threads=1)[0], wanted)


@pytest.mark.compiled
@pytest.mark.parametrize("n", [1, 2, 3])
def test_blocks_whose_scores_span_many_orders_of_magnitude_are_no_exception(n, constraint):
    """What one way resolves, another could round away."""
    blocks = rank_one(np.random.default_rng(n), 40_000, 4)
    wide, narrow = side_by_side(blocks, 16), side_by_side(blocks, 1)
    mask = mask_of(wide, (n, 4), constraint)
    assert np.array_equal(mask, side_by_side(mask_of(narrow, (n, 4), constraint).reshape(-1, 4, 4), 16))
    assert np.array_equal(mask, solve(wide, (n, 4), constraint)[0])


def layouts(array):
    """The same (K, R, C) values in other places of memory; (name, array, axes of the matrix)."""
    k, rows, columns = array.shape
    yield "Fortran", np.asfortranarray(array), (1, 2)
    strided = np.zeros((k, 2 * rows, 3 * columns), array.dtype)
    strided[:, ::2, ::3] = array
    yield "strided", strided[:, ::2, ::3], (1, 2)
    padded = np.zeros((k + 1, rows + 3, columns + 5), array.dtype)
    padded[1:, 2:-1, 1:-4] = array
    yield "part of a larger one", padded[1:, 2:-1, 1:-4], (1, 2)
    yield "reversed", np.ascontiguousarray(array[::-1, ::-1, ::-1])[::-1, ::-1, ::-1], (1, 2)
    yield "rows reversed", np.ascontiguousarray(array[:, ::-1])[:, ::-1], (1, 2)
    yield "convolution", np.ascontiguousarray(array.transpose(1, 2, 0)), (0, 1)
    yield "big endian", array.astype(array.dtype.newbyteorder(">")), (1, 2)
    memory = np.zeros(array.nbytes + 1, np.uint8)
    unaligned = memory[1:].view(array.dtype).reshape(array.shape)
    unaligned[...] = array
    yield "unaligned", unaligned, (1, 2)
    read_only = array.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only, (1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("ragged", [False, True])
def test_memory_layouts(n, m, dtype, constraint, ragged):
    blocks = all_kinds(m, dtype)[:60]
    matrix = side_by_side(np.concatenate([blocks, blocks[:36]])[: len(blocks) // 2 * 2], len(blocks) // 2)
    matrix = matrix[: 2 * m - 1, :-2] if ragged else matrix
    array = np.stack([matrix, -matrix[:, ::-1]])
    expected = solve(array, (n, m), constraint, threads=1)
    expected_mask = mask_of(array, (n, m), constraint, threads=1)
    assert np.array_equal(expected_mask, expected[0])
    for name, weights, axes in layouts(array):
        before = weights.tobytes()
        mask, u, v = solve(weights, (n, m), constraint, axes=axes, threads=2)
        assert weights.tobytes() == before, name
        assert np.array_equal(np.moveaxis(mask, axes, (1, 2)), expected[0]), name
        assert u.tobytes() == expected[1].tobytes(), name
        assert v.tobytes() == expected[2].tobytes(), name
        mask = mask_of(weights, (n, m), constraint, axes=axes, threads=2)
        assert np.array_equal(np.moveaxis(mask, axes, (1, 2)), expected_mask), name


def test_a_matrix_that_is_repeated_without_being_copied(constraint):
    matrix = side_by_side(all_kinds(4, np.float32), 20)
    repeated = np.broadcast_to(matrix, (3, *matrix.shape))
    expected = mask_of(matrix, "2:4", constraint)
    assert np.array_equal(mask_of(repeated, "2:4", constraint), np.broadcast_to(expected, repeated.shape))
    assert np.array_equal(solve(repeated, "2:4", constraint)[0], np.broadcast_to(expected, repeated.shape))


@pytest.mark.parametrize("narrow", [ml_dtypes.bfloat16, np.float16, np.int8, np.uint8, np.bool_])
@pytest.mark.parametrize(("n", "m"), [*PATTERNS, (4, 9)])
def test_the_dtype_does_not_matter_where_the_values_are_the_same(n, m, narrow, constraint):
    rng = np.random.default_rng(m)
    weights = (rng.standard_normal((4 * m, 18 * m)) * 3).astype(narrow)
    expected = solve(weights, (n, m), constraint)
    for dtype in DTYPES:
        for found, wanted in zip(solve(weights.astype(dtype), (n, m), constraint), expected, strict=True):
            assert found.tobytes() == wanted.tobytes()
        assert np.array_equal(mask_of(weights.astype(dtype), (n, m), constraint), expected[0])


@pytest.mark.parametrize(("dtype", "infinity"), [(ml_dtypes.bfloat16, 0x7F80), (np.float16, 0x7C00)])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 9)])
def test_halves_of_every_size_in_every_layout(n, m, dtype, infinity, constraint):
    """All exponents, denormals among them, under both signs."""
    rng = np.random.default_rng(m)
    shape = (2, 5 * m - 1, 40 * m + 1)
    bits = rng.integers(0, infinity, shape) | rng.integers(0, 2, shape) << 15
    array = bits.astype(np.uint16).view(dtype)
    expected = solve(array.astype(np.float32), (n, m), constraint)
    for name, weights, axes in layouts(array):
        mask, u, v = solve(weights, (n, m), constraint, axes=axes)
        assert np.array_equal(np.moveaxis(mask, axes, (1, 2)), expected[0]), name
        assert (u.tobytes(), v.tobytes()) == (expected[1].tobytes(), expected[2].tobytes()), name


def test_halves_are_not_copied():
    """What is allocated beside the mask, chunks and lists of blocks, is an eighth of a copy as float32."""
    weights = np.random.default_rng(0).standard_normal((2048, 1024)).astype(np.float32)
    for dtype in (ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3fn):
        array = weights.astype(dtype)
        mask_of(array[:8], "2:4", "exactly")
        tracemalloc.start()
        mask_of(array, "2:4", "exactly", threads=1)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most - array.size < weights.nbytes / 8


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0), (0, 4, 4), (3, 0, 4), (2, 0, 0), (4, 0, 5)])
def test_nothing_to_solve(shape, constraint):
    mask = mask_of(np.zeros(shape, np.float32), "2:4", constraint)
    assert mask.shape == shape
    result = tm.solve(np.zeros(shape), "2:4", constraint=constraint, solver="primal_dual")
    assert (result.kept, result.gap, result.mask.shape) == (0.0, 0.0, shape)
    scores = np.zeros((0, 4, 4), np.float32)
    assert PrimalDual().solve_scores(scores, tm.Pattern(2, 4), constraint).shape == (0, 4, 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 3), (4, 3), (5, 67), (11, 13)])
def test_edges_are_at_most_what_is_there(shape, constraint):
    weights = np.random.default_rng(1).standard_normal(shape)
    result = tm.solve(weights, "2:4", constraint=constraint, solver="primal_dual")
    assert tm.check_mask(result.mask, "2:4", constraint=constraint).ok
    assert result.status is tm.Status.OPTIMAL
    padded = np.zeros((-(-shape[0] // 4) * 4, -(-shape[1] // 4) * 4))
    padded[: shape[0], : shape[1]] = weights
    if constraint == "at_most":
        found = tm.solve(padded, "2:4", constraint=constraint, solver="primal_dual")
        assert found.kept == pytest.approx(result.kept, rel=1e-14)


GUARDED = """
import ctypes, mmap, sys
import ml_dtypes
import numpy as np
from transmask import Pattern
from transmask.blocks import Blocks
from transmask.solvers import PrimalDual

libc = ctypes.CDLL(None, use_errno=True)
PAGE = mmap.PAGESIZE
kept_alive = []

def guarded(shape, dtype, at_end):
    # An array that touches a page which may not be read nor written: behind its end, or before its start.
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pages = -(-size // PAGE) + 2
    memory = mmap.mmap(-1, pages * PAGE)
    kept_alive.append(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, pages - 1):
        assert libc.mprotect(ctypes.c_void_p(address + page * PAGE), PAGE, 0) == 0
    start = (pages - 1) * PAGE - size if at_end else PAGE
    return np.frombuffer(memory, dtype, int(np.prod(shape)), start).reshape(shape)

def grid(matrix, m):
    return matrix.reshape(matrix.shape[0] // m, m, -1, m).swapaxes(1, 2)[None]

rng = np.random.default_rng(0)
for n, m in ((2, 4), (1, 3), (3, 5), (8, 16), (5, 33)):
    for dtype in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64):
        for at_end in (False, True):
            weights = guarded((m, 17 * m), dtype, at_end)
            weights[...] = rng.integers(-9, 9, weights.shape)
            mask = guarded(weights.shape, np.bool_, at_end)
            u, v = guarded((m, 17), np.float64, at_end).T[None, None], guarded((1, 1, 17, m), np.float64, at_end)
            for duals in ((None, None), (u, v)):
                for constraint in ("exactly", "at_most"):
                    blocks = Blocks(grid(weights, m), grid(mask, m), *duals, constraint)
                    PrimalDual().solve_blocks(blocks, Pattern(n, m), threads=1, warm=False)
                    assert (mask.sum(axis=0) <= n).all()
print("untouched")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages of memory by mprotect")
def test_no_byte_outside_of_the_arrays_is_touched():
    done = subprocess.run([sys.executable, "-c", GUARDED], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "untouched\n"), done.stderr
