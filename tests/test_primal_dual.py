"""`primal_dual` is exact: masks hold their constraint, and duals that one line of numpy adds up prove them optimal."""

import families
import ml_dtypes
import naive
import numba
import numpy as np
import pytest

import transmask as tm
from transmask.blocks import Blocks
from transmask.solvers import PrimalDual

pytestmark = pytest.mark.many_patterns

GAP = 1e-12
RESOLUTION = np.finfo(np.float64).smallest_subnormal  # duals of the smallest scores lie between two floats
COUNT = 2 if numba.config.DISABLE_JIT else 40  # blocks of each family


def bfloat16_rounded(rng, count, m):
    return families.gaussian(rng, count, m).astype(ml_dtypes.bfloat16).astype(np.float32)


def scaled_columns(rng, count, m):
    return families.gaussian(rng, count, m) * np.exp(rng.standard_normal((count, 1, m)))


def student_t(rng, count, m):
    return np.abs(rng.standard_t(1.5, (count, m, m)))


def powers_of_two(rng, count, m):
    return 2.0 ** rng.integers(-60, 60, (count, m, m))


def all_equal_but_one(rng, count, m):
    scores = np.full((count, m, m), 0.1)
    scores[:, rng.integers(m), rng.integers(m)] = rng.choice([0.0, 0.05, np.nextafter(0.1, 1), 7.0], count)
    return scores


def heavy_entries(rng, count, m):
    """A few entries 2**20 to 2**40 times the rest, which sit beyond the cap once the rest is resolved."""
    heavy = rng.random((count, m, m)) < 3 / m
    return families.gaussian(rng, count, m) * np.where(heavy, 2.0 ** rng.integers(20, 41, (count, 1, 1)), 1.0)


def heavy_row(rng, count, m):
    """More than N heavy entries in one row, some of which no mask keeps."""
    scores = families.gaussian(rng, count, m)
    scores[:, 0] *= 2.0 ** rng.integers(20, 41, (count, 1))
    return scores


def heavy_column(rng, count, m):
    return heavy_row(rng, count, m).swapaxes(1, 2)


def around_the_cap(rng, count, m):
    """The first entry sets the scale; others lie within one part in 2**24 of 4, 8, 16 times the rest."""
    scores = 1 + rng.integers(0, 3, (count, m, m)) * 2.0**-22
    heavy = rng.random((count, m, m)) < 1 / m
    scores = np.where(heavy, 2.0 ** rng.integers(1, 5, (count, m, m)) * (1 + rng.integers(-1, 2) * 2.0**-23), scores)
    scores[:, 0, 0] = 2.0 ** rng.integers(24, 30, count)
    return scores


