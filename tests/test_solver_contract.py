"""Every registered solver x every property of the contract. A new row in the table of solvers is covered at once.

What a plug-in's author can run is `assert_solver_contract`. The rest compares with optima of `naive`, found in exact
arithmetic without transmask: brute force for M <= 4, augmenting paths above.
"""

from fractions import Fraction
from functools import cache

import families
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transmask as tm
from transmask.solvers import as_solver, exact_solvers
from transmask.testing import assert_solver_contract, assert_transposable, weights

pytestmark = pytest.mark.many_patterns
SLOW = pytest.mark.slow

# Few patterns, because primal_dual compiles for seconds for each; the others' own tests look at more.
PATTERNS = [(1, 2), (1, 4), (2, 4), (3, 4), (2, 5), (2, 8), (4, 8)]
ROUNDING = Fraction(1, 10**12)
INFO = {info.name: info for info in tm.list_solvers()}
EXACT = [info.name for info in tm.list_solvers() if info.guarantee == "exact"]


def answers(name, n, m, constraint):
    """Tell whether a solver takes a pattern; where it does not, `transposable_mask` must say so."""
    pattern = tm.Pattern(n, m)
    try:
        as_solver(name, pattern, constraint).check(pattern, constraint)
    except tm.UnsupportedPatternError:
        expected = "a pattern" if constraint in INFO[name].constraints else f"the constraint .*, got '{constraint}'"
        with pytest.raises(tm.UnsupportedPatternError, match=f"`solver` '{name}' must be given {expected}"):
            tm.transposable_mask(np.ones((m, m)), pattern, constraint=constraint, solver=name)
        return False
    return True


@cache
def cases(n, m, constraint, count=3):
    """All families of blocks with their optima: (name, scores (count, M, M), optima)."""
    found = []
    for family in families.FAMILIES:
        scores = family(np.random.default_rng(m), count, m)
        find = naive.brute_force_value if m <= 4 else naive.best_value
        found.append((family.__name__, scores, [find(block, n, constraint) for block in scores]))
    return found


def assert_guarantee(guarantee, scores, mask, optimum, constraint):
    """A mask never keeps more than the optimum, nor less than what is declared of its solver."""
    kept = naive.kept_value(scores, mask)
    total = naive.kept_value(scores, np.ones(scores.shape, bool))
    assert kept <= optimum
    if guarantee == "exact":
        assert kept >= optimum * (1 - ROUNDING)
    elif guarantee == "kept >= 1/2 optimum" and constraint == "at_most":
        assert 2 * kept >= optimum
    elif guarantee == "pruned <= 2 x optimum" and constraint == "at_most":
        assert total - kept <= 2 * (total - optimum)


def test_the_helper_fails_on_wrong_answers():
    scores = np.array([[2.0, 1.0], [1.0, 0.5]])
    best, worst, nothing, everything = np.eye(2, dtype=bool), ~np.eye(2, dtype=bool), np.zeros((2, 2)), np.ones((2, 2))
    optimum = naive.brute_force_value(scores, 1, "at_most")
    for guarantee in ("exact", "kept >= 1/2 optimum", "pruned <= 2 x optimum", "none"):
        assert_guarantee(guarantee, scores, best, optimum, "at_most")
        with pytest.raises(AssertionError):
            assert_guarantee(guarantee, scores, everything, optimum, "at_most")
    with pytest.raises(AssertionError):
        assert_guarantee("exact", scores, worst, optimum, "at_most")
    with pytest.raises(AssertionError):
        assert_guarantee("kept >= 1/2 optimum", scores, nothing, optimum, "at_most")
    with pytest.raises(AssertionError):
        assert_guarantee("pruned <= 2 x optimum", scores, nothing, optimum, "at_most")


