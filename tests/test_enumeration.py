"""What is special to enumeration: the list of masks, the tie rule, what it refuses, its memory."""

import tracemalloc

import families
import naive
import numpy as np
import pytest

import transmask as tm
from transmask.solvers import Enumeration
from transmask.solvers.enumeration import MAX_MASKS, feasible_masks


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_the_list_is_every_mask_once_in_lexicographic_order(m, constraint):
    for n in range(m + 1):
        masks = feasible_masks(tm.Pattern(n, m), constraint)
        keys = [tuple(~mask.ravel()) for mask in masks]
        assert keys == sorted(tuple(~mask.ravel()) for mask in naive.all_masks(n, m, constraint))


@pytest.mark.parametrize(
    ("pattern", "count"), [("2:5", 2040), ("3:5", 2040), ("1:6", 720), ("2:6", 67950), ("1:7", 5040), ("1:8", 40320)]
)
def test_counts_are_those_of_oeis_a008300(pattern, count):
    assert len(feasible_masks(tm.Pattern.parse(pattern), "exactly")) == count


@pytest.mark.parametrize("pattern", ["3:6", "2:7", "4:8", "8:16", "16:32", "32:64", "1:64"])
def test_more_than_1e5_masks_are_refused_without_listing_them(pattern, constraint):
    chosen = tm.Pattern.parse(pattern)
    tracemalloc.start()
    try:
        with pytest.raises(tm.UnsupportedPatternError) as error:
            Enumeration().check(chosen, constraint)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20e6
    assert "`solver` 'enumeration' must be given a pattern with" in str(error.value)
    named = str(error.value).split("Use one of ")[1].rstrip(".").split(", ")
    assert {"'min_cost_flow'", "'network_simplex'", "'milp'"} <= set(named)
    assert "'enumeration'" not in named


def test_what_the_limit_says():
    said = r"with at most 100000 masks a block, got '3:6' 'exactly' with 297200\. Use one of 'primal_dual', 'min_cost"
    with pytest.raises(tm.UnsupportedPatternError, match=said):
        tm.solve(np.ones((6, 6)), "3:6", solver="enumeration")
    assert MAX_MASKS == 100_000


def test_it_takes_the_patterns_that_the_table_names():
    taken = {"exactly": "1:5 2:5 3:5 4:5 1:6 2:6 4:6 5:6 1:7 6:7 1:8 7:8", "at_most": "1:5 1:6"}
    for constraint, larger in taken.items():
        patterns = [tm.Pattern(n, m) for m in range(1, 10) for n in range(1, m)]
        found = [str(pattern) for pattern in patterns if Enumeration.info.refusal(pattern, constraint) is None]
        assert found == [str(pattern) for pattern in patterns if pattern.m <= 4] + larger.split()
    note = Enumeration.info.note
    assert note.startswith("Takes every pattern with M <= 4; ")
    exactly, at_most = note.split('"exactly" also ')[1].split(', "at_most" also ')
    assert exactly == "M = 5, 1:6, 2:6, 4:6, 5:6, 1:7, 6:7, 1:8 and 7:8"
    assert at_most == "1:5 and 1:6."
    assert Enumeration.info.limits == "M <= 8, up to 100,000 masks a block"


def test_cut_blocks_count_as_at_most():
    with pytest.raises(tm.UnsupportedPatternError, match="got '2:5' 'at_most'"):
        tm.transposable_mask(np.ones((5, 7)), "2:5", solver="enumeration")


@pytest.mark.parametrize("family", [families.constant, families.int4, families.band, families.zeros, families.one_kept])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_ties_go_to_the_first_mask_in_lexicographic_order(family, n, constraint):
    rng = np.random.default_rng(n)
    masks = feasible_masks(tm.Pattern(n, 4), constraint)
    for scores in family(rng, 5, 4):
        values = (masks * scores.astype(float)).sum(axis=(1, 2))
        first = masks[int(np.argmax(values == values.max()))]
        found = tm.transposable_mask(scores, (n, 4), constraint=constraint, solver="enumeration")
        assert np.array_equal(found, first)


def test_rounding_of_sums_does_not_depend_on_the_batch(constraint):
    scores = families.tenths(np.random.default_rng(0), 1000, 4)
    solver, pattern = Enumeration(), tm.Pattern(2, 4)
    together = solver.solve_scores(scores.copy(), pattern, constraint)
    alone = np.concatenate([solver.solve_scores(block[None], pattern, constraint) for block in scores])
    assert np.array_equal(together, alone)


def test_memory_is_bounded_however_many_masks_and_blocks(constraint):
    scores = families.gaussian(np.random.default_rng(0), 2000, 4)
    Enumeration().check(tm.Pattern(3, 4), constraint)
    tracemalloc.start()
    try:
        Enumeration().solve_scores(scores, tm.Pattern(3, 4), constraint)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 48e6