def beyond_fifty_bits(rng, count, m):
    """One row of 1, and a rest whose differences lie below 2**-49."""
    scores = rng.choice([0.501, 1.499], (count, m, m)) * 2.0**-49
    scores[:, m // 2] = 1.0
    return scores


def largest_float32(rng, count, m):
    """From denormals to the largest float32 in one block."""
    return np.minimum(2.0 ** rng.uniform(-149, 128, (count, m, m)), 3.4e38).astype(np.float32)


FAMILIES = (
    *families.FAMILIES,
    bfloat16_rounded,
    scaled_columns,
    student_t,
    powers_of_two,
    all_equal_but_one,
    heavy_entries,
    heavy_row,
    heavy_column,
    around_the_cap,
    beyond_fifty_bits,
    largest_float32,
)


def draw(family, m, count=COUNT):
    """Blocks of a family as it makes them and, where float32 can hold their range, in float32; signs are random."""
    rng = np.random.default_rng(m)
    scores = np.asarray(family(rng, count, m))
    signs = rng.choice([-1, 1], scores.shape).astype(scores.dtype)
    yield scores * signs
    if scores.dtype == np.float64 and scores.max(initial=0.0) < 1e38:
        yield (scores * signs).astype(np.float32)


def solve_alone(weights, n, constraint):
    """Let the solver itself fill (B, M, M) blocks: its mask and duals as it left them, before anyone improves them."""
    count, m, _ = weights.shape
    mask = np.zeros((1, 1, count, m, m), bool)
    u, v = (np.full((1, 1, count, m), np.nan) for _ in range(2))
    blocks = Blocks(weights[None, None], mask, u, v, constraint)
    PrimalDual().solve_blocks(blocks, tm.Pattern(n, m), threads=1, warm=False)
    return mask[0, 0], u[0, 0, :, :, None], v[0, 0, :, None, :]


def assert_proven(weights, mask, u, v, n, constraint):
    """(B, M, M) masks hold their constraint, and the bound of (u, v), (B, M, 1) and (B, 1, M), is what they keep."""
    rows, columns = mask.sum(axis=2), mask.sum(axis=1)
    if constraint == "exactly":
        assert (rows == n).all()
        assert (columns == n).all()
    else:
        assert (rows <= n).all()
        assert (columns <= n).all()
        assert u.min(initial=0.0) >= 0
        assert v.min(initial=0.0) >= 0
    scores = np.abs(weights.astype(np.float64))
    bound = n * (u + v.swapaxes(1, 2)).sum(axis=(1, 2)) + (scores - u - v).clip(0).sum(axis=(1, 2))
    kept = (scores * mask).sum(axis=(1, 2))
    assert (np.abs(bound - kept) <= GAP * bound + RESOLUTION * 2 * n * rows.shape[1]).all()


def test_the_helper_fails_on_wrong_answers():
    weights = np.array([[[2.0, 1.0], [1.0, -0.5]]])
    best, u, v = np.eye(2, dtype=bool)[None], np.array([[[1.5], [0.5]]]), np.array([[[0.5, 0.0]]])
    assert_proven(weights, best, u, v, 1, "exactly")
    assert_proven(weights, best, u, v, 1, "at_most")
    for mask, more in ((~best, 0), (best & False, 0), (best | True, 0), (best, 1e-6), (best, np.nan)):
        with pytest.raises(AssertionError):
            assert_proven(weights, mask, u + more, v, 1, "exactly")
    with pytest.raises(AssertionError):
        assert_proven(weights, best, u - 1, v + 1, 1, "at_most")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 5), (4, 8), (8, 16)])
def test_a_result_proves_itself_in_one_line(family, n, m, constraint):
    for weights in draw(family, m):
        result = tm.solve(weights, (n, m), constraint=constraint, solver="primal_dual", threads=1)
        assert tm.check_mask(result.mask, (n, m), constraint=constraint).ok
        assert_proven(weights, result.mask, result.u, result.v, n, constraint)
        assert result.worst_gap <= 1e-12


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 5), (4, 8), (8, 16)])
def test_the_duals_that_the_solver_leaves_prove_its_masks(family, n, m, constraint):
    for weights in draw(family, m):
        assert_proven(weights, *solve_alone(weights, n, constraint), n, constraint)


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 5), (4, 8), (8, 16)])
def test_phase_2_makes_up_for_whatever_phase_1_leaves(limit, n, m, constraint, monkeypatch):
    monkeypatch.setattr("transmask.solvers.primal_dual.half_sweep_limit", lambda m: limit)
    for family in FAMILIES:
        for weights in draw(family, m, 1 + COUNT // 4):
            assert_proven(weights, *solve_alone(weights, n, constraint), n, constraint)


@pytest.mark.compiled
@pytest.mark.parametrize("m", [2, 3, *(pytest.param(m, marks=pytest.mark.slow) for m in (5, 6, 7, 9))])
def test_every_number_kept_of_a_block(m, constraint):
    for n in range(1, m):
        for family in FAMILIES:
            weights = next(draw(family, m, 10))
            assert_proven(weights, *solve_alone(weights, n, constraint), n, constraint)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("n", "m"),
    [
        (1, 17),
        (16, 32),
        *(pytest.param(n, m, marks=pytest.mark.slow) for n, m in ((31, 33), (20, 40), (32, 64), (63, 64))),
    ],
)
def test_large_blocks(n, m, constraint):
    for family in FAMILIES:
        for weights in draw(family, m, 2):
            assert_proven(weights, *solve_alone(weights, n, constraint), n, constraint)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 5)])
