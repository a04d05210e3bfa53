"""Small blocks that tie, or that no tile can solve: proven, as good as another solver's, and each on its own.

Up to M = 8 blocks go through two stages, and a block that the first leaves is solved by the next. Whichever it is, and
whoever its neighbours are, mask and duals are those of the block alone, bit for bit.
"""

import itertools

import families
import naive
import numpy as np
import pytest

import transmask as tm
from transmask.blocks import Blocks
from transmask.solvers import PrimalDual

GAP = 1e-12
RESOLUTION = 64 * np.finfo(np.float64).smallest_subnormal  # duals of the smallest scores lie between two floats
SIZES = range(2, 9)
DTYPES = [np.float32, np.float64]


def rank_one_decades(rng, count, m):
    """|a_i b_j| over sixty decades: long cycles, and under "at_most" lines that stay below N."""
    return 10.0 ** (rng.uniform(-15, 15, (count, m, 1)) + rng.uniform(-15, 15, (count, 1, m)))


def few_values(rng, count, m):
    """Two or three values far apart: every sum ties with many others."""
    return rng.choice(10.0 ** rng.integers(-12, 12, 3), (count, m, m))


def integers_of_many_sizes(rng, count, m):
    return rng.integers(0, 1 << rng.integers(1, 50, (count, 1, 1)), (count, m, m)).astype(np.float64)


def close_to_ties(rng, count, m):
    """Integers, and differences between them that the 28 bits of a lane cannot hold but float64 can."""
    return rng.integers(1, 4, (count, m, m)) + rng.integers(0, 3, (count, m, m)) * 2.0**-40


def one_line_of_zeros(rng, count, m):
    scores = rng.integers(0, 3, (count, m, m)).astype(np.float64)
    scores[:, m - 1] = 0.0
    scores[::2, :, 0] = 0.0
    return scores


def least_float64(rng, count, m):
    """Around the least normal number, where tiles cannot scale."""
    return rng.integers(0, 5, (count, m, m)) * np.finfo(np.float64).tiny / 2


def largest_float64(rng, count, m):
    """The largest that is not refused."""
    return rng.choice([1e297, 5e299, 7.5e299, 1e300], (count, m, m))


def least_float32(rng, count, m):
    return (rng.integers(0, 5, (count, m, m)) * np.finfo(np.float32).tiny / 2).astype(np.float32)


def largest_float32(rng, count, m):
    largest = np.finfo(np.float32).max
    return rng.choice(np.array([0, largest / 2, np.nextafter(largest, np.float32(0)), largest]), (count, m, m))


def around_the_least_exponent(rng, count, m):
    """Scores about 2**-100, where tiles stop."""
    return (rng.integers(0, 5, (count, m, m)) * 2.0 ** rng.integers(-104, -98, (count, 1, 1))).astype(np.float32)


FAMILIES = (
    *families.FAMILIES,
    rank_one_decades,
    few_values,
    integers_of_many_sizes,
    close_to_ties,
    one_line_of_zeros,
    least_float64,
    largest_float64,
    least_float32,
    largest_float32,
    around_the_least_exponent,
)
ORACLE_FAILS = (families.six_hundred_decades,)  # the other solvers scale a block to integers of 53 bits at most


def draw(family, m, count):
    """(B, M, M) weights of both signs, in every dtype that can hold them."""
    rng = np.random.default_rng(m)
    scores = np.asarray(family(rng, count, m))
    weights = scores * rng.choice([-1, 1], scores.shape).astype(scores.dtype)
    yield weights
    if weights.dtype == np.float64 and scores.max(initial=0.0) <= np.finfo(np.float32).max:
        yield weights.astype(np.float32)


def all_kinds(m, dtype, count=3):
    """Blocks of every family, (B, M, M), in random order; those beyond the range of the dtype are scaled."""
    rng = np.random.default_rng(m)
    blocks = []
    for family in FAMILIES:
        scores = np.asarray(family(rng, count, m), np.float64)
        if dtype == np.float32 and scores.max() > 1e38:
            scores = scores / scores.max() * 1e38
        blocks.append((scores * rng.choice([-1, 1], scores.shape)).astype(dtype))
    return rng.permutation(np.concatenate(blocks))


