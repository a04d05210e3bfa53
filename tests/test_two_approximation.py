"""What is special to two_approximation: its factor on the pruned weight, and what completion makes."""

from fractions import Fraction

import families
import naive
import numpy as np
import pytest

import transmask as tm
from transmask.solvers import TwoApproximation
from transmask.solvers.greedy import greedy_masks
from transmask.solvers.two_approximation import published_masks

PATTERNS = [(1, 2), (1, 3), (2, 3), (2, 4), (3, 5), (3, 7), (4, 8), (7, 8), (8, 16)]


def pruned(scores, mask):
    return naive.kept_value(scores, ~mask)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4), (3, 7), (4, 8)])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_at_most_twice_the_optimum_is_pruned(family, n, m):
    scores = family(np.random.default_rng(m), 2, m).astype(np.float64)
    completed = TwoApproximation().solve_scores(scores.copy(), tm.Pattern(n, m), "at_most")
    for block, published, mask in zip(scores, published_masks(scores, n), completed, strict=True):
        least = naive.kept_value(block, np.ones((m, m), bool)) - naive.best_value(block, n, "at_most")
        assert naive.offender(published, n, m, "at_most") is None
        assert pruned(block, mask) <= pruned(block, published) <= 2 * least


@pytest.mark.compiled
@pytest.mark.parametrize(("n", "m"), [(1, 3), (2, 3), (1, 4), (2, 4)])
def test_no_search_finds_more_than_twice(n, m):
    """Hill climbing towards blocks of small integers on which as much as possible is pruned of what has to be."""
    rng = np.random.default_rng(n)
    masks = naive.all_masks(n, m, "at_most").reshape(-1, m * m).astype(np.float32)
    blocks = np.ones((128, m, m), np.float32)
    factors = np.zeros((2, len(blocks)))
    for _ in range(100):
        changed = np.where(rng.random(blocks.shape) < 3 / m**2, rng.integers(0, 6, blocks.shape), blocks)
        total = changed.sum(axis=(1, 2))
        least = total - (changed.reshape(-1, m * m) @ masks.T).max(axis=1)
        completed = TwoApproximation().solve_scores(changed.copy(), tm.Pattern(n, m), "at_most")
        weights = [total - (changed * mask).sum(axis=(1, 2)) for mask in (published_masks(changed, n), completed)]
        assert (weights[0] <= 2 * least).all()
        found = np.divide(weights, least, out=np.zeros_like(factors), where=least > 0)
        better = found[1] >= factors[1]
        blocks[better], factors[:, better] = changed[better], found[:, better]
    assert factors.max() <= 2
    assert factors[1].max() > 1.5


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_additions_lead_to_the_greedy_mask(family, n, m, constraint):
    scores = family(np.random.default_rng(n), 8, m)
    options = {"constraint": constraint, "threads": 1}
    found = tm.transposable_mask(scores, (n, m), solver="two_approximation", **options)
    assert np.array_equal(found, tm.transposable_mask(scores, (n, m), solver="greedy", **options))


def test_additions_matter_and_are_not_what_the_published_mask_has():
    scores = families.gaussian(np.random.default_rng(0), 100, 8)
    published, completed = published_masks(scores, 4), greedy_masks(scores, 4)
    assert 0.9 < (scores * published).sum() / (scores * completed).sum() < 0.95


def test_the_example_of_the_docstring_prunes_a_one_where_zeros_would_do():
    scores = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], np.float64)
    mask = tm.transposable_mask(scores, "3:4", solver="two_approximation")
    assert naive.brute_force_value(scores, 3, "exactly") == 4
    assert pruned(scores, mask) == Fraction(1)
