"""What is special to milp: near ties below HiGHS' tolerance, side constraints, failure."""

from itertools import product

import families
import naive
import numpy as np
import pytest
from scipy.optimize import LinearConstraint

import transmask as tm
from transmask.solvers import Milp
from transmask.solvers import milp as module
from transmask.solvers.milp import line_sums


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
    """A side constraint: at least `least` entries of the diagonal stay."""

    def __init__(self, least):
        self.least = least

    def constraints(self, pattern, constraint):
        diagonal = np.eye(pattern.m).reshape(1, -1)
        return [*super().constraints(pattern, constraint), LinearConstraint(diagonal, lb=self.least)]


class Budget(Milp):
    """A side constraint that makes relaxations fractional: each entry has a price, and `most` may be spent."""

    def __init__(self, most):
        self.most = most

    def constraints(self, pattern, constraint):
        return [*super().constraints(pattern, constraint), LinearConstraint(prices().reshape(1, -1), ub=self.most)]


def prices():
    return np.add.outer(np.arange(4), np.arange(4)) ** 2 + 1


@pytest.fixture
def programs(monkeypatch):
    """Record whether each program that is solved is binary."""
    solve_program, solved = module._solve_program, []

    def recorded(costs, constraints, *, binary):
        solved.append(binary)
        return solve_program(costs, constraints, binary=binary)

    monkeypatch.setattr(module, "_solve_program", recorded)
    return solved


def best_allowed(scores, masks):
    return max(naive.kept_value(scores, mask) for mask in naive.likely_best(masks, scores))


@pytest.mark.parametrize("least", [1, 2, 3])
def test_a_subclass_adds_side_constraints(least, constraint):
    masks = naive.all_masks(2, 4, constraint)
    allowed = masks[np.trace(masks, axis1=1, axis2=2) >= least]
    for scores in families.gaussian(np.random.default_rng(least), 5, 4) * (1 - np.eye(4)):
        mask = tm.transposable_mask(scores, "2:4", constraint=constraint, solver=KeepDiagonal(least))
        assert np.trace(mask) >= least
        assert naive.kept_value(scores, mask) == best_allowed(scores, allowed)


@pytest.mark.parametrize("most", [85, 89, 95])
def test_a_fractional_relaxation_is_solved_again_in_binary_variables(most, constraint, programs):
    masks = naive.all_masks(2, 4, constraint)
    allowed = masks[(masks * prices()).sum(axis=(1, 2)) <= most]
    for scores in families.gaussian(np.random.default_rng(most), 10, 4):
        mask = tm.transposable_mask(scores, "2:4", constraint=constraint, solver=Budget(most))
        assert (mask * prices()).sum() <= most
        assert naive.kept_value(scores, mask) == best_allowed(scores, allowed)
    assert True in programs


def test_without_side_constraints_no_binary_variable_is_needed(constraint, programs):
    for family in families.FAMILIES:
        tm.transposable_mask(
            family(np.random.default_rng(0), 2, 6), "3:6", constraint=constraint, solver="milp", threads=1
        )
    assert len(programs) == 2 * len(families.FAMILIES)
    assert True not in programs


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
