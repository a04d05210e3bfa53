"""The machine code that is generated for a pattern does what its twin in Python says, bit for bit.

The code is called by its address, through ctypes, on random and on extreme inputs. Both get copies of the same memory,
all of which must agree afterwards: what is written, and what is left alone.
"""

import ctypes
import inspect
import itertools
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import transmask as tm
from transmask.solvers.primal_dual.memory import (
    BLOCK,
    EXACT_SHIFT,
    LINE,
    MASK_AT,
    TABLE_ROWS,
    U_AT,
    V_AT,
    WEIGHTS_AT,
    Grid,
    Lanes,
    Problem,
    ThreadMemory,
    proof_of,
)
from transmask.solvers.primal_dual.numbers import (
    ALL_LANES,
    CAP,
    COARSE_BITS,
    EXACT_BITS,
    LANES,
    LARGEST_DUAL,
    LARGEST_TILE_M,
    NEVER,
    NOISE_BITS,
    PENALTY,
    SCORE_BITS,
)
from transmask.solvers.primal_dual.phase2_proof import _column_on_cycle, prove_lanes
from transmask.solvers.primal_dual.vectors import pattern_kernels
from transmask.solvers.primal_dual.vectors.confirm import confirm_block
from transmask.solvers.primal_dual.vectors.exact_lanes import load_exact_lanes, quantise_lanes
from transmask.solvers.primal_dual.vectors.half_sweep import half_sweep
from transmask.solvers.primal_dual.vectors.lane import load_duals, load_exact_lane, load_lane, score_shift, store_mask
from transmask.solvers.primal_dual.vectors.native import FUNCTIONS
from transmask.solvers.primal_dual.vectors.perturbation import load_perturbed_lane, perturb_lanes
from transmask.solvers.primal_dual.vectors.proof import mark_lanes, relax_lanes, store_masks
from transmask.solvers.primal_dual.vectors.selection_network import selection_network
from transmask.solvers.primal_dual.vectors.tile import solve_tile

