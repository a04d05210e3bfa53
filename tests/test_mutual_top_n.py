"""What is special to mutual_top_n: it is the published walk, and it keeps less than what completes it."""

import families
import numpy as np
import pytest

import transmask as tm
from transmask.solvers import MutualTopN
from transmask.solvers.mutual_top_n import published_masks

PATTERNS = [(1, 2), (1, 3), (2, 3), (2, 4), (3, 5), (3, 7), (4, 8), (7, 8), (8, 16)]


def light_to_heavy(scores, n):
    """The published walk: prune while the row or the column still has fewer than M - N pruned entries."""
    m = len(scores)
    kept = np.ones((m, m), bool)
    order = sorted(range(m * m), key=lambda index: (scores.flat[index], -index))
    for index in order:
        row, column = divmod(index, m)
        if (~kept[row]).sum() < m - n or (~kept[:, column]).sum() < m - n:
            kept[row, column] = False
    return kept


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_ranks_give_what_the_published_walk_gives(family, n, m):
    scores = family(np.random.default_rng(m), 3, m).astype(np.float64)
    for block, mask in zip(scores, published_masks(scores, n), strict=True):
        assert np.array_equal(mask, light_to_heavy(block, n))


@pytest.mark.parametrize(
    ("n", "m"), [*(pytest.param(n, 64, marks=pytest.mark.compiled) for n in (3, 63)), (3, 65), (60, 65)]
)
def test_the_largest_ranked_blocks_and_the_smallest_sorted_ones(n, m):
    rng = np.random.default_rng(m)
    for family in (families.gaussian_float32, families.int4):
        scores = family(rng, 1, m).astype(np.float32)
        assert np.array_equal(published_masks(scores, n)[0], light_to_heavy(scores[0], n))


def test_the_solver_returns_the_published_masks():
    scores = families.gaussian_float32(np.random.default_rng(0), 70, 8)
    found = MutualTopN().solve_scores(scores.copy(), tm.Pattern(4, 8), "at_most")
    assert np.array_equal(found, np.array([light_to_heavy(block, 4) for block in scores]))


def test_exactly_is_refused_with_solvers_that_take_it():
    message = "must be given the constraint 'at_most', got 'exactly'. Use one of 'primal_dual', 'enumeration'"
    with pytest.raises(tm.UnsupportedPatternError, match=message):
        tm.transposable_mask(np.ones((4, 4)), "2:4", solver="mutual_top_n")


@pytest.mark.compiled
def test_what_it_loses_on_gaussian_weights():
    """Every exact mask loses nothing, greedy less than the published masks; wider blocks lose less."""
    weights = np.random.default_rng(0).standard_normal((512, 512), np.float32)
    total = float(np.abs(weights).sum(dtype=np.float64))
    losses = []
    for pattern in ("2:4", "4:8", "8:16"):
        options = {"constraint": "at_most", "threads": 1}
        kept = {
            solver: float(np.abs(weights)[tm.transposable_mask(weights, pattern, solver=solver, **options)].sum())
            for solver in ("primal_dual", "greedy", "two_approximation", "mutual_top_n")
        }
        assert kept["mutual_top_n"] < kept["greedy"] == kept["two_approximation"] < kept["primal_dual"]
        assert total - kept["mutual_top_n"] <= 2 * (total - kept["primal_dual"])
        losses.append(1 - kept["mutual_top_n"] / kept["primal_dual"])
    assert 0.12 > losses[0] > losses[1] > losses[2] > 0.04


def test_no_factor_holds_for_what_it_keeps():
    """A path of entries, each a little heavier than the last: only the last one is the heaviest of both its lines."""
    for m in (3, 8, 16):
        scores = np.zeros((m, m))
        path = [(index // 2, (index + 1) // 2) for index in range(2 * m - 1)]
        for index, place in enumerate(path):
            scores[place] = 1 + index * 1e-6
        options = {"constraint": "at_most", "threads": 1}
        mask = tm.transposable_mask(scores, (1, m), solver="mutual_top_n", **options)
        assert np.argwhere(mask & (scores > 0)).tolist() == [[m - 1, m - 1]]
        assert scores[tm.transposable_mask(scores, (1, m), **options)].sum() > m