def test_what_is_kept_is_the_optimum_in_exact_arithmetic(family, n, m, constraint):
    for weights in draw(family, m, 3):
        mask = tm.transposable_mask(weights, (n, m), constraint=constraint, solver="primal_dual", threads=1)
        for block, block_mask in zip(np.abs(weights), mask, strict=True):
            assert naive.offender(block_mask, n, m, constraint) is None
            optimum = naive.best_value(block, n, constraint)
            assert optimum * (1 - naive.Fraction(GAP)) <= naive.kept_value(block, block_mask) <= optimum


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize(("n", "m", "total"), [(2, 4, 70_000), (4, 8, 25_000), (8, 16, 5_000)])
def test_a_hundred_thousand_blocks_against_minimum_cost_flow(n, m, total, constraint):
    """Half of them Gaussian; the rest from every family that another solver can be expected to resolve to 1e-12."""
    rng = np.random.default_rng(0)
    kinds = [
        family
        for family in FAMILIES
        if family not in (families.six_hundred_decades, families.huge, families.denormal, families.denormal_float32)
    ]
    part = total // 4 // len(kinds)  # a quarter for each constraint
    blocks = [np.asarray(family(rng, part, m), np.float64) for family in kinds]
    blocks.append(families.gaussian(rng, total // 2 - part * len(kinds), m))
    scores = np.concatenate(blocks)
    kept = {}
    for solver in ("primal_dual", "min_cost_flow"):
        mask = tm.transposable_mask(scores, (n, m), constraint=constraint, solver=solver)
        assert tm.check_mask(mask, (n, m), constraint=constraint).ok
        kept[solver] = (scores * mask).sum(axis=(1, 2))
    assert len(scores) == total // 2
    assert np.allclose(kept["primal_dual"], kept["min_cost_flow"], rtol=GAP, atol=0)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (4, 8)])
def test_a_planted_optimum_is_found_if_it_is_the_only_one(n, m, constraint):
    """Every kept entry exceeds the sum of its duals and every other one falls short, so no other mask is as good."""
    rng = np.random.default_rng(1)
    for _ in range(COUNT):
        planted = naive.random_mask(rng, n, m)
        u, v = rng.integers(0, 50, (2, m))
        if constraint == "exactly":  # a dual may be negative there
            u, v = u + 33, v - 30
        scores = np.maximum(0, u[:, None] + v + np.where(planted, 1, -1) * rng.integers(1, 4, (m, m)))
        for dtype in (np.float32, np.float64):
            weights = scores.astype(dtype) * 2.0 ** rng.integers(-40, 40)
            mask = tm.transposable_mask(weights, (n, m), constraint=constraint, solver="primal_dual", threads=1)
            assert np.array_equal(mask, planted)


def test_both_constraints_are_told_apart():
    scores = families.better_with_fewer(np.random.default_rng(2), 20, 8)
    kept = {
        constraint: tm.solve(scores, "4:8", constraint=constraint, solver="primal_dual").kept
        for constraint in ("exactly", "at_most")
    }
    assert kept["at_most"] > kept["exactly"] * 1.001


def test_a_certificate_agrees():
    weights = np.random.default_rng(3).standard_normal((3, 40, 24)).astype(np.float32)
    for constraint in ("exactly", "at_most"):
        result = tm.solve(weights, "4:8", constraint=constraint, solver="primal_dual")
        certificate = tm.certify(weights, result.mask, "4:8", constraint=constraint)
        assert certificate.kept == result.kept
        assert certificate.gap <= GAP
        assert certificate.upper_bound == pytest.approx(result.upper_bound, rel=1e-13)


def test_patterns_and_dtypes_do_not_get_into_each_others_way():
    """What is generated for one of them is never run for another, in whatever order they come."""
    rng = np.random.default_rng(4)
    cases = [(n, m, dtype) for n, m in ((1, 4), (3, 4), (2, 3), (5, 8)) for dtype in (np.float32, np.float64)]
    blocks = {case: rng.standard_normal((3, case[1], case[1])).astype(case[2]) for case in cases}
    for index in rng.permutation(np.repeat(np.arange(len(cases)), 3)):
        n = cases[index][0]
        weights = blocks[cases[index]]
        assert_proven(weights, *solve_alone(weights, n, "exactly"), n, "exactly")


def test_blocks_of_more_than_64_rows_are_refused():
    with pytest.raises(tm.UnsupportedPatternError) as raised:
        tm.transposable_mask(np.ones((65, 65)), "2:65", solver="primal_dual")
    assert str(raised.value) == (
        "`solver` 'primal_dual' must be given a pattern with M of at most 64, got '2:65'. "
        "Use one of 'min_cost_flow', 'network_simplex', 'milp'."
    )