@pytest.mark.parametrize(
    "pattern", ["2:4", "2:5", *(pytest.param(p, marks=SLOW) for p in ("1:2", "2:8", "4:8", "8:16"))]
)
def test_the_contract_that_ships(solver, pattern, constraint):
    slow = (solver, pattern) == ("network_simplex", "8:16")
    if not slow and answers(solver, *map(int, pattern.split(":")), constraint):
        assert_solver_contract(solver, patterns=[pattern], constraints=[constraint], seed=9)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_masks_are_feasible_and_as_good_as_declared(solver, n, m, constraint):
    if not answers(solver, n, m, constraint):
        return
    for name, scores, optima in cases(n, m, constraint):
        mask = tm.transposable_mask(scores, (n, m), constraint=constraint, solver=solver, threads=1)
        assert mask.shape == scores.shape, name
        assert mask.dtype == np.bool_, name
        for block, block_mask, optimum in zip(scores, mask, optima, strict=True):
            assert naive.offender(block_mask, n, m, constraint) is None, name
            assert_guarantee(INFO[solver].guarantee, block, block_mask, optimum, constraint)


@pytest.mark.parametrize("name", [info.name for info in tm.list_solvers() if info.needs != "numba"])
@pytest.mark.parametrize(("n", "m"), [(1, 3), (2, 3), (4, 6), (3, 8), (7, 8)])
def test_more_patterns_where_nothing_is_compiled(name, n, m, constraint):
    test_masks_are_feasible_and_as_good_as_declared(name, n, m, constraint)


@pytest.mark.parametrize(("n", "m"), [(8, 16), (16, 32)])
def test_larger_blocks(solver, n, m, constraint):
    if not answers(solver, n, m, constraint):
        return
    for family in (families.gaussian_float32, families.int4, families.cauchy, families.half_zeros):
        scores = family(np.random.default_rng(m), 2 if m == 16 else 1, m)
        mask = tm.transposable_mask(scores, (n, m), constraint=constraint, solver=solver, threads=1)
        for block, block_mask, optimum in zip(scores, mask, large_optima(family, n, m, constraint), strict=True):
            assert naive.offender(block_mask, n, m, constraint) is None
            assert_guarantee(INFO[solver].guarantee, block, block_mask, optimum, constraint)


@cache
def large_optima(family, n, m, constraint):
    scores = family(np.random.default_rng(m), 2 if m == 16 else 1, m)
    return [naive.best_value(block, n, constraint) for block in scores]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 4), (4, 8)])
def test_the_bound_is_above_the_optimum_and_the_gap_is_what_is_lost(solver, n, m, constraint):
    if not answers(solver, n, m, constraint):
        return
    for name, scores, optima in cases(n, m, constraint):
        for block, optimum in zip(scores, optima, strict=True):
            result = tm.solve(block, (n, m), constraint=constraint, solver=solver)
            assert result.solver == solver
            assert result.kept <= result.upper_bound, name
            assert optimum <= Fraction(result.upper_bound) * (1 + ROUNDING / 1000), name
            assert abs(Fraction(result.kept) - naive.kept_value(block, result.mask)) <= optimum * ROUNDING / 1000, name
            if INFO[solver].guarantee == "exact":
                assert result.worst_gap <= 1e-12, name


@cache
def thousand_blocks(n, m, constraint):
    scores = np.abs(np.random.default_rng(1000 + m + n).standard_normal((1000, m, m), np.float32))
    oracle = naive.brute_force_value if (m, constraint) == (4, "exactly") else naive.best_value
    return scores, [float(oracle(block, n, constraint)) for block in (scores if m <= 8 else scores[:50])]


@pytest.mark.parametrize(
    ("n", "m"), [(2, 4), (4, 8), *(pytest.param(*size, marks=SLOW) for size in ((1, 4), (2, 8), (8, 16)))]
)
def test_exact_solvers_agree_on_a_thousand_blocks(exact_solver, n, m, constraint):
    """With the oracle on all of them for M <= 8, on the first 50 at 8:16; with each other on all.

    But for network_simplex and milp, which need milliseconds a block: 100. Their masks are optimal because networkx's
    and HiGHS's solutions are; what is ours is the model, which every block tries.
    """
    if not answers(exact_solver, n, m, constraint):
        return
    count = 100 if exact_solver in ("network_simplex", "milp") else 1000
    scores, optima = (part[:count] for part in thousand_blocks(n, m, constraint))
    mask = tm.transposable_mask(scores, (n, m), constraint=constraint, solver=exact_solver)
    kept = (scores * mask).sum(axis=(1, 2), dtype=np.float64)
    other = tm.transposable_mask(scores, (n, m), constraint=constraint, solver="min_cost_flow")
    assert np.allclose(kept, (scores * other).sum(axis=(1, 2), dtype=np.float64), rtol=1e-12, atol=0)
    assert np.allclose(kept[: len(optima)], optima, rtol=1e-12, atol=0)


