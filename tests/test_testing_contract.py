"""Every property of the contract is fed a solver that breaks it, and only it, and must fail on it."""

import time

import naive
import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

import transmask as tm
from transmask.solvers import Enumeration, Solver, SolverInfo
from transmask.testing import assert_optimal, assert_solver_contract, masks, properties
from transmask.testing.hard_blocks import hard_blocks

BOTH = ("exactly", "at_most")


def info(guarantee="none", constraints=BOTH, max_m=None):
    return SolverInfo("broken", "Broken", guarantee, constraints, max_m, "numpy", "unpublished")


class Shifted(Solver):
    """A legal solver that proves nothing: the same circulant for every block; subclasses break one property each."""

    info = info()

    def solve_scores(self, scores, pattern, constraint):
        line = np.arange(pattern.m)
        return np.repeat((((line - line[:, None]) % pattern.m) < pattern.n)[None], len(scores), axis=0)


class TooMany(Shifted):
    def solve_scores(self, scores, pattern, constraint):
        return np.ones(scores.shape, bool)


class TooFew(Shifted):
    def solve_scores(self, scores, pattern, constraint):
        return np.zeros(scores.shape, bool)


class Integers(Shifted):
    def solve_scores(self, scores, pattern, constraint):
        return super().solve_scores(scores, pattern, constraint).astype(np.int8)


class Flat(Shifted):
    def solve_scores(self, scores, pattern, constraint):
        return super().solve_scores(scores, pattern, constraint).reshape(len(scores), -1)


class Overwrites(Shifted):
    def solve_blocks(self, blocks, pattern, *, threads, warm):
        super().solve_blocks(blocks, pattern, threads=threads, warm=warm)
        blocks.weights[...] = 0


class NotExact(Shifted):
    info = info("exact")


class BelowHalf(TooFew):
    info = info("kept >= 1/2 optimum", ("at_most",))


class PrunesTooMuch(TooFew):
    info = info("pruned <= 2 x optimum", ("at_most",))


class AbsoluteThreshold(Shifted):
    def solve_scores(self, scores, pattern, constraint):
        mask = super().solve_scores(scores, pattern, constraint)
        heavy = scores.max(axis=(1, 2)) > 1e3
        mask[heavy] = mask[heavy, ::-1]
        return mask


class DependsOnPlace(Shifted):
    def solve_scores(self, scores, pattern, constraint):
        mask = super().solve_scores(scores, pattern, constraint)
        mask[1::2] = mask[1::2, ::-1]
        return mask


class DependsOnThreads(Shifted):
    def solve_blocks(self, blocks, pattern, *, threads, warm):
        super().solve_blocks(blocks, pattern, threads=threads, warm=warm)
        if threads > 2:
            blocks.mask[...] = blocks.mask[..., ::-1, :].copy()


