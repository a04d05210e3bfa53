"""The machine code that is generated for a pattern does what its twin in Python says, bit for bit.

The code is called by its address, through ctypes, on random and on extreme inputs. Both get copies of the same memory,
all of which must agree afterwards: what is written, and what is left alone.
"""

import ctypes
import inspect
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from transmask.solvers._dual_sweep_kernels import LANES, LARGEST_DUAL, half_sweep
from transmask.solvers._lane_kernels import (
    CAP,
    NEVER,
    SCORE_BITS,
    largest_magnitude,
    load_lane,
    prepare_repair,
    scale_shift,
    store_mask,
)
from transmask.solvers._native import FUNCTIONS
from transmask.solvers._relax_kernels import relax
from transmask.solvers._selection_network import selection_network
from transmask.solvers._tile_kernels import LARGEST_TILE_M, solve_tile
from transmask.solvers.primal_dual import pattern_kernels

compiled = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")
PATTERNS = [(1, 2), (2, 4), (3, 5), (4, 8), (8, 16), (7, 33)]
DTYPES = [np.float32, np.float64]


def call_native(table, twin, *arguments):
    """Call the machine code that `twin` stands for; arrays by the address of their first entry, the rest as int64."""
    address = int(table[FUNCTIONS.index(twin.__name__)])
    assert address != 0
    result = ctypes.c_double if twin is largest_magnitude else ctypes.c_int64
    kinds = [ctypes.c_void_p if isinstance(argument, np.ndarray) else ctypes.c_int64 for argument in arguments]
    values = [argument.ctypes.data if isinstance(argument, np.ndarray) else int(argument) for argument in arguments]
    return ctypes.CFUNCTYPE(result, *kinds)(address)(*values)