def patterns(m):
    """Three N of an M, where there are as many."""
    return sorted({1, m // 2, m - 1})


def side_by_side(blocks, columns):
    """Lay (B, M, M) blocks out as a matrix with that many blocks side by side; what is left over is dropped."""
    m = blocks.shape[-1]
    rows = len(blocks) // columns
    return blocks[: rows * columns].reshape(rows, columns, m, m).swapaxes(1, 2).reshape(rows * m, columns * m)


def apart(matrix, m):
    """Cut a matrix into (B, M, M) blocks."""
    rows, columns = matrix.shape
    return matrix.reshape(rows // m, m, columns // m, m).swapaxes(1, 2).reshape(-1, m, m)


def solve_alone(weights, n, constraint, threads=1):
    """Let the solver fill (B, M, M) blocks side by side: mask and duals before the certificate could improve them."""
    count, m, _ = weights.shape
    matrix, mask = side_by_side(weights, count), np.zeros((m, count * m), bool)
    u, v = np.full((m, count), np.nan), np.full((1, count, m), np.nan)
    grids = (array.reshape(1, 1, m, count, m).swapaxes(2, 3) for array in (matrix, mask))
    blocks = Blocks(*grids, u.T[None, None], v[None], constraint)
    PrimalDual().solve_blocks(blocks, tm.Pattern(n, m), threads=threads, warm=False)
    return apart(mask, m), u.T[:, :, None], v[0][:, None, :]


def assert_proven(weights, mask, u, v, n, constraint):
    """(B, M, M) masks hold their constraint, and the bound of (u, v), (B, M, 1) and (B, 1, M), is what they keep."""
    for kept in (mask.sum(axis=1), mask.sum(axis=2)):
        assert (kept == n).all() if constraint == "exactly" else (kept <= n).all()
    assert constraint == "exactly" or min(u.min(), v.min()) >= 0
    scores = np.abs(weights.astype(np.float64))
    bound = n * (u.sum(axis=(1, 2)) + v.sum(axis=(1, 2))) + (scores - u - v).clip(0).sum(axis=(1, 2))
    assert (np.abs(bound - (scores * mask).sum(axis=(1, 2))) <= GAP * bound + RESOLUTION).all()


def solve(weights, pattern, constraint, **options):
    return tm.solve(weights, pattern, constraint=constraint, solver="primal_dual", **options)


def mask_of(weights, pattern, constraint, **options):
    return tm.transposable_mask(weights, pattern, constraint=constraint, solver="primal_dual", **options)


def test_the_helper_fails_on_wrong_answers():
    weights = np.array([[[2.0, 1.0], [1.0, -0.5]]])
    best, u, v = np.eye(2, dtype=bool)[None], np.array([[[1.5], [0.5]]]), np.array([[[0.5, 0.0]]])
    assert_proven(weights, best, u, v, 1, "exactly")
    for mask, more in ((~best, 0), (best & False, 0), (best | True, 0), (best, 1e-6), (best, np.nan)):
        with pytest.raises(AssertionError):
            assert_proven(weights, mask, u + more, v, 1, "exactly")
    with pytest.raises(AssertionError):
        assert_proven(weights, best, u - 1, v + 1, 1, "at_most")


@pytest.mark.compiled
@pytest.mark.parametrize("m", SIZES)
def test_every_family_is_proven(m, constraint):
    """By the duals the solver leaves, those of the result, and a certificate that has seen neither."""
    for n, family in itertools.product(patterns(m), FAMILIES):
        for weights in draw(family, m, 19):
            assert_proven(weights, *solve_alone(weights, n, constraint), n, constraint)
            result = solve(weights, (n, m), constraint, threads=1)
            assert_proven(weights, result.mask, result.u[:, :, :1], result.v[:, :1], n, constraint)
            assert tm.certify(weights, result.mask, (n, m), constraint=constraint, threads=1).gap <= GAP


@pytest.mark.compiled
@pytest.mark.parametrize("m", SIZES)
def test_as_much_is_kept_as_another_solver_keeps(m, constraint):
    for n in patterns(m):
        blocks = []
        for family in FAMILIES:
            if family not in ORACLE_FAILS:
                scores = np.abs(np.asarray(next(draw(family, m, 6)), np.float64))
                blocks.append(np.ldexp(scores, -np.frexp(scores.max(axis=(1, 2), keepdims=True))[1]))
        scores = np.concatenate(blocks)
        kept = [
            (scores * tm.transposable_mask(scores, (n, m), constraint=constraint, solver=solver)).sum(axis=(1, 2))
            for solver in ("primal_dual", "min_cost_flow")
        ]
        assert np.allclose(*kept, rtol=GAP, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_is_the_optimum_in_exact_arithmetic(family, constraint):
    for m in (2, 3, 4, 6):
        for weights in draw(family, m, 1):
            for n in patterns(m)[:2]:
                mask = mask_of(weights[0], (n, m), constraint, threads=1)
                assert naive.offender(mask, n, m, constraint) is None
                optimum = naive.best_value(np.abs(weights[0]), n, constraint)
                assert optimum * (1 - naive.Fraction(GAP)) <= naive.kept_value(np.abs(weights[0]), mask) <= optimum


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", SIZES)
def test_a_block_depends_on_itself_alone(m, dtype, constraint):
    """Any width, position, neighbours, threads and memory order; with duals or without, with a start or without."""
    n = max(1, m // 2)
    blocks = all_kinds(m, dtype)
    alone = [solve(block, (n, m), constraint, threads=1) for block in blocks]
    mask = np.stack([result.mask for result in alone])
    u, v = (np.stack([dual.reshape(m) for dual in duals]) for duals in zip(*((r.u, r.v) for r in alone), strict=True))
    left = solve_alone(blocks, n, constraint)
    settled = [
        not tm.certify(block, *kept, (n, m), constraint=constraint, duals=duals).unproven
        for block, *kept, duals in zip(blocks, left[0], zip(*left[1:], strict=True), strict=True)
    ]  # what the solver left is better than nothing where it proves nothing, and may have been improved
    assert sum(settled) > len(settled) / 2
    assert np.array_equal(left[0], mask)
    for found, wanted in zip(left[1:], (u[:, :, None], v[:, None]), strict=True):
        assert found[settled].tobytes() == wanted[settled].tobytes()
    for number, columns in enumerate((1, 15, 16, 17, 40, len(blocks))):
        order = np.random.default_rng(number).permutation(np.tile(np.arange(len(blocks)), 2))
        order = order[: len(order) // columns * columns]
        matrix = side_by_side(blocks[order], columns)
        matrix = np.asfortranarray(matrix) if number % 2 else matrix
        shape = len(matrix) // m, columns, m
        wanted = (
            side_by_side(mask[order], columns),
            u[order].reshape(shape).swapaxes(1, 2).reshape(-1, columns),
            v[order].reshape(shape).reshape(shape[0], -1),
        )
        threads = 1 + number % 3
        result = solve(matrix, (n, m), constraint, threads=threads)
        warm = solve(matrix, (n, m), constraint, threads=threads, start=solve(matrix[::-1], (n, m), constraint))
        for found in (result, warm):
            for array, expected in zip((found.mask, found.u, found.v), wanted, strict=True):
                assert array.tobytes() == np.ascontiguousarray(expected).tobytes()
        assert np.array_equal(mask_of(matrix, (n, m), constraint, threads=threads), wanted[0])
        doubled = np.stack([matrix, -matrix])
        for found in mask_of(doubled, (n, m), constraint, threads=threads):
            assert np.array_equal(found, wanted[0])


@pytest.mark.compiled
@pytest.mark.parametrize("m", SIZES)
def test_powers_of_two_change_no_mask(m, constraint):
    """What is too small for a tile is solved by another stage, which finds the same."""
    n = max(1, m // 2)
    kinds = families.int4, families.gaussian, few_values, families.half_zeros, rank_one_decades, close_to_ties
    for family in kinds:
        weights = np.asarray(next(draw(family, m, 33)), np.float64)
        expected, u, v = solve_alone(weights, n, constraint)
        for exponent in (-700, -300, -50, 0, 50, 900):
            mask, scaled_u, scaled_v = solve_alone(np.ldexp(weights, exponent), n, constraint)
            assert np.array_equal(mask, expected)
            same_stage = np.abs(weights).max(axis=(1, 2)) * 2.0 ** min(exponent, 0) > 2.0**-99
            for found, dual in ((scaled_u, u), (scaled_v, v)):
                assert np.array_equal(found[same_stage], np.ldexp(dual, exponent)[same_stage])


@pytest.mark.compiled
@pytest.mark.parametrize("sweeps", [0, 1])
@pytest.mark.parametrize("m", SIZES)
def test_masks_are_improved_until_they_are_proven(m, sweeps, constraint, monkeypatch):
    """However few sweeps there are: what does not settle starts from a mask that knows nothing of the scores."""
    monkeypatch.setattr("transmask.solvers.primal_dual.SWEEPS_A_LINE", sweeps)
    for n, family in itertools.product(patterns(m), FAMILIES):
        for weights in draw(family, m, 19):
            assert_proven(weights, *solve_alone(weights, n, constraint), n, constraint)