BROKEN = {
    TooMany: "a mask must be feasible; row 0, columns 0 to 1 keeps 2, more than 1 of 2",
    TooFew: "a mask must be feasible; row 0, columns 0 to 1 keeps 0, fewer than 1 of 2",
    Integers: "`solve_scores` must return bool of the scores' shape; got int8 of shape",
    Flat: "`solve_scores` must return bool of the scores' shape; got bool of shape",
    Overwrites: "the weights must not be modified; they became",
    NotExact: "an exact mask must be proven optimal; the gap is",
    BelowHalf: "the declared guarantee is 'kept >= 1/2 optimum'; kept 0.0 of",
    PrunesTooMuch: "the declared guarantee is 'pruned <= 2 x optimum'; kept 0.0 of",
    AbsoluteThreshold: "scaling by powers of two must change no mask; 2\\*\\*",
    DependsOnPlace: "a block alone must get its mask in any batch; alone",
    DependsOnThreads: "the mask must not depend on threads and chunks; 5 threads, in chunks of two blocks, change it",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_property_is_named_with_the_block(broken):
    with pytest.raises(AssertionError, match=BROKEN[broken]) as error:
        assert_solver_contract(broken())
    constraint = broken.info.constraints[0]
    assert str(error.value).startswith(f"'broken' at 1:2 '{constraint}': ")
    assert "on a block of kind '" in str(error.value)
    assert "array([" in str(error.value)


def test_the_solver_that_they_were_made_from_keeps_the_contract():
    assert_solver_contract(Shifted())


def case(solver):
    return properties.Case(solver, tm.Pattern(2, 4), "exactly", 0)


@pytest.mark.parametrize(
    ("check", "rule"),
    [
        (properties.check_declared_guarantee, "the declared guarantee is 'exact'; kept"),
        (properties.check_transposing_transposes_the_value, "transposing a block must keep its value"),
        (properties.check_permuting_keeps_the_value, "permuting rows and columns must keep the value"),
    ],
)
def test_what_the_certificate_would_have_said_before_is_noticed_too(check, rule):
    class Lopsided(Enumeration):
        """Optimal but for blocks that lean to one side."""

        info = NotExact.info

        def solve_scores(self, scores, pattern, constraint):
            mask = super().solve_scores(scores.copy(), pattern, constraint)
            leaning = scores[:, 0, 1] > scores[:, 1, 0]
            mask[leaning] = ~mask[leaning]
            return mask

    check(case(Enumeration()))
    with pytest.raises(AssertionError, match=rule):
        check(case(Lopsided()))


def test_a_mask_above_the_optimum_is_noticed(monkeypatch):
    """It cannot keep more and be feasible: what is compared with must be the optimum, not the solver's own mask."""
    properties.check_declared_guarantee(case(Shifted()))
    monkeypatch.setattr(properties, "_oracle_mask", lambda case, block: np.zeros(block.shape, bool))
    with pytest.raises(AssertionError, match="no mask may keep more than the optimum"):
        properties.check_declared_guarantee(case(Shifted()))


def test_a_race_between_threads_is_noticed():
    class Shared(Shifted):
        """Keeps its scores where another thread overwrites them."""

        def solve_scores(self, scores, pattern, constraint):
            self.scores = scores.copy()
            time.sleep(0.001)
            first = self.scores[:, 0, :1] > self.scores[:, 1, :1]
            mask = super().solve_scores(scores, pattern, constraint)
            return np.where(first[: len(mask), :, None], mask[:, ::-1], mask) if len(first) == len(mask) else mask

    with pytest.raises(AssertionError, match=r"must not depend on threads and chunks; \d threads, in chunks"):
        properties.check_a_block_alone_is_the_block_in_any_batch(case(Shared()))


def test_a_warm_start_that_loses_is_noticed():
    class ColdOnly(Enumeration):
        info = info("exact", max_m=4)
        warm_startable = True

        def solve_blocks(self, blocks, pattern, *, threads, warm):
            super().solve_blocks(blocks, pattern, threads=threads, warm=warm)
            if warm:
                blocks.mask[...] = blocks.mask[..., ::-1, :].copy()

    with pytest.raises(AssertionError, match=r"a warm start must keep as much; \S+ became"):
        properties.check_a_warm_start_keeps_as_much(case(ColdOnly()))
    properties.check_a_warm_start_keeps_as_much(case(tm.solvers.PrimalDual()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patterns": []}, r"`patterns` must hold patterns with 0 < N < M, got \[\]"),
        ({"patterns": "4:4"}, r"`patterns` must hold patterns with 0 < N < M, got \['4:4'\]"),
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"constraints": ["exact"]}, "Did you mean 'exactly'"),
    ],
)
def test_wrong_use_of_the_contract_is_no_assertion_error(options, message):
    with pytest.raises(tm.InvalidArgumentError, match=message):
        assert_solver_contract("enumeration", **options)
    assert_solver_contract("enumeration", patterns="1:2")


def test_a_solver_without_a_row_is_refused():
    class NoRow(Shifted):
        info = None

    with pytest.raises(tm.InvalidTypeError, match=r"`NoRow.info` must be a SolverInfo"):
        assert_solver_contract(NoRow())


def test_trivial_patterns_and_empty_arrays_are_noticed(monkeypatch):
    properties.check_no_block_and_no_choice(case(Shifted()))
    monkeypatch.setattr(properties, "transposable_mask", lambda weights, *_, **__: np.zeros(weights.shape, bool))
    with pytest.raises(AssertionError, match="1:1 must keep all"):
        properties.check_no_block_and_no_choice(case(Shifted()))
    monkeypatch.setattr(properties, "transposable_mask", lambda *_, **__: np.zeros((1, 1), bool))
    with pytest.raises(AssertionError, match="no block must give an empty mask"):
        properties.check_no_block_and_no_choice(case(Shifted()))