def aligned(array):
    """Copy an array to where whole vectors may be loaded from."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def assert_twins_agree(n, m, dtype, twin, *arguments):
    """Both leave the same bits in all arrays, and return the same; return what they leave, and what they return."""
    table = pattern_kernels(n, m, np.dtype(dtype).itemsize)
    ours, theirs = ([aligned(a) if isinstance(a, np.ndarray) else a for a in arguments] for _ in range(2))
    expected, found = twin(table, *theirs), call_native(table, twin, *ours)
    for name, mine, other in zip(list(inspect.signature(twin).parameters)[1:], ours, theirs, strict=True):
        if isinstance(mine, np.ndarray):
            assert mine.tobytes() == other.tobytes(), name
    assert expected is None or found == expected
    return theirs, expected


def extreme_weights(rng, dtype, size):
    """Weights of every size a dtype has, of both signs: zeros, denormals, powers of two and their neighbours."""
    limits = np.finfo(dtype)
    exponents = rng.integers(limits.minexp - limits.nmant, limits.maxexp, size)
    kind = rng.integers(0, 6, size)
    values = np.ldexp(np.where(kind == 1, 1.0, 1 + rng.random(size)), exponents).astype(dtype)
    values = np.where(kind == 2, np.nextafter(np.ldexp(dtype(1), exponents), dtype(rng.integers(0, 2))), values)
    values = np.where(kind == 3, 0, values)
    values = np.where(kind == 4, rng.standard_normal(size).astype(dtype), values)
    return np.minimum(values, limits.max) * rng.choice(np.array([-1, 1], dtype), size)


def narrow_weights(rng, dtype, size):
    return rng.standard_normal(size).astype(dtype)


def integer_weights(rng, dtype, size):
    return (rng.integers(-3, 4, size) * 2.0 ** rng.integers(-30, 30)).astype(dtype)


def zero_weights(rng, dtype, size):
    return np.zeros(size, dtype)


WEIGHTS = [extreme_weights, narrow_weights, integer_weights, zero_weights]


@pytest.mark.parametrize("m", [*range(2, 25), 64])
def test_networks_select_what_sorting_does(m):
    """By the 0-1 principle a network is right if it is on all inputs of 0 and 1; beyond M = 12 on random ones."""
    if m <= 12:
        inputs = np.array(list(itertools.product((0, 1), repeat=m)), np.int8).T
    else:
        rng = np.random.default_rng(m)
        bits = rng.random((m, 1000)) < rng.random(1000)
        inputs = np.concatenate([bits, np.tri(m, m + 1, -1)[:, ::-1], rng.integers(0, m, (m, 1000))], axis=1)
    ordered = np.sort(inputs, axis=0)[::-1]
    for n in range(1, m) if m < 64 else (1, 32, 63):
        values = dict(enumerate(inputs))
        operations, nth, following = selection_network(n, m)
        for kind, target, first, second in operations:
            assert target not in values
            values[target] = (np.maximum if kind == "max" else np.minimum)(values[first], values[second])
        assert np.array_equal(values[nth], ordered[n - 1])
        assert np.array_equal(values[following], ordered[n])


def test_networks_are_as_small_as_documented():
    assert [len(selection_network(m // 2, m)[0]) for m in (4, 8, 16, 32)] == [8, 28, 92, 284]


def half_sweep_inputs(rng, m, kind):
    """Scores (M, M, LANES), and duals (M, LANES) three times, up to the largest values that occur."""
    if kind == "random":
        scores, duals = rng.integers(0, CAP + 1, (m, m, LANES)), rng.integers(-CAP, CAP, (3, m, LANES))
    elif kind == "ties":
        scores, duals = rng.integers(0, 3, (m, m, LANES)), rng.integers(-1, 2, (3, m, LANES))
    elif kind == "extreme":
        scores = rng.choice([0, 1, CAP, CAP + (1 << 20)], (m, m, LANES))
        duals = rng.choice([-LARGEST_DUAL, -1, 0, 1, LARGEST_DUAL], (3, m, LANES))
    else:  # duals that were settled or nearly so
        scores = rng.integers(0, 40, (m, m, LANES))
        duals = np.broadcast_to(np.median(scores, axis=1).astype(np.int64)[None], (3, m, LANES)) // 2
    return scores.astype(np.int32), duals.astype(np.int32)


@compiled
@pytest.mark.parametrize("kind", ["random", "ties", "extreme", "near"])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_half_sweep(n, m, kind):
    rng = np.random.default_rng(m)
    flags = 0
    for round_ in range(20):
        scores, duals = half_sweep_inputs(rng, m, kind)
        floors = rng.choice(np.array([0, -LARGEST_DUAL], np.int32), LANES)
        strides = (m, 1) if round_ % 2 else (1, m)
        table = pattern_kernels(n, m, 4)
        ours, theirs = ([aligned(a) for a in (scores.ravel(), *duals.reshape(3, -1), floors)] for _ in range(2))
        expected = half_sweep(table, theirs[0], *strides, *theirs[1:])
        assert call_native(table, half_sweep, ours[0], *strides, *ours[1:]) == expected
        for mine, other in zip(ours, theirs, strict=True):
            assert np.array_equal(mine, other)
        flags |= expected
    assert kind != "ties" or flags >> (2 * LANES) & 0xFFFF  # ties were seen at all


@pytest.mark.parametrize("kind", ["random", "ties", "extreme", "near"])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 5), (4, 8)])
def test_half_sweep_by_its_definition(n, m, kind):
    """The twin itself, against loops over Python integers, where nothing can overflow."""
    rng = np.random.default_rng(m)
    shifts = {2: (), 4: (), 5: (), 8: (3,)}[m]
    for _ in range(5):
        scores, duals = half_sweep_inputs(rng, m, kind)
        others, old = duals[0].tolist(), duals[1].tolist()
        floors = rng.choice(np.array([0, -LARGEST_DUAL], np.int32), LANES)
        new, middles = duals[1].copy(), duals[2].copy()
        table = pattern_kernels(n, m, 4)
        flags = half_sweep(table, scores.ravel(), m, 1, duals[0].ravel(), new.ravel(), middles.ravel(), floors)
        for lane in range(LANES):
            floor, before, after, ties, low = int(floors[lane]), True, True, 0, True
            for i in range(m):
                line = sorted((int(scores[i, j, lane]) - others[j][lane] for j in range(m)), reverse=True)
                hi, lo = line[n - 1], line[n]
                middle = max((hi + lo) // 2, floor)
                dual = middle + sum((middle - old[i][lane]) >> shift for shift in shifts)
                dual = min(max(dual, floor), LARGEST_DUAL)
                assert (int(middles[i, lane]), int(new[i, lane])) == (middle, dual)
                before &= lo < old[i][lane] < hi or (old[i][lane] == floor and lo <= floor)
                after &= lo < dual < hi or (dual == floor and lo <= floor)
                ties += hi == lo > floor
                low &= middle < 1 << 22
            found = [flags >> (place * LANES + lane) & 1 for place in range(4)]
            assert found == [before, after, ties >= 2, low]


@compiled
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_moving_a_block_into_a_lane_and_out(n, m, dtype, weights):
    """largest_magnitude, scale_shift, load_lane, store_mask and prepare_repair, in the order they are called."""
    rng = np.random.default_rng(m)
    for _ in range(10):
        stride, offset, lane = m + int(rng.integers(0, 4)), int(rng.integers(0, 9)), int(rng.integers(0, LANES))
        memory = weights(rng, dtype, offset + m * stride + 7)
        where = memory.view(np.uint8), offset, stride
        _, largest = assert_twins_agree(n, m, dtype, largest_magnitude, *where)
        shift = scale_shift(largest, SCORE_BITS) + int(rng.choice([0, 0, 1, 24]))  # as it is when zoomed
        scores = rng.integers(-9, 9, m * m * LANES).astype(np.int32)
        with np.errstate(over="ignore"):  # what overflows is beyond the cap
            left, _ = assert_twins_agree(n, m, dtype, load_lane, *where, shift, scores, lane)
            loaded = left[4].reshape(m, m, LANES)[:, :, lane]
            others = np.arange(LANES) != lane
            assert np.array_equal(left[4].reshape(-1, LANES)[:, others], scores.reshape(-1, LANES)[:, others])
            u, v = rng.integers(-5, 6, (2, m * LANES)).astype(np.int32)
            v[lane::LANES] += loaded[0]
            mask_stride, mask_offset = m + int(rng.integers(0, 5)), int(rng.integers(0, 9))
            mask = np.full(mask_offset + m * mask_stride + 3, 7, np.uint8).view(np.bool_)
            lanes = *where, shift, u, v, lane
            assert_twins_agree(n, m, dtype, store_mask, *lanes, mask, mask_offset, mask_stride)
            grids = [np.full((m + 1, m + 1), -5) for _ in range(4)]
            noise = rng.integers(0, 1 << 20, m * m).astype(np.int32)
            repair = noise, scale_shift(largest, 50), *grids
            assert_twins_agree(n, m, dtype, prepare_repair, *lanes, *repair)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_scores_in_a_lane_are_rounded_up(dtype, weights):
    """q - 1 < scaled score <= q below the cap, in exact arithmetic; what is smaller than any float counts as 0."""
    rng = np.random.default_rng(0)
    n, m = 3, 5
    table = pattern_kernels(n, m, np.dtype(dtype).itemsize)
    for _ in range(20):
        memory = weights(rng, dtype, m * m)
        largest = largest_magnitude(table, memory.view(np.uint8), 0, m)
        assert largest == np.abs(memory).max()
        shift = scale_shift(largest, SCORE_BITS)
        assert largest == 0 or CAP // 2 <= np.ldexp(np.float64(largest), shift) < CAP
        scores = np.zeros(m * m * LANES, np.int32)
        load_lane(table, memory.view(np.uint8), 0, m, shift, scores, 3)
        for score, q in zip(memory.tolist(), scores[3::LANES].tolist(), strict=True):
            numerator, denominator = abs(score).as_integer_ratio()
            numerator, denominator = numerator << max(shift, 0), denominator << max(-shift, 0)
            assert numerator <= q * denominator or numerator << 140 < denominator
            assert (q - 1) * denominator < numerator or q == numerator == 0


@pytest.mark.parametrize("exponent", [-1074, -1073, -1023, -1022, -150, -126, 0, 1, 127, 996])
def test_scale_shift_at_the_ends_of_the_range(exponent):
    for largest in (np.ldexp(1.0, exponent), np.nextafter(np.ldexp(1.0, exponent + 1), 0)):
        for bits in (SCORE_BITS, 50):
            shift = int(scale_shift(float(largest), bits))
            mantissa, power = np.frexp(largest)
            assert 0.5 <= mantissa < 1
            assert power + shift == bits
    assert scale_shift(0.0, SCORE_BITS) == 0


@compiled
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_relax(n, m):
    rng = np.random.default_rng(m)
    answers = set()
    for round_ in range(40):
        scores = rng.integers(0, 1 << int(rng.integers(1, 51)), (m + 1, m + 1))
        kept = rng.random((m + 1, m + 1)) < (rng.random() if round_ % 3 else 0.0)
        removable, addable = np.where(kept, scores, NEVER), np.where(kept, -NEVER, scores)
        size = 0 if round_ % 4 == 0 else 1 << int(rng.integers(0, 57))
        u, v = rng.integers(-size, size + 1, (2, m + 1))
        (_, _, new_u, new_v), changed = assert_twins_agree(n, m, np.float64, relax, removable, addable, u, v)
        assert np.array_equal(new_u, (removable - v).min(axis=1))
        assert (new_v >= v).all()
        assert changed == (new_v != v).any()
        if not changed:  # complementary slackness
            assert (removable - new_u[:, None] - new_v >= 0).all()
            assert (addable - new_u[:, None] - new_v <= 0).all()
        answers.add(changed)
    assert answers == {0, 1}


@compiled
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 3), (2, 4), (3, 5), (LARGEST_TILE_M // 2, LARGEST_TILE_M)])
def test_a_tile(n, m, weights):
    rng = np.random.default_rng(m)
    solved = 0
    for round_ in range(20):
        stride, offset = LANES * m + int(rng.integers(0, 4)), int(rng.integers(0, 9))
        memory = weights(rng, np.float32, offset + m * stride + 7)
        mask_stride, mask_offset = LANES * m + int(rng.integers(0, 5)), int(rng.integers(0, 9))
        mask = np.full(mask_offset + m * mask_stride + 3, 7, np.uint8).view(np.bool_)
        arguments = memory.view(np.uint8), offset, stride, mask, mask_offset, mask_stride, round_ % 2
        left, bits = assert_twins_agree(n, m, np.float32, solve_tile, *arguments)
        written = mask_offset + np.arange(m)[:, None] * mask_stride + np.arange(LANES * m)
        rows = left[3][written].reshape(m, LANES, m)
        for lane in range(LANES):
            if bits >> lane & 1:
                solved += 1
                assert (rows[:, lane].sum(axis=0) == n).all()
                assert (rows[:, lane].sum(axis=1) == n).all()
        assert (np.delete(left[3].view(np.uint8), written.ravel()) == 7).all()
    assert solved or weights is not narrow_weights


WHOLE = """
import hashlib

import families
import numpy as np

import transmask as tm

digest = hashlib.sha256()
rng = np.random.default_rng(0)
for family in families.FAMILIES:
    for n, m in ((2, 4), (3, 7)):
        for columns in (2, 17):
            matrix = np.concatenate(list(np.asarray(family(rng, columns, m), np.float64)), axis=1)
            small = (matrix * min(1.0, 1e38 / max(1.0, matrix.max()))).astype(np.float32)
            for weights in (matrix, small) if columns == 2 else (small,):
                for constraint in ("exactly", "at_most"):
                    options = {"constraint": constraint, "solver": "primal_dual", "threads": 1}
                    digest.update(tm.transposable_mask(weights, (n, m), **options).tobytes())
                    if columns == 2:
                        result = tm.solve(weights, (n, m), **options)
                        digest.update(result.mask.tobytes() + result.u.tobytes() + result.v.tobytes())
print(digest.hexdigest())
"""


def test_the_whole_solver_gives_the_same_bits_as_plain_python():
    found = []
    for disabled in ("0", "1"):
        environment = {**os.environ, "NUMBA_DISABLE_JIT": disabled}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", WHOLE],
            cwd=Path(__file__).parent, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert len(found[0]) == 65
    assert found[0] == found[1]
