"""What is special to greedy: its walk, its tie rule, its factor, and what is said of "exactly"."""

import families
import naive
import numpy as np
import pytest

import transmask as tm
from transmask.solvers import Greedy
from transmask.solvers._greedy_kernels import heavy_to_light
from transmask.solvers._rank_kernels import MAX_RANKED_M, RANKED_LANES
from transmask.solvers.greedy import greedy_masks
from transmask.solvers.two_approximation import published_masks

PATTERNS = [(1, 2), (1, 3), (2, 3), (2, 4), (2, 5), (3, 7), (4, 8), (7, 8), (5, 13), (8, 16), (1, 17)]


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_at_most_is_the_walk_from_heavy_to_light(family, n, m):
    scores = family(np.random.default_rng(m), 3, m)
    mask = tm.transposable_mask(scores, (n, m), constraint="at_most", solver="greedy")
    for block, block_mask in zip(scores, mask, strict=True):
        assert np.array_equal(block_mask, naive.greedy_mask(np.abs(block.astype(np.float64)), n))


@pytest.mark.parametrize(
    ("n", "m"),
    [
        *(pytest.param(n, 64, marks=pytest.mark.compiled) for n in (1, 32, 63)),
        (20, 65),
        pytest.param(3, 100, marks=pytest.mark.compiled),
    ],
)
def test_the_largest_ranked_blocks_and_the_smallest_sorted_ones(n, m):
    assert MAX_RANKED_M == 64
    rng = np.random.default_rng(m)
    for family in (families.gaussian_float32, families.int4):
        scores = family(rng, 2, m).astype(np.float32)
        for block, mask in zip(scores, greedy_masks(scores, n), strict=True):
            assert np.array_equal(mask, naive.greedy_mask(block, n))


@pytest.mark.parametrize("count", [0, 1, RANKED_LANES - 1, RANKED_LANES, RANKED_LANES + 1, 3 * RANKED_LANES + 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_number_of_blocks_fills_the_lanes(count, dtype):
    rng = np.random.default_rng(count)
    for m in (3, 8):
        scores = np.concatenate([families.gaussian(rng, count, m), families.tenths(rng, count, m)]).astype(dtype)
        rng.shuffle(scores)
        assert np.array_equal(greedy_masks(scores, m // 2), heavy_to_light(scores, m // 2))


@pytest.mark.compiled
def test_every_n_of_every_m_up_to_20():
    rng = np.random.default_rng(20)
    for m in range(2, 21):
        scores = np.concatenate([families.rank_one(rng, 4, m), families.int4(rng, 4, m).astype(np.float64)])
        for n in range(1, m):
            assert np.array_equal(greedy_masks(scores, n), heavy_to_light(scores, n)), (n, m)


def test_scores_of_any_sign_are_ordered_by_value():
    scores = np.random.default_rng(0).standard_normal((70, 6, 6))
    for block, mask in zip(scores, greedy_masks(scores, 2), strict=True):
        assert np.array_equal(mask, naive.greedy_mask(block, 2))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (8, 16)])
def test_without_ties_the_transposed_block_has_the_transposed_mask(n, m, constraint):
    scores = families.gaussian(np.random.default_rng(m), 20, m)
    solver, pattern = Greedy(), tm.Pattern(n, m)
    mask = solver.solve_scores(scores.copy(), pattern, constraint)
    transposed = solver.solve_scores(scores.swapaxes(1, 2).copy(), pattern, constraint)
    assert np.array_equal(mask, transposed.swapaxes(1, 2))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_mask_contains_the_published_two_approximation(family):
    for n, m in ((1, 4), (2, 4), (3, 7), (8, 16)):
        scores = family(np.random.default_rng(n), 20, m).astype(np.float64)
        assert not (published_masks(scores, n) & ~greedy_masks(scores, n)).any()


def test_a_swap_can_lose_weight():
    scores = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert tm.solve(scores, "2:3", constraint="at_most", solver="greedy").kept == 4
    assert tm.solve(scores, "2:3", constraint="exactly", solver="greedy").kept == 3
    assert naive.brute_force_value(scores.astype(float), 2, "exactly") == 3


def test_half_of_the_optimum_is_reached_at_most():
    """The factor is tight: three entries of 1 around one that is slightly heavier."""
    scores = np.array([[1 + 1e-9, 1.0], [1.0, 0.0]])
    for constraint in ("exactly", "at_most"):
        result = tm.solve(scores, "1:2", constraint=constraint, solver="greedy")
        assert result.kept == 1 + 1e-9
        assert result.upper_bound == 2


SEARCHED = [(1, 3, "at_most"), (1, 4, "at_most"), (2, 4, "at_most")]
SEARCHED += [(n, m, "exactly") for n, m in ((1, 3), (2, 3), (1, 4), (2, 4), (3, 4), (2, 5))]


@pytest.mark.compiled
@pytest.mark.parametrize(("n", "m", "constraint"), SEARCHED)
def test_no_search_finds_less_than_half(n, m, constraint):
    """Hill climbing towards blocks of small integers on which greedy keeps as little of the optimum as possible."""
    rng = np.random.default_rng(n)
    masks = naive.all_masks(n, m, constraint).reshape(-1, m * m).astype(np.float32)
    blocks = np.ones((128, m, m), np.float32)
    shares = np.ones(len(blocks))
    for _ in range(100):
        changed = np.where(rng.random(blocks.shape) < 3 / m**2, rng.integers(0, 4, blocks.shape), blocks)
        optima = np.maximum((changed.reshape(-1, m * m) @ masks.T).max(axis=1), 1)
        kept = (changed * Greedy().solve_scores(changed.copy(), tm.Pattern(n, m), constraint)).sum(axis=(1, 2))
        found = np.where(changed.any(axis=(1, 2)), kept / optima, 1)
        better = found <= shares
        blocks[better], shares[better] = changed[better], found[better]
    assert shares.min() >= 0.5
    assert shares.min() <= 0.85


@pytest.mark.parametrize(("n", "m"), [(2, 5), (4, 8), (7, 8)])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_swaps_leave_half_of_the_optimum_on_every_family(family, n, m):
    scores = family(np.random.default_rng(m), 3, m).astype(np.float64)
    mask = Greedy().solve_scores(scores.copy(), tm.Pattern(n, m), "exactly")
    for block, block_mask in zip(scores, mask, strict=True):
        assert 2 * naive.kept_value(block, block_mask) >= naive.best_value(block, n, "exactly")


@pytest.mark.compiled
@pytest.mark.parametrize(("pattern", "loss"), [("2:4", 0.012), ("4:8", 0.010), ("8:16", 0.008)])
def test_gaussian_blocks_lose_about_one_percent(pattern, loss, constraint):
    scores = families.gaussian(np.random.default_rng(0), 500, tm.Pattern.parse(pattern).m)
    result = tm.solve(scores, pattern, constraint=constraint, solver="greedy")
    best = tm.solve(scores, pattern, constraint=constraint, solver="min_cost_flow")
    assert best.gap < 1e-12
    assert 0.002 < 1 - result.kept / best.kept < loss * (1 if constraint == "exactly" else 1.5)