@settings(max_examples=25)
@given(
    array=weights(max_side=9, max_batch_axes=1),
    size=st.sampled_from([*PATTERNS[:-2], (0, 3), (3, 3), (1, 1)]),
    data=st.data(),
)
@pytest.mark.parametrize("name", list(INFO))
def test_any_weights(name, array, size, data):
    """Edges, dtypes, strides: feasible, the input untouched, and as good as declared on every block, cut or not."""
    constraint, pattern = data.draw(st.sampled_from(["exactly", "at_most"])), tm.Pattern(*size)
    if not (answers(name, pattern.n, pattern.m, constraint) and answers(name, pattern.n, pattern.m, "at_most")):
        return
    before, strides = array.tobytes(), array.strides
    mask = tm.transposable_mask(array, pattern, constraint=constraint, solver=name, threads=1)
    assert array.tobytes() == before
    assert array.strides == strides
    assert_transposable(mask, pattern, constraint=constraint)
    if INFO[name].guarantee == "exact" and array.size:
        scores = np.abs(array.astype(np.float64)).reshape(-1, *array.shape[-2:])
        optimum = sum(naive.matrix_value(matrix, pattern.n, pattern.m, constraint) for matrix in scores)
        assert optimum * (1 - ROUNDING) <= naive.kept_value(scores, mask) <= optimum


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (4, 8)])
def test_the_complement_of_an_optimal_mask_is_optimal_for_the_complement(exact_solver, n, m):
    if not (answers(exact_solver, n, m, "exactly") and answers(exact_solver, m - n, m, "exactly")):
        return
    scores = np.random.default_rng(17).integers(0, 1000, (3, m, m))
    mask = tm.transposable_mask(scores, (n, m), solver=exact_solver)
    rest = tm.transposable_mask(1000 - scores, (m - n, m), solver=exact_solver)
    for block, kept, pruned in zip(scores, mask, rest, strict=True):
        assert naive.kept_value(1000 - block, pruned) == naive.kept_value(1000 - block, ~kept)


@cache
def mixed_matrix(m):
    """A matrix of 6 x 4 blocks of every kind, most of them with ties; the last column of blocks is cut."""
    rng = np.random.default_rng(19)
    kinds = (families.gaussian, families.constant, families.int4, families.tenths, families.half_zeros, families.band)
    rows = [np.concatenate(list(kind(rng, 4, m).astype(np.float64)), axis=1) for kind in kinds]
    return np.concatenate(rows, axis=0)[:, : 4 * m - 1]


@pytest.mark.parametrize("entries", [1, 48, 1000])
def test_the_size_of_a_chunk_changes_nothing(solver, entries, constraint):
    if not answers(solver, 2, 4, constraint):
        return
    matrix = mixed_matrix(4)
    instance = as_solver(solver, tm.Pattern(2, 4), constraint)
    expected = tm.transposable_mask(matrix, "2:4", constraint=constraint, solver=solver, threads=1)
    instance.chunk_entries = entries
    for threads in (1, 3):
        found = tm.transposable_mask(matrix, "2:4", constraint=constraint, solver=instance, threads=threads)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("shape", [(0, 0), (0, 8), (8, 0), (0, 8, 8), (3, 0, 8), (2, 0, 0, 4)])
def test_no_block(solver, shape, constraint):
    if not answers(solver, 2, 4, constraint):
        return
    result = tm.solve(np.zeros(shape), "2:4", constraint=constraint, solver=solver)
    assert result.mask.shape == shape
    assert (result.kept, result.upper_bound, result.gap, result.n_blocks) == (0.0, 0.0, 0.0, 0)
    assert result.status is tm.Status.OPTIMAL