PATTERNS = [(1, 2), (2, 4), (3, 5), (4, 8), (8, 16), (7, 33)]
SMALL = [(1, 2), (2, 3), (2, 4), (3, 5), (1, 7), (LARGEST_TILE_M // 2, LARGEST_TILE_M)]
LARGE = [(1, LARGEST_TILE_M + 1), (8, 16), (7, 33)]
DTYPES = [np.float32, np.float64]


def call_native(table, twin, *arguments):
    """Call the machine code that `twin` stands for; arrays by the address of their first entry, the rest as int64."""
    address = int(table[FUNCTIONS.index(twin.__name__)])
    assert address != 0
    kinds = [ctypes.c_void_p if isinstance(argument, np.ndarray) else ctypes.c_int64 for argument in arguments]
    values = [argument.ctypes.data if isinstance(argument, np.ndarray) else int(argument) for argument in arguments]
    return ctypes.CFUNCTYPE(ctypes.c_int64, *kinds)(address)(*values)


def aligned(array):
    """Copy an array to where whole vectors may be loaded from."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def assert_twins_agree(n, m, dtype, twin, *arguments):
    """Both leave the same bits in all arrays, and return the same; return what they leave, and what they return."""
    table = pattern_kernels(n, m, np.dtype(dtype).name)
    ours, theirs = ([aligned(a) if isinstance(a, np.ndarray) else a for a in arguments] for _ in range(2))
    expected, found = twin(table, *theirs), call_native(table, twin, *ours)
    for name, mine, other in zip(list(inspect.signature(twin).parameters)[1:], ours, theirs, strict=True):
        if isinstance(mine, np.ndarray):
            # The duals of zeros, which a tile leaves, may be -0.0
            mine, other = (array + 0.0 if array.dtype.kind == "f" else array for array in (mine, other))
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


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["random", "ties", "extreme", "near"])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_half_sweep(n, m, kind):
    rng = np.random.default_rng(m)
    flags = 0
    for round_ in range(20):
        scores, duals = half_sweep_inputs(rng, m, kind)
        floors = rng.choice(np.array([0, -LARGEST_DUAL], np.int32), LANES)
        strides = (m, 1) if round_ % 2 else (1, m)
        table = pattern_kernels(n, m, "float32")
        ours, theirs = ([aligned(a) for a in (scores.ravel(), *duals.reshape(3, -1), floors)] for _ in range(2))
        expected = half_sweep(table, theirs[0], *strides, *theirs[1:])
        assert call_native(table, half_sweep, ours[0], *strides, *ours[1:]) == expected
        for mine, other in zip(ours, theirs, strict=True):
            assert np.array_equal(mine, other)
        flags |= expected
    assert kind != "ties" or flags >> (2 * LANES) & ALL_LANES  # ties were seen at all


@pytest.mark.parametrize("kind", ["random", "ties", "extreme", "near"])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 5), (4, 8)])
def test_half_sweep_by_its_definition(n, m, kind):
    """The twin itself, against loops over Python integers, where nothing can overflow."""
    rng = np.random.default_rng(m)
    shifts = {2: (), 4: (), 5: (), 8: (3,)}[m]
    floored = {2: (1, 2), 4: (1, 2), 5: (1, 2), 8: (1, 3)}[m]
    for _ in range(5):
        scores, duals = half_sweep_inputs(rng, m, kind)
        others, old = duals[0].tolist(), duals[1].tolist()
        floors = rng.choice(np.array([0, -LARGEST_DUAL], np.int32), LANES)
        new, middles = duals[1].copy(), duals[2].copy()
        table = pattern_kernels(n, m, "float32")
        flags = half_sweep(table, scores.ravel(), m, 1, duals[0].ravel(), new.ravel(), middles.ravel(), floors)
        for lane in range(LANES):
            floor, before, after, ties, low = int(floors[lane]), True, True, 0, True
            for i in range(m):
                line = sorted((int(scores[i, j, lane]) - others[j][lane] for j in range(m)), reverse=True)
                hi, lo = line[n - 1], line[n]
                middle = max((hi + lo) // 2, floor)
                more = shifts + floored if floor == 0 else shifts
                step = middle - old[i][lane]
                dual = middle + sum(abs(step) >> shift for shift in more) * (1 if step > 0 else -1)
                dual = min(max(dual, floor), LARGEST_DUAL)
                assert (int(middles[i, lane]), int(new[i, lane])) == (middle, dual)
                before &= lo < old[i][lane] < hi or (old[i][lane] == floor and lo <= floor)
                after &= lo < dual < hi or (dual == floor and lo <= floor)
                ties += hi == lo > floor
                low &= middle < 1 << 22
            found = [flags >> (place * LANES + lane) & 1 for place in range(4)]
            assert found == [before, after, ties >= 2, low]


@pytest.mark.parametrize("floor", [-LARGEST_DUAL, 0])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 7), (4, 8), (8, 16), (11, 24), (16, 32), (33, 64)])
def test_a_block_that_is_settled_stays_settled(n, m, floor):
    """Also where the thresholds leave hardly any integers between them, so that every rounding counts."""
    rng = np.random.default_rng(m)
    table = pattern_kernels(n, m, "float32")
    floors = np.full(LANES, floor, np.int32)
    seen = 0
    for round_ in range(12):
        scores = (100 + rng.integers(0, (6, 12, 40)[round_ % 3], m * m * LANES)).astype(np.int32)
        u, v, middles = (np.zeros(m * LANES, np.int32) for _ in range(3))
        settled = 0
        for _ in range(20):
            rows = half_sweep(table, scores, m, 1, v, u, middles, floors)
            assert settled & ~rows & ALL_LANES == 0  # rows stay settled at their old duals
            columns = half_sweep(table, scores, 1, m, u, v, middles, floors)
            both = columns & (rows >> LANES) & ALL_LANES
            assert settled & ~both == 0
            settled = both
        seen += settled.bit_count()
    assert seen or m > 8


@pytest.mark.compiled
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), LARGE)
def test_moving_a_block_into_a_lane_and_out(n, m, dtype, weights):
    """score_shift, load_lane, load_perturbed_lane, load_exact_lane and store_mask."""
    rng = np.random.default_rng(m)
    for _ in range(10):
        stride, offset, lane = m + int(rng.integers(0, 4)), int(rng.integers(0, 9)), int(rng.integers(0, LANES))
        memory = weights(rng, dtype, offset + m * stride + 7)
        where = memory.view(np.uint8), offset, stride
        _, least_shift = assert_twins_agree(n, m, dtype, score_shift, *where)
        shift = least_shift + int(rng.choice([0, 0, 1, 24]))  # as it is when zoomed
        scores = rng.integers(-9, 9, m * m * LANES).astype(np.int32)
        with np.errstate(over="ignore"):  # what overflows is beyond the cap
            left, _ = assert_twins_agree(n, m, dtype, load_lane, *where, shift, scores, lane)
            loaded = left[4].reshape(m, m, LANES)[:, :, lane]
            others = np.arange(LANES) != lane
            assert np.array_equal(left[4].reshape(-1, LANES)[:, others], scores.reshape(-1, LANES)[:, others])
            exact = rng.integers(-9, 9, m * m * LANES)
            exact_shift = least_shift + EXACT_BITS - SCORE_BITS
            left, _ = assert_twins_agree(n, m, dtype, load_exact_lane, *where, exact_shift, exact, lane)
            assert np.array_equal(left[4].reshape(-1, LANES)[:, others], exact.reshape(-1, LANES)[:, others])
            u, v = rng.integers(-5, 6, (2, m * LANES)).astype(np.int32)
            v[lane::LANES] += loaded[0]
            mask_stride, mask_offset = m + int(rng.integers(0, 5)), int(rng.integers(0, 9))
            mask = np.full(mask_offset + m * mask_stride + 3, 7, np.uint8).view(np.bool_)
            lanes = *where, shift, u, v, lane
            assert_twins_agree(n, m, dtype, store_mask, *lanes, mask, mask_offset, mask_stride)
            noise = rng.integers(1, (1 << NOISE_BITS) + 1, m * m).astype(np.int32)
            perturbed = *where, shift, exact_shift, noise, scores, lane
            left, roots_taken = assert_twins_agree(n, m, dtype, load_perturbed_lane, *perturbed)
            shaken = left[6].reshape(m, m, LANES)
            assert np.array_equal(shaken[:, :, others], scores.reshape(m, m, LANES)[:, :, others])
            if not roots_taken:
                factors, rest = np.divmod(shaken[:, :, lane] - loaded, noise.reshape(m, m))
                assert (rest == 0).all()
                assert (factors == factors[0, 0]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_scores_in_a_lane_are_rounded_up(dtype, weights):
    """q - 1 < scaled score <= q below the cap, in exact arithmetic; only 0 becomes 0."""
    rng = np.random.default_rng(0)
    n, m = 3, 5
    table = pattern_kernels(n, m, np.dtype(dtype).name)
    for _ in range(20):
        memory = weights(rng, dtype, m * m)
        largest = np.abs(memory).max()
        least_shift = score_shift(table, memory.view(np.uint8), 0, m)
        for load, bits, integer in ((load_lane, SCORE_BITS, np.int32), (load_exact_lane, EXACT_BITS, np.int64)):
            shift = least_shift + bits - SCORE_BITS
            assert largest == 0 or 1 << (bits - 1) <= np.ldexp(np.float64(largest), shift) < 1 << bits
            scores = np.zeros(m * m * LANES, integer)
            load(table, memory.view(np.uint8), 0, m, shift, scores, 3)
            for score, q in zip(memory.tolist(), scores[3::LANES].tolist(), strict=True):
                numerator, denominator = abs(score).as_integer_ratio()
                numerator, denominator = numerator << max(shift, 0), denominator << max(-shift, 0)
                assert numerator <= q * denominator
                assert (q - 1) * denominator < numerator or q == numerator == 0


@pytest.mark.compiled
@pytest.mark.parametrize("exponent", [-1074, -1073, -1023, -1022, -1001, -1000, -150, -149, -126, 0, 1, 127, 996])
def test_the_shift_of_scores_at_the_ends_of_the_range(exponent):
    m, places = 9, np.arange(LANES) * 81
    shifts = np.zeros(LANES, np.int64)
    for largest in (np.ldexp(1.0, exponent), np.nextafter(np.ldexp(1.0, exponent + 1), 0)):
        for dtype in DTYPES if -149 <= exponent <= 127 else [np.float64]:
            weights = np.zeros(LANES * 81, dtype)
            weights[40::81] = -min(largest, float(np.finfo(dtype).max))
            _, shift = assert_twins_agree(1, m, dtype, score_shift, weights.view(np.uint8), 81, m)
            small = weights.view(np.uint8), places, 3, np.zeros(9 * LANES, np.int64), shifts
            (_, _, _, _, exact_shifts), _ = assert_twins_agree(1, 3, dtype, load_exact_lanes, *small)
            mantissa, power = np.frexp(np.abs(weights.astype(np.float64)).max())
            assert 0.5 <= mantissa < 1
            assert power + shift == SCORE_BITS
            assert (exact_shifts == EXACT_BITS - SCORE_BITS).all()  # the first nine entries are 0
            small = weights.view(np.uint8), places + 36, *small[2:]
            (_, _, _, _, exact_shifts), _ = assert_twins_agree(1, 3, dtype, load_exact_lanes, *small)
            assert (power + exact_shifts == EXACT_BITS).all()
    assert assert_twins_agree(1, m, np.float64, score_shift, np.zeros(8 * 81, np.uint8), 0, m)[1] == 0


@pytest.mark.compiled
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), SMALL)
def test_loading_and_quantising_lanes(n, m, dtype, weights):
    """The twins, and the scores against the same scores in exact arithmetic: ceilings of ceilings are ceilings."""
    rng = np.random.default_rng(m)
    for _ in range(5):
        stride = m + int(rng.integers(0, 4))
        memory = weights(rng, dtype, LANES * m * stride)
        offsets = rng.permutation(LANES) * m * stride
        empty = np.full(m * m * LANES, -5), np.full(LANES, -5)
        left, _ = assert_twins_agree(n, m, dtype, load_exact_lanes, memory.view(np.uint8), offsets, stride, *empty)
        exact, shifts = left[3], left[4]
        lost = rng.integers(0, EXACT_BITS - SCORE_BITS + 1, LANES)
        left, _ = assert_twins_agree(n, m, dtype, quantise_lanes, exact, lost, np.full(m * m * LANES, -5, np.int32))
        scores = left[2].reshape(m, m, LANES)
        for lane in range(0, LANES, 3):
            for i, j in itertools.product(range(m), repeat=2):
                score = abs(Fraction(float(memory[offsets[lane] + i * stride + j])))
                scaled = score * Fraction(2) ** int(shifts[lane] - lost[lane])
                assert scores[i, j, lane] == min(-int(-scaled // 1), CAP)


@pytest.mark.compiled
@pytest.mark.parametrize(("n", "m"), SMALL)
def test_perturbing_lanes(n, m):
    """Each position by its noise times a power of two, the same in a lane, which grows as low bits are free."""
    rng = np.random.default_rng(m)
    noise = rng.integers(1, (1 << NOISE_BITS) + 1, m * m).astype(np.int32)
    exact = rng.integers(0, 1 << EXACT_BITS, m * m * LANES)
    extras = set()
    for free in (0, 1, *range(21, 29)):
        scores = CAP - (rng.integers(0, (CAP >> free) // 2 + 1, (m * m, LANES)) << free).astype(np.int32)
        scores[:, 2] = 0
        left, _ = assert_twins_agree(n, m, np.float64, perturb_lanes, scores.ravel(), exact, noise)
        factors, rest = np.divmod(left[0].reshape(m * m, LANES) - scores, noise[:, None])
        assert (rest == 0).all()
        assert (factors == factors[0]).all()
        assert (factors[0] >= 1 << min(max(free - NOISE_BITS - 2, 0), 5)).all()
        assert factors[0, 2] == 32  # zeros leave all bits free
        extras |= set(factors[0].tolist())
    assert extras == {1, 2, 4, 8, 16, 32}


@pytest.mark.compiled
@pytest.mark.parametrize(("n", "m"), SMALL)
def test_scores_that_lie_decades_apart_are_replaced_by_roots(n, m):
    """Where most would be hidden: then by numbers in the same order, close to the eighth roots."""
    rng = np.random.default_rng(m)
    noise = rng.integers(1, (1 << NOISE_BITS) + 1, m * m).astype(np.int32)
    exact = (2.0 ** (rng.random((m * m, LANES)) * EXACT_BITS)).astype(np.int64)
    exact[0], exact[1, 8:] = (1 << EXACT_BITS) - 1, 0
    hidden = (m * m * np.linspace(0, 1, LANES)).astype(int)
    exact[1:][np.arange(1, m * m)[:, None] > hidden] |= 1 << (EXACT_BITS - 1)
    lost = np.full(LANES, EXACT_BITS - SCORE_BITS)
    table = pattern_kernels(n, m, "float64")
    scores = np.zeros((m * m, LANES), np.int32)
    quantise_lanes(table, exact.ravel(), lost, scores.ravel())
    left, _ = assert_twins_agree(n, m, np.float64, perturb_lanes, scores.ravel(), exact.ravel(), noise)
    replaced = ((scores > 0) & (scores < 1 << NOISE_BITS)).sum(axis=0) > (scores >= 1 << NOISE_BITS).sum(axis=0)
    assert replaced.any()
    assert not replaced.all()
    found = left[0].reshape(m * m, LANES)
    assert (found - scores == noise[:, None])[:, ~replaced].all()
    roots = (found - (noise[:, None] >> 4))[:, replaced]
    wanted = 2.0**20 * exact[:, replaced] ** 0.125
    positive = exact[:, replaced] > 0
    assert (np.abs(roots - wanted)[positive] <= 0.07 * wanted[positive]).all()
    assert (roots[~positive] < 1 << 10).all()
    order = np.argsort(exact[:, replaced], axis=0)
    assert (np.diff(np.take_along_axis(roots, order, axis=0), axis=0) >= 0).all()


def flows(rng, m, kind):
    """Exact scores (M, M, LANES) as `mark_lanes` leaves them for some masks; "planted": half of them are optimal."""
    shape = m, m, LANES
    scores = rng.integers(0, 1 << (2 if kind == "ties" else EXACT_BITS), shape)
    kept = rng.random(shape) < rng.random(LANES)
    if kind == "decades":
        scores >>= rng.integers(0, EXACT_BITS, shape)
    if kind == "planted":
        u, v = rng.integers(0, 1 << int(rng.integers(1, 50)), (2, m, LANES))
        kept[..., :8] = (scores > u[:, None] + v)[..., :8]
    return np.where(kept, scores, ~scores)


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["random", "ties", "extreme", "near"])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_marking_lanes(n, m, kind):
    """The twins, and the twin against loops: an entry is kept where its score exceeds u + v, not where it equals it."""
    rng = np.random.default_rng(m)
    equal, balanced = 0, set()
    for at_most in (0, 1) * 3:
        scores, duals = half_sweep_inputs(rng, m, kind)
        if kind == "near":
            duals[1, 0] = scores[0, 0] - duals[0, 0]
        if kind == "random":  # the first N of every row and, but for one of them, column
            scores[:, :, 3], duals[:, :, 3] = (np.add.outer(np.arange(m), np.arange(m)) % m < n) * 9, 4
            scores[0, 0, 4], scores[1:, 1:, 4], duals[:, :, 4] = 0, 0, 4
        exact = rng.integers(0, 1 << EXACT_BITS, (m, m, LANES))
        inputs = scores.ravel(), duals[1].ravel(), duals[0].ravel(), exact.ravel(), np.full(4 * m * LANES, 5), at_most
        left, unbalanced = assert_twins_agree(n, m, np.float64, mark_lanes, *inputs)
        marked, sides = left[3].reshape(m, m, LANES), left[4].reshape(2, 2, m, LANES)
        for lane in range(LANES):
            kept, wrong = np.zeros((m, m), bool), False
            for i, j in itertools.product(range(m), repeat=2):
                over = int(scores[i, j, lane]) - int(duals[1, i, lane]) - int(duals[0, j, lane])
                kept[i, j] = over > 0
                assert marked[i, j, lane] == (exact[i, j, lane] if over > 0 else -1 - exact[i, j, lane])
                equal += over == 0
            for axis, counts in enumerate((kept.sum(axis=1), kept.sum(axis=0))):
                for line, count in enumerate(counts):
                    wrong |= count > n or (count < n and not at_most)
                    removable = NEVER if count >= n else 0 if at_most else -PENALTY
                    addable = PENALTY if count > n else 0 if at_most else -NEVER
                    assert sides[axis, :, line, lane].tolist() == [removable, addable]
            assert unbalanced >> lane & 1 == wrong
            balanced.add(not wrong)
    assert equal or kind in ("random", "extreme")
    assert kind != "random" or balanced == {False, True}


def residual_graph(exact, sides, coarse, dummies):
    """Removable and addable scores of a block by loops, (E, E) each."""
    m = len(exact)
    removable, addable = [[NEVER] * (m + 1) for _ in range(m + 1)], [[-NEVER] * (m + 1) for _ in range(m + 1)]
    for i, j in itertools.product(range(m), repeat=2):
        score = int(exact[i, j])
        if score >= 0:
            removable[i][j] = score >> coarse
        else:
            addable[i][j] = (-1 - score) >> coarse
    for line in range(m):
        removable[line][m], addable[line][m] = sides[0, 0, line], sides[0, 1, line]
        removable[m][line], addable[m][line] = sides[1, 0, line], sides[1, 1, line]
    removable[m][m] = addable[m][m] = 0
    size = m + dummies
    return [row[:size] for row in removable[:size]], [row[:size] for row in addable[:size]]


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["planted", "ties", "decades"])
@pytest.mark.parametrize(("n", "m"), [*SMALL, (4, 9), (8, 16)])
def test_relaxing_lanes(n, m, kind):
    """The twins, round after round, and both against loops on each block and the arcs it would have followed."""
    rng = np.random.default_rng(m)
    answers = set()
    for dummies in (0, 1) * 2:
        exact = flows(rng, m, kind)
        at_most = int(rng.integers(0, 2))
        sides = np.zeros((2, 2, m, LANES), np.int64)
        counts = [(exact >= 0).sum(axis=axis) for axis in (1, 0)]
        for (removable, addable), count in zip(sides, counts, strict=True):
            removable[...] = np.where(count < n, 0 if at_most else -PENALTY, NEVER)
            addable[...] = np.where(count > n, PENALTY, -NEVER)
        coarse = rng.choice([0, COARSE_BITS], LANES)
        u, v = np.full((m + 1, LANES), 2 * NEVER), np.zeros((m + 1, LANES), np.int64)
        row_from, column_from = np.full((2, m + 1, LANES), -1)
        for _ in range(5):
            arrays = exact, sides, coarse, u, v, row_from, column_from
            left, changed = assert_twins_agree(n, m, np.float64, relax_lanes, *(a.ravel() for a in arrays), dummies)
            new_u, new_v, new_row_from, new_column_from = (array.reshape(m + 1, LANES) for array in left[3:7])
            for lane in range(LANES):
                removable, addable = residual_graph(exact[..., lane], sides[..., lane], coarse[lane], dummies)
                lines, raised = range(m + dummies), False
                for i in lines:
                    lowest = min(removable[i][j] - v[j, lane] for j in lines)
                    assert new_u[i, lane] == min(u[i, lane], lowest)
                    origin = new_row_from[i, lane]
                    assert origin == row_from[i, lane] if lowest >= u[i, lane] else (
                        removable[i][origin] - v[origin, lane] == lowest
                    )  # fmt: skip
                for j in lines:
                    highest = max(addable[i][j] - new_u[i, lane] for i in lines)
                    assert new_v[j, lane] == max(v[j, lane], highest)
                    origin = new_column_from[j, lane]
                    assert origin == column_from[j, lane] if highest <= v[j, lane] else (
                        addable[origin][j] - new_u[origin, lane] == highest
                    )  # fmt: skip
                    raised |= highest > v[j, lane]
                assert changed >> lane & 1 == raised
                answers.add(raised)
            if not dummies:
                for before, after in ((u, new_u), (v, new_v), (row_from, new_row_from), (column_from, new_column_from)):
                    assert np.array_equal(before[m], after[m])
            u, v, row_from, column_from = new_u, new_v, new_row_from, new_column_from
    assert answers >= ({False, True} if kind == "planted" else {True})


@pytest.mark.parametrize("m", [2, 3, 5, 9])
def test_a_column_on_a_cycle_is_found_if_there_is_one(m):
    """Against following the predecessors of each column for as many steps as there are columns."""
    column_on_cycle, proof_cut = (getattr(kernel, "py_func", kernel) for kernel in (_column_on_cycle, proof_of))
    proof_size = ThreadMemory(m).queue.proof.size
    rng = np.random.default_rng(m)
    seen = set()
    for _ in range(300):
        row_from, column_from = rng.integers(-1, m, (2, m, LANES))
        row_from[rng.random((m, LANES)) < rng.random()] = -1
        before = [column_from[:, 3], row_from[:, 3]]
        on_cycle = set()
        for start in range(m):
            places = [start]
            for step in range(2 * m):
                places.append(before[step % 2][places[-1]] if places[-1] >= 0 else -1)
            if start in places[2::2]:
                on_cycle.add(start)
        proof = proof_cut(rng.integers(0, m + 1, proof_size), m)
        proof.row_from[: m * LANES], proof.column_from[: m * LANES] = row_from.ravel(), column_from.ravel()
        found = int(column_on_cycle(proof, m, 3))
        assert found in on_cycle if on_cycle else found == -1
        seen.add(bool(on_cycle))
    assert seen == {True, False}


@pytest.mark.compiled
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_storing_the_masks_of_lanes(n, m):
    rng = np.random.default_rng(m)
    for which in (0, 1, 1 << (LANES - 1), ALL_LANES, *rng.integers(0, 1 << LANES, 6).tolist()):
        exact = flows(rng, m, "ties")
        stride = m + int(rng.integers(0, 5))
        offsets = 3 + rng.permutation(LANES) * m * stride
        mask = np.full(3 + LANES * m * stride + 3, 7, np.uint8)
        arguments = exact.ravel(), mask.view(np.bool_), offsets, stride, which
        left, _ = assert_twins_agree(n, m, np.float64, store_masks, *arguments)
        wanted = mask.copy()
        for lane, i, j in itertools.product(range(LANES), range(m), range(m)):
            if which >> lane & 1:
                wanted[offsets[lane] + i * stride + j] = exact[i, j, lane] >= 0
        assert np.array_equal(left[1].view(np.uint8), wanted)


def proven(n, m, at_most, blocks, kept):
    """Run `prove_lanes` on LANES blocks of float64, (LANES, M, M), from any masks; masks, u and v."""
    table = aligned(np.zeros((TABLE_ROWS, LANES), np.int64))
    table[WEIGHTS_AT] = table[MASK_AT] = np.arange(LANES) * m * m
    table[U_AT] = table[V_AT] = np.arange(LANES) * m
    strides = np.zeros((4, 4), np.int64)
    strides[:, BLOCK], strides[:, LINE] = (m * m, m * m, m, m), (m, m, 1, 1)
    mask, u, v = np.zeros(blocks.size, np.bool_), np.zeros(LANES * m), np.zeros(LANES * m)
    grid = Grid(blocks.ravel().view(np.uint8), mask, u, v, strides, 1, LANES)
    proof = ThreadMemory(m).queue.proof
    for lane in range(LANES):
        table[EXACT_SHIFT, lane] = EXACT_BITS - math.frexp(blocks[lane].max())[1]
        proof[: m * m * LANES].reshape(-1, LANES)[:, lane] = np.ceil(
            np.ldexp(blocks[lane].ravel(), int(table[EXACT_SHIFT, lane]))
        )
    scores = aligned(kept.transpose(1, 2, 0).astype(np.int32).ravel())
    zeros = aligned(np.zeros(m * LANES, np.int32))
    lanes = Lanes(scores, zeros, zeros, zeros, zeros[:LANES], table)
    problem = Problem(pattern_kernels(n, m, "float64"), np.zeros(m * m, np.int32), at_most)
    prove_lanes(problem, grid, lanes, zeros, proof, LANES, 0)
    return mask.reshape(blocks.shape), u.reshape(LANES, m), v.reshape(LANES, m)


@pytest.mark.compiled
@pytest.mark.parametrize("at_most", [False, True])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 8), (7, 8), (1, 9), (8, 16), (20, 33), (32, 64), (63, 64)])
def test_blocks_are_solved_from_whatever_mask(n, m, at_most):
    """None kept, all kept, a random part, and the mask of the least total, which takes hundreds of exchanges."""
    rng = np.random.default_rng(m)
    blocks = rng.standard_normal((LANES, m, m)) ** 2 * 10.0 ** rng.uniform(-3, 3, (LANES, 1, 1))
    blocks[::3] = np.ceil(blocks[::3] * 3)
    blocks[1::5] = rng.choice([1e297, 5e299, 1e300], blocks[1::5].shape)
    blocks[2::5] = np.where(rng.random(blocks[2::5].shape) < 1 / m, 1, rng.random(blocks[2::5].shape) * 2.0**-52)
    kept = rng.random((LANES, m, m)) < np.linspace(0, 1, LANES)[:, None, None]
    for lane in (4, 11):
        kept[lane] = tm.solve(blocks[lane].max() - blocks[lane], (n, m), solver="primal_dual").mask
    for lane in (2, 6, 13):
        kept[lane] = (np.arange(m)[:, None] + np.arange(m)) % m < n
    kept[0], kept[-1] = False, True
    masks, u, v = proven(n, m, at_most, blocks, kept)
    for lane in range(LANES):
        largest = Fraction(blocks[lane].max())
        slack = largest / 2**52  # a unit of the exact scores at most, and as much for duals as float64
        scores, row_duals, column_duals = ([Fraction(x) for x in a.ravel()] for a in (blocks[lane], u[lane], v[lane]))
        assert max(map(abs, row_duals + column_duals)) <= 4 * m * largest
        for axis, duals in ((1, row_duals), (0, column_duals)):
            for count, dual in zip(masks[lane].sum(axis=axis), duals, strict=True):
                assert count == n or (at_most and count < n and dual == 0)
                assert not at_most or dual >= 0
        for place, score in enumerate(scores):
            reduced = score - row_duals[place // m] - column_duals[place % m]
            assert reduced >= -4 * slack if masks[lane].flat[place] else reduced <= 4 * slack
    order = rng.permutation(LANES)
    for mine, other in zip((masks, u, v), proven(n, m, at_most, blocks[order], kept[order]), strict=True):
        assert np.array_equal(mine[order], other)  # whoever the neighbours are


@pytest.mark.compiled
@pytest.mark.parametrize("constraint", ["exactly", "at_most"])
@pytest.mark.parametrize("unit", [2.0**-52, 2.0**-50])
def test_thousands_of_scores_that_are_rounded_up_lose_less_than_what_counts_as_a_proof(unit, constraint):
    """Two kinds that are the same once rounded to a unit of 2**-52, or would be to one of 2**-50."""
    n, m = 32, 64
    block = np.full((m, m), unit)
    block[0] = 1 / 64 + 1e-6 * np.arange(m)
    block[0, 0] = 1.0
    first = tm.solve(block, (n, m), constraint=constraint, solver="primal_dual")
    block[1:][first.mask[1:]] = unit / 2**20
    result = tm.solve(block, (n, m), constraint=constraint, solver="primal_dual")
    assert result.worst_gap <= 1e-12


def assert_optimal_by_the_duals(scores, mask, u, v, n, at_most):
    """Keeps exactly N of each line, and every entry lies on the right side of u + v, in exact arithmetic."""
    assert (mask.sum(axis=0) == n).all()
    assert (mask.sum(axis=1) == n).all()
    u, v = ([Fraction(dual) for dual in duals.tolist()] for duals in (u, v))
    assert not at_most or min(u + v) >= 0
    for (i, j), score in np.ndenumerate(scores):
        reduced = Fraction(float(score)) - u[i] - v[j]
        assert reduced >= 0 if mask[i, j] else reduced <= 0


@pytest.mark.compiled
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), SMALL)
def test_a_tile(n, m, dtype, weights):
    rng = np.random.default_rng(m)
    solved = 0
    for at_most, duals in itertools.product((0, 1), (0, 1, 1, 1)):
        stride, offset = LANES * m + int(rng.integers(0, 4)), int(rng.integers(0, 9))
        memory = weights(rng, dtype, offset + m * stride + 7)
        mask_stride, mask_offset = LANES * m + int(rng.integers(0, 5)), int(rng.integers(0, 9))
        mask = np.full(mask_offset + m * mask_stride + 3, 7, np.uint8).view(np.bool_)
        u_stride, u_offset, v_offset = LANES + int(rng.integers(0, 5)), int(rng.integers(0, 9)), int(rng.integers(0, 9))
        u, v = np.full(u_offset + m * u_stride + 3, 7.5), np.full(v_offset + LANES * m + 3, 7.5)
        left, bits = assert_twins_agree(
            n, m, dtype, solve_tile, memory.view(np.uint8), offset, stride, mask, mask_offset, mask_stride,
            u, u_offset, u_stride, v, v_offset, duals, at_most,
        )  # fmt: skip
        places = [start + np.arange(m)[:, None] * step + np.arange(LANES * m) for start, step in (
            (offset, stride), (mask_offset, mask_stride)
        )]  # fmt: skip
        u_places = u_offset + np.arange(m)[:, None] * u_stride + np.arange(LANES)
        v_places = v_offset + np.arange(LANES * m)
        assert (np.delete(left[3].view(np.uint8), places[1].ravel()) == 7).all()
        assert (np.delete(left[6], u_places.ravel() if duals else []) == 7.5).all()
        assert (np.delete(left[9], v_places if duals else []) == 7.5).all()
        blocks, masks = (
            array[place].reshape(m, LANES, m) for array, place in zip((memory, left[3]), places, strict=True)
        )
        for lane in range(LANES):
            if not bits >> lane & 1:
                continue
            solved += 1
            block, kept = np.abs(blocks[:, lane]), masks[:, lane]
            if duals:
                u_block, v_block = left[6][u_places[:, lane]], left[9][v_places].reshape(LANES, m)[lane]
                assert_optimal_by_the_duals(block, kept, u_block, v_block, n, at_most)
            else:  # the mask is the same as with duals
                again = solve_one_tile(n, m, dtype, blocks, at_most)
                assert np.array_equal(kept, again[:, lane])
    assert solved or weights is not narrow_weights


def solve_one_tile(n, m, dtype, blocks, at_most):
    """The masks of (M, LANES, M) blocks, solved with duals."""
    memory, mask = np.ascontiguousarray(blocks).ravel(), np.zeros(blocks.size, np.bool_)
    u, v = np.zeros((2, m * LANES))
    call_native(
        pattern_kernels(n, m, np.dtype(dtype).name), solve_tile,
        memory, 0, LANES * m, mask, 0, LANES * m, u, 0, LANES, v, 0, 1, at_most,
    )  # fmt: skip
    return mask.reshape(blocks.shape)


WHOLE = """
import hashlib
from collections import Counter

import families
import numba
import numpy as np

import transmask as tm
from transmask.blocks import Blocks
from transmask.solvers import PrimalDual, primal_dual
from transmask.solvers.primal_dual import phase1_lanes, phase1_tiles, phase2_proof, phase2_ties

reached = Counter()

def count(module, name, happened):
    function = getattr(module, name)

    def counted(*arguments):
        answer = function(*arguments)
        reached[name] += happened(answer)
        return answer

    setattr(module, name, counted)

if numba.config.DISABLE_JIT:
    count(phase1_tiles, "_solve_apart", lambda solved: solved > 0)
    count(phase2_ties, "perturb_lanes", lambda _: True)
    count(phase2_ties, "zoom_bits", lambda bits: bits > 0)
    count(phase2_proof, "_cancel_cycle", bool)
    count(phase2_proof, "_set_sides", lambda _: True)
    count(phase2_proof, "_is_balanced", bool)
    count(phase2_proof, "write_duals", lambda _: True)
    count(phase1_lanes, "_prove_queue", lambda _: True)

def solve(matrix, n, m, constraint, duals):
    # What the solver itself leaves, with duals or without, for a row of blocks
    columns = matrix.shape[1] // m
    mask = np.zeros(matrix.shape, bool)
    u, v = (np.full((m, columns), np.nan).T[None, None], np.full((1, 1, columns, m), np.nan)) if duals else (None, None)
    weights, masks = (array.reshape(1, 1, m, columns, m).swapaxes(2, 3) for array in (matrix, mask))
    blocks = Blocks(weights, masks, u, v, constraint)
    PrimalDual().solve_blocks(blocks, tm.Pattern(n, m), threads=1, warm=False)
    return masks[0, 0], *((u[0, 0, :, :, None], v[0, 0, :, None]) if duals else ())

def check(scores, mask, u, v, n, constraint):
    for kept in (mask.sum(axis=1), mask.sum(axis=2)):
        assert (kept == n).all() if constraint == "exactly" else (kept <= n).all()
    assert constraint == "exactly" or min(u.min(), v.min()) >= 0
    bound = n * (u.sum(axis=(1, 2)) + v.sum(axis=(1, 2))) + (scores - u - v).clip(0).sum(axis=(1, 2))
    smallest = np.finfo(float).smallest_subnormal
    assert (np.abs(bound - (scores * mask).sum(axis=(1, 2))) <= 1e-12 * bound + 99 * smallest).all()

digest = hashlib.sha256()
rng = np.random.default_rng(0)
for family in families.FAMILIES:
    for n, m, columns in ((2, 4, 3), (3, 7, 2), (2, 4, 17), (1, 5, 17), (4, 8, 17), (4, 9, 2)):
        matrix = np.concatenate(list(np.asarray(family(rng, columns, m), np.float64)), axis=1)
        small = (matrix * min(1.0, 1e38 / max(1.0, matrix.max()))).astype(np.float32)
        primal_dual.SWEEPS_A_LINE = 1 if m == 5 else 3
        for weights in (matrix, small) if columns < 4 else (small if n % 2 else matrix,):
            scores = weights.astype(np.float64).reshape(m, columns, m).swapaxes(0, 1)
            for constraint in ("exactly", "at_most"):
                mask, u, v = solve(weights, n, m, constraint, True)
                check(scores, mask, u, v, n, constraint)
                assert np.array_equal(mask, solve(weights, n, m, constraint, False)[0])
                digest.update(mask.tobytes() + u.tobytes() + v.tobytes())
print(digest.hexdigest(), *(f"{name}:{times}" for name, times in reached.items()))
"""


def run_whole(disabled):
    """Return the digest of all answers, and how often each way to them was taken where nothing is compiled."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WHOLE],
        cwd=Path(__file__).parent, env={**os.environ, "NUMBA_DISABLE_JIT": disabled}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    digest, *reached = done.stdout.split()
    return digest, {name: int(times) for name, times in (way.split(":") for way in reached)}


@pytest.mark.slow
def test_the_whole_solver_gives_the_same_bits_as_plain_python():
    compiled_digest, _ = run_whole("0")
    digest, reached = run_whole("1")
    assert len(digest) == 64
    assert compiled_digest == digest
    assert len(reached) == 8
    assert min(reached.values()) >= 5, reached


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), [*LARGE, (16, 32), (33, 64)])
def test_half_a_sweep_where_the_block_stands(n, m, dtype):
    """Where the answer is 1, the duals prove the mask, and no other has its value; it is 1 for duals of the solver."""
    rng = np.random.default_rng(m)
    table = pattern_kernels(n, m, np.dtype(dtype).name)
    confirmed, unfilled = {"own": 0, "floor": 0, "spoilt": 0}, 0
    for round_ in range(24):
        at_most, kind = round_ % 2, ("own", "spoilt", "floor", "own")[round_ // 2 % 4]
        stride, offset = m + int(rng.integers(0, 4)), int(rng.integers(0, 9))
        memory = rng.standard_normal(offset + m * stride + 7).astype(dtype)
        block = np.lib.stride_tricks.as_strided(memory[offset:], (m, m), (stride * memory.itemsize, memory.itemsize))
        if kind == "floor":  # "at_most" leaves lines of nearly rank-one scores unfilled
            block[...] = np.outer(rng.exponential(size=m), rng.exponential(size=m)) * (1 + 0.1 * rng.random((m, m)))
        constraint = "at_most" if at_most else "exactly"
        solution = tm.solve(block.copy(), (n, m), constraint=constraint, solver="primal_dual")
        shift = score_shift(table, memory.view(np.uint8), offset, stride)
        row_duals = solution.u.ravel().copy()
        if kind == "spoilt" and round_ % 3 == 0:  # scores of 0 and 1, and all duals at the largest there is
            block[...] = np.eye(m) * 2.0**-27
            block[0, 0] = 1
            row_duals[:] = LARGEST_DUAL * 2.0**-27
        elif kind == "spoilt":
            row_duals[int(rng.integers(0, m))] += rng.choice([2.0 ** (-shift - 1), 1.5, -1.5, 1e30, -1e30])
            row_duals[int(rng.integers(0, m))] = rng.choice([0, 1, -1]) * LARGEST_DUAL * 2.0**-shift
        shift = score_shift(table, memory.view(np.uint8), offset, stride)
        u_stride, v_stride, u_offset, v_offset = (int(number) for number in rng.integers(1, 5, 4))
        u, v = np.full(m * u_stride + 5, 7.0), np.full(m * v_stride + 5, 7.0)
        u[u_offset:][::u_stride][:m] = row_duals
        mask_stride, mask_offset = m + int(rng.integers(0, 5)), int(rng.integers(0, 9))
        mask = np.full(mask_offset + m * mask_stride + 3, 7, np.uint8).view(np.bool_)
        left, answer = assert_twins_agree(
            n, m, dtype, confirm_block, memory.view(np.uint8), offset, stride, shift, u, u_offset, u_stride,
            v, v_offset, v_stride, mask, mask_offset, mask_stride, at_most,
        )  # fmt: skip
        confirmed[kind] += answer
        column_duals = left[7][v_offset:][::v_stride][:m]
        if answer:
            kept = left[10][mask_offset + np.arange(m)[:, None] * mask_stride + np.arange(m)]
            assert np.array_equal(kept, solution.mask)
            unfilled += kept.sum() < n * m
            for sums, line in ((kept.sum(axis=1), row_duals), (kept.sum(axis=0), column_duals)):
                assert ((sums == n) | ((sums < n) & (line == 0) & bool(at_most))).all()
                assert not at_most or (line >= 0).all()
            for (i, j), score in np.ndenumerate(np.abs(block)):
                reduced = Fraction(float(score)) - Fraction(row_duals[i]) - Fraction(column_duals[j])
                assert reduced > 0 if kept[i, j] else reduced < 0
        else:
            assert (left[7] == 7).all()
    assert confirmed["own"] >= 10  # phase 2, whose duals have more bits, may have solved some of twelve
    assert confirmed["spoilt"] == 0
    assert unfilled or n == 1 or m > 32


@pytest.mark.compiled
def test_loading_duals_into_a_lane():
    rng = np.random.default_rng(0)
    for n, m in LARGE:
        for lane in range(0, LANES, 5):
            duals = rng.standard_normal(3 * m + 9) * 2.0 ** rng.integers(-40, 40, 3 * m + 9)
            before = rng.integers(-9, 9, m * LANES).astype(np.int32)
            for shift in (-40, 0, 27, 150):
                left, _ = assert_twins_agree(n, m, np.float64, load_duals, duals, 4, 3, shift, before, lane)
                loaded = left[4].reshape(m, LANES)
                wanted = np.trunc(np.clip(duals[4 : 4 + 3 * m : 3] * 2.0**shift, -LARGEST_DUAL, LARGEST_DUAL))
                assert np.array_equal(loaded[:, lane], wanted)
                others = np.arange(LANES) != lane
                assert np.array_equal(loaded[:, others], before.reshape(m, LANES)[:, others])
