"""What is special to min_cost_flow: the integers OR-Tools gets, what it does when they are too large, failure."""

from fractions import Fraction

import families
import naive
import numpy as np
import pytest

import transmask as tm
from transmask.solvers import min_cost_flow
from transmask.solvers.min_cost_flow import flow_network, integer_costs


@pytest.mark.parametrize("m", [2, 4, 8, 16, 32, 64, 128])
def test_costs_are_as_precise_as_the_docstring_says(m, constraint):
    scores = families.gaussian(np.random.default_rng(m), 2, m)
    network = flow_network(tm.Pattern(1, m), constraint)
    costs = integer_costs(scores, network)
    spread = costs[:, : m * m].max(axis=1) - costs[:, : m * m].min(axis=1)
    bits = {2: 57, 4: 56, 8: 54, 16: 53, 32: 52, 64: 52, 128: 51}[m]
    assert (spread >= 0.99 * 2.0 ** (bits - 1)).all()
    assert np.abs(costs).max() * (network.supplies.size + 3) <= 2**60


@pytest.mark.parametrize("family", families.FAMILIES)
def test_costs_are_the_scores_rounded_at_the_last_of_57_bits(family):
    scores = family(np.random.default_rng(3), 3, 4)
    network = flow_network(tm.Pattern(2, 4), "exactly")
    integers = integer_costs(np.zeros((1, 4, 4)), network)[0, 0] - integer_costs(scores, network)
    for block, scaled in zip(scores, integers.reshape(scores.shape), strict=True):
        exponent = int(np.frexp(block.max())[1])
        assert scaled.tolist() == [
            [round(Fraction(float(score)) * Fraction(2) ** (57 - exponent)) for score in row] for row in block
        ]
        assert block.max() == 0 or 2**56 <= scaled.max() <= 2**57


@pytest.fixture
def networks(monkeypatch):
    """Count the networks that are solved."""
    solve_network, solved = min_cost_flow._solve, []

    def counted(network, costs):
        solved.append(costs)
        return solve_network(network, costs)

    monkeypatch.setattr(min_cost_flow, "_solve", counted)
    return solved


@pytest.mark.parametrize("m", [4, 8, 16, 64])
@pytest.mark.parametrize("family", [families.band, families.triangle, families.rank_one, families.one_kept])
def test_no_block_leaves_the_range_of_ortools(m, family, constraint, networks):
    sizes = {1, m // 4, m // 2, m - 1}
    for n in sizes:
        scores = family(np.random.default_rng(n), 1, m)[0]
        tm.transposable_mask(scores, (n, m), constraint=constraint, solver="min_cost_flow")
    assert len(networks) == len(sizes)


@pytest.mark.parametrize("m", [4, 16])
def test_costs_that_are_too_large_are_halved_until_they_fit(m, constraint, networks, monkeypatch):
    monkeypatch.setattr(min_cost_flow, "PRODUCT_BITS", 63)
    scores = families.gaussian(np.random.default_rng(5), 3, m)
    for block in scores:
        mask = tm.transposable_mask(block, (m // 2, m), constraint=constraint, solver="min_cost_flow")
        optimum = naive.best_value(block, m // 2, constraint)
        assert naive.kept_value(block, mask) >= optimum * (1 - Fraction(1, 10**14))
    assert len(networks) > len(scores)


@pytest.mark.parametrize("m", [32, 64])
def test_large_blocks_on_which_every_bit_counts(m, constraint):
    scores = families.below_resolution(np.random.default_rng(0), 2, m)
    result = tm.solve(scores, (m // 2, m), constraint=constraint, solver="min_cost_flow")
    assert result.gap <= 1e-12
    assert naive.offender(result.mask[0], m // 2, m, constraint) is None


def test_a_status_other_than_optimal_is_a_solver_error(monkeypatch):
    broken = flow_network(tm.Pattern(2, 4), "exactly")
    broken.supplies[:] = [3, 2, 2, 2, -2, -2, -2, -2]
    monkeypatch.setattr(min_cost_flow, "flow_network", lambda pattern, constraint: broken)
    try:
        with pytest.raises(
            tm.SolverError, match="OR-Tools must solve the flow of a block to optimality, got status UNBA"
        ):
            tm.transposable_mask(np.ones((4, 4)), "2:4", solver="min_cost_flow")
    finally:
        flow_network.cache_clear()