@pytest.mark.parametrize("m", [1, 2, 4, 8])
def test_all_or_nothing(solver, m, constraint):
    scores = families.gaussian(np.random.default_rng(23), 3, 2 * m)
    if answers(solver, m, m, constraint):
        everything = tm.solve(scores, (m, m), constraint=constraint, solver=solver)
        assert everything.mask.all()
        assert everything.gap == 0
    if answers(solver, 0, m, constraint):
        nothing = tm.solve(scores, (0, m), constraint=constraint, solver=solver)
        assert not nothing.mask.any()
        assert (nothing.kept, nothing.upper_bound, nothing.gap) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (5, 4), (4, 5), (9, 3), (2, 2, 3)])
def test_matrices_smaller_than_a_block_and_cut_blocks(solver, shape):
    scores = np.abs(np.random.default_rng(29).standard_normal(shape))
    constraint = INFO[solver].constraints[0]
    result = tm.solve(scores, "2:4", solver=solver, constraint=constraint)
    for block, mask in zip(scores.reshape(-1, *shape[-2:]), result.mask.reshape(-1, *shape[-2:]), strict=True):
        assert naive.offender(mask, 2, 4, constraint) is None
        optimum = naive.matrix_value(block, 2, 4, constraint)
        if INFO[solver].guarantee == "exact":
            assert naive.kept_value(block, mask) >= optimum * (1 - ROUNDING)
        assert optimum <= Fraction(result.upper_bound) * (1 + ROUNDING) or len(shape) == 3


BAD = {
    "a NaN": (np.full((4, 4), np.nan), "2:4"),
    "an infinity": (np.where(np.eye(4) > 0, np.inf, 1.0), "2:4"),
    "complex": (np.ones((4, 4), complex), "2:4"),
    "one axis": (np.ones(4), "2:4"),
    "4:2": (np.ones((4, 4)), "4:2"),
}


@pytest.mark.parametrize("case", BAD)
def test_solvers_fail_alike(case):
    array, pattern = BAD[case]
    failures = set()
    for name in INFO:
        with pytest.raises(tm.TransmaskError) as error:
            tm.solve(array, pattern, solver=name)
        failures.add((type(error.value), str(error.value)))
    assert len(failures) == 1


@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (2, 4), (3, 4)])
def test_every_solver_takes_the_small_patterns_under_its_constraints(solver, n, m):
    for constraint in INFO[solver].constraints:
        assert answers(solver, n, m, constraint)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 6), (4, 8), (2, 8), (8, 16), (16, 32), (3, 100)])
def test_a_refusal_names_exact_solvers_that_answer(solver, n, m, constraint):
    pattern = tm.Pattern(n, m)
    if answers(solver, n, m, constraint):
        return
    with pytest.raises(tm.UnsupportedPatternError, match=f"`solver` '{solver}' must be given") as error:
        tm.transposable_mask(np.ones((m, m)), pattern, constraint=constraint, solver=solver)
    named = str(error.value).split("Use one of ")[1].rstrip(".").split(", ")
    assert named
    for name in named:
        assert INFO[name.strip("'")].guarantee == "exact"
        assert answers(name.strip("'"), n, m, constraint)


def test_the_table_of_exact_solvers_is_what_they_take():
    for n, m in ((2, 4), (1, 8), (3, 6), (2, 8), (8, 16), (16, 32)):
        for constraint in ("exactly", "at_most"):
            named = [name for name in EXACT if answers(name, n, m, constraint)]
            assert exact_solvers(tm.Pattern(n, m), constraint) == named


def test_auto_is_exact(constraint):
    for pattern in ("1:4", "2:4", "3:4", "2:5", "4:8", "8:16", "16:32", "1:1", "0:3"):
        assert INFO[tm.choose_solver(pattern, constraint)].guarantee == "exact"
        chosen = tm.Pattern.parse(pattern)
        assert answers(tm.choose_solver(pattern, constraint), chosen.n, chosen.m, constraint)