def test_a_solver_must_take_one_of_the_patterns():
    class Small(Shifted):
        info = info(max_m=1)

    with pytest.raises(AssertionError, match=r"must take one of the patterns \['2:4'\]"):
        assert_solver_contract(Small(), patterns=["2:4"])


def test_a_constraint_that_a_solver_does_not_list_is_refused():
    class AtMost(TooFew):
        info = info(constraints=("at_most",))

    assert_solver_contract(AtMost(), patterns=["2:4"])
    with pytest.raises(tm.UnsupportedPatternError, match="must be given the constraint 'at_most', got 'exactly'"):
        tm.transposable_mask(np.ones((4, 4)), "2:4", solver=AtMost())


def test_hard_blocks_are_finite_scores():
    for m in (2, 5):
        for kind, scores in hard_blocks(np.random.default_rng(0), m).items():
            assert scores.shape == (2, m, m), kind
            assert np.isfinite(scores).all(), kind
            assert (scores >= 0).all(), kind


@pytest.mark.parametrize("constraint", BOTH)
def test_optimal_masks_pass_and_others_fail(constraint):
    scores = np.random.default_rng(1).random((2, 8, 8))
    mask = tm.transposable_mask(scores, "2:4", constraint=constraint, solver="enumeration")
    assert_optimal(mask, -scores, "2:4", constraint=constraint)
    assert_optimal(np.moveaxis(mask, 0, -1), np.moveaxis(scores, 0, -1), "2:4", constraint=constraint, axes=(0, 1))
    with pytest.raises(AssertionError, match=f"must be optimal for 2:4 '{constraint}': keeps .*; worst gap"):
        assert_optimal(mask[:, :, ::-1], scores, "2:4", constraint=constraint)
    mask[1, 0] = True
    with pytest.raises(AssertionError, match=r"must hold 2:4 .* more than 2 of 4"):
        assert_optimal(mask, scores, "2:4", constraint=constraint)


def test_wrong_use_of_assert_optimal_is_no_assertion_error():
    with pytest.raises(tm.InvalidArgumentError, match="`mask` must have the shape of the weights"):
        assert_optimal(np.eye(4, dtype=bool), np.ones((4, 8)), "1:4")


@settings(max_examples=200)
@given(data=st.data())
def test_drawn_masks_are_feasible(data):
    n, m = data.draw(st.sampled_from([(0, 1), (1, 1), (1, 2), (2, 4), (2, 5), (3, 3), (0, 3)]))
    constraint = data.draw(st.sampled_from(BOTH))
    mask = data.draw(masks((n, m), constraint=constraint))
    assert mask.dtype == np.bool_
    assert mask.shape[0] in (m, 2 * m)
    assert mask.shape[1] in (m, 2 * m)
    assert naive.offender(mask, n, m, constraint) is None


@pytest.mark.parametrize(("m", "constraint", "count"), [(3, "exactly", 6), (2, "at_most", 7)])
def test_every_feasible_mask_can_be_drawn(m, constraint, count):
    drawn = set()

    @settings(max_examples=150)
    @given(mask=masks((1, m), constraint=constraint, max_blocks=1))
    def collect(mask):
        drawn.add(mask.tobytes())

    collect()
    assert drawn == {mask.tobytes() for mask in naive.all_masks(1, m, constraint)}
    assert len(drawn) == count


def test_a_mask_that_no_permuted_circulant_is_can_be_drawn():
    two_squares = np.kron(np.eye(2, dtype=bool), np.ones((2, 2), bool))
    find(
        masks("2:4", max_blocks=1), lambda mask: np.array_equal(mask, two_squares), settings=settings(max_examples=5000)
    )


def test_a_mask_that_leaves_room_for_no_entry_can_be_drawn():
    stuck = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]], bool)
    found = find(masks("2:3", constraint="at_most", max_blocks=1), lambda mask: np.array_equal(mask, stuck))
    assert np.array_equal(found, stuck)
