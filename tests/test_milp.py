"""What is special to milp: near ties below HiGHS' tolerance, side constraints, failure."""

from itertools import product

import families
import naive
import numpy as np
import pytest
from scipy.optimize import LinearConstraint
from transmask.solvers import Milp
from transmask.solvers import milp as module
from transmask.solvers.milp import line_sums

import transmask as tm


@pytest.mark.parametrize("m", [1, 2, 5])
def test_line_sums(m):
    block = np.random.default_rng(m).integers(0, 9, (m, m))
    assert (line_sums(m) @ block.ravel()).tolist() == [*block.sum(axis=1), *block.sum(axis=0)]


def near_ties_at_every_scale(rng, count, m):
    return (1 + rng.random((count, m, m)) * 1e-10) * 10.0 ** rng.integers(-200, 200, (count, 1, 1))


@pytest.mark.parametrize("family", [families.near_ties, families.one_huge, families.triangle, near_ties_at_every_scale])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (2, 8), (4, 8), (7, 8)])
def test_near_ties_far_below_the_tolerance_of_highs_are_decided_rightly(family, n, m, constraint):
    for scores in family(np.random.default_rng(m), 3, m):
        result = tm.solve(scores, (n, m), constraint=constraint, solver="milp")
        assert result.gap <= 1e-12
        optimum = naive.best_value(scores, n, constraint)
        assert naive.kept_value(scores, result.mask) >= optimum * (1 - type(optimum)(1, 10**13))


def test_scores_of_about_1_would_not_be(monkeypatch):
    scores = families.one_huge(np.random.default_rng(0), 10, 8)
    monkeypatch.setattr(module, "COST_BITS", 1)
    assert tm.solve(scores, "4:8", solver="milp").gap > 1e-10


class KeepDiagonal(Milp):
    """A side constraint: at least `least` entries of each diagonal stay."""

    def __init__(self, least):
        self.least = least

    def constraints(self, pattern, constraint):
        diagonal = np.eye(pattern.m).reshape(1, -1)
        return [*super().constraints(pattern, constraint), LinearConstraint(diagonal, lb=self.least)]


@pytest.mark.parametrize("least", [1, 2, 3])
def test_a_subclass_adds_side_constraints(least, constraint):
    masks = naive.all_masks(2, 4, constraint)
    allowed = masks[np.trace(masks, axis1=1, axis2=2) >= least]
    for scores in families.gaussian(np.random.default_rng(least), 5, 4) * (1 - np.eye(4)):
        mask = tm.transposable_mask(scores, "2:4", constraint=constraint, solver=KeepDiagonal(least))
        assert np.trace(mask) >= least
        best = max(naive.kept_value(scores, other) for other in naive.likely_best(allowed, scores))
        assert naive.kept_value(scores, mask) == best


def test_a_program_without_solution_is_a_solver_error():
    with pytest.raises(
        tm.SolverError, match=r"HiGHS must solve the program of a block to optimality, got: .*infeasible"
    ):
        tm.transposable_mask(np.ones((4, 4)), "2:4", solver=KeepDiagonal(5))


def test_programs_in_several_threads_do_not_disturb_each_other(constraint):
    weights = np.random.default_rng(0).standard_normal((32, 64))
    masks = [
        tm.transposable_mask(weights, "4:8", constraint=constraint, solver="milp", threads=threads)
        for threads, _ in product((1, 2, 3), range(2))
    ]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
