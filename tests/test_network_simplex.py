"""What is special to network_simplex: the published network, integers of any size, failure."""

from fractions import Fraction

import families
import naive
import networkx as nx
import numpy as np
import pytest

import transmask as tm
from transmask.solvers.network_simplex import flow_graph, integer_scores


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (2, 5)])
def test_the_network_is_the_published_one(n, m, constraint):
    scores = np.arange(1.0, m * m + 1).reshape(m, m)
    graph = flow_graph(scores, tm.Pattern(n, m), constraint)
    assert graph.number_of_nodes() == 2 * m + 2
    assert graph.number_of_edges() == m * m + 2 * m + (constraint == "at_most")
    assert graph.nodes["source"]["demand"] == -n * m == -graph.nodes["sink"]["demand"]
    for i in range(m):
        assert graph.edges["source", ("row", i)] == {"capacity": n, "weight": 0}
        assert graph.edges[("column", i), "sink"] == {"capacity": n, "weight": 0}
        for j in range(m):
            assert graph.edges[("row", i), ("column", j)] == {"capacity": 1, "weight": -int(scores[i, j])}
    assert graph.has_edge("source", "sink") == (constraint == "at_most")
    if constraint == "at_most":
        assert graph.edges["source", "sink"] == {"capacity": n * m, "weight": 0}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_integers_are_the_scores_times_one_power_of_two(family):
    for scores in family(np.random.default_rng(1), 2, 4):
        integers = integer_scores(scores)
        assert all(type(integer) is int for row in integers for integer in row)
        ratios = {
            Fraction(integers[i][j]) / Fraction(float(scores[i, j])) for i, j in zip(*scores.nonzero(), strict=True)
        }
        assert len(ratios) <= 1
        assert all(ratio.denominator == 1 and ratio.numerator.bit_count() == 1 for ratio in ratios)
        assert all(integers[i][j] == 0 for i, j in zip(*(scores == 0).nonzero(), strict=True))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_optimum_is_exact_to_the_last_bit(family, constraint):
    for scores in family(np.random.default_rng(2), 2, 5):
        mask = tm.transposable_mask(scores, "2:5", constraint=constraint, solver="network_simplex")
        assert naive.kept_value(scores, mask) == naive.best_value(scores, 2, constraint)


def test_a_failure_of_networkx_is_a_solver_error(monkeypatch):
    def fail(graph):
        raise nx.NetworkXUnfeasible("no flow satisfies all node demands")

    monkeypatch.setattr(nx, "network_simplex", fail)
    with pytest.raises(
        tm.SolverError, match="networkx must find a flow of least cost, got NetworkXUnfeasible: no flow"
    ):
        tm.transposable_mask(np.ones((4, 4)), "2:4", solver="network_simplex")
