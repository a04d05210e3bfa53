"""transposable_mask and solve as a user calls them: shapes, axes, results, the warm start, what the bound says."""

import dataclasses
import pickle
from itertools import product

import ml_dtypes
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transmask as tm
from transmask.solvers import MinCostFlow, Solver
from transmask.testing import assert_transposable, patterns, weights


@settings(max_examples=100)
@given(weights(), patterns(max_m=4), st.sampled_from(["exactly", "at_most"]))
def test_solve_returns_the_mask_of_transposable_mask_and_its_proof(array, pattern, constraint):
    before = array.tobytes()
    mask = tm.transposable_mask(array, pattern, constraint=constraint, solver="min_cost_flow")
    result = tm.solve(array, pattern, constraint=constraint, solver="min_cost_flow")
    assert array.tobytes() == before
    assert np.array_equal(result.mask, mask)
    assert (mask.shape, mask.dtype, mask.flags.c_contiguous, mask.flags.writeable) == (array.shape, bool, True, True)
    assert_transposable(mask, pattern, constraint=constraint)
    rows, columns = array.shape[-2:]
    stacks = int(np.prod(array.shape[:-2]))
    assert result.n_blocks == stacks * -(-rows // pattern.m) * -(-columns // pattern.m)
    assert result.status is tm.Status.OPTIMAL
    assert 0 <= result.gap <= 1e-12
    assert result.kept <= result.upper_bound
    scores = np.abs(array.astype(np.float64))
    assert result.kept == pytest.approx((scores * mask).sum(), rel=1e-13)
    assert result.total == pytest.approx(scores.sum(), rel=1e-13)
    assert (result.pattern, result.constraint, result.solver) == (pattern, constraint, "min_cost_flow")


@settings(max_examples=60)
@given(weights(dtypes=[np.float64, np.float32, np.int8]), patterns(max_m=4), st.sampled_from(["exactly", "at_most"]))
def test_anyone_can_check_the_bound_from_the_duals(array, pattern, constraint):
    result = tm.solve(array, pattern, constraint=constraint, solver="min_cost_flow")
    n, m = pattern.n, pattern.m
    if not array.size:
        return
    R, C = array.shape[-2:]
    bound = 0.0
    matrices = np.abs(array.astype(np.float64)).reshape(-1, R, C)
    for S, u, v in zip(
        matrices, result.u.reshape(len(matrices), R, -1), result.v.reshape(len(matrices), -1, C), strict=True
    ):
        slack = S - u.repeat(m, 1)[:, :C] - v.repeat(m, 0)[:R]
        bound += n * (u.sum() + v.sum()) + slack.clip(0).sum()
    scale = np.abs(array.astype(np.float64)).max() * array.size
    assert bound == pytest.approx(result.upper_bound, rel=1e-9, abs=1e-11 * scale)
    if constraint == "at_most":
        assert min(result.u.min(), result.v.min()) >= 0


@pytest.mark.parametrize("axes", [(0, 1), (1, 0), (2, 3), (-1, 0), (3, -3)])
def test_axes_of_a_convolution(axes):
    array = np.random.default_rng(0).standard_normal((8, 12, 3, 5))
    result = tm.solve(array, "2:4", axes=axes)
    assert result.mask.shape == array.shape
    assert result.axes == tuple(axis % 4 for axis in axes)
    matrices, masks = (np.moveaxis(part, axes, (-2, -1)) for part in (array, result.mask))
    for index in np.ndindex(matrices.shape[:2]):
        alone = tm.solve(np.ascontiguousarray(matrices[index]), "2:4")
        assert np.array_equal(masks[index], alone.mask)
    assert tm.check_mask(result.mask, "2:4", constraint="exactly", axes=axes).ok
    assert result.u.shape == (*matrices.shape[:-1], -(-matrices.shape[-1] // 4))


def test_exchanging_the_axes_exchanges_nothing_but_the_ties():
    array = np.random.default_rng(1).standard_normal((12, 16))
    assert np.array_equal(tm.transposable_mask(array, "2:4", axes=(1, 0)), tm.transposable_mask(array, "2:4"))


@pytest.mark.parametrize(
    "kind", [list, tuple, np.asfortranarray, lambda a: np.array(a, ">f8"), lambda a: np.array(a)[::-1]]
)
def test_lists_and_any_memory_order(kind):
    array = np.arange(64.0).reshape(8, 8) % 7
    given_ = kind(array.tolist() if kind in (list, tuple) else array)
    expected = tm.transposable_mask(np.ascontiguousarray(np.asarray(given_, float)), "2:4")
    assert np.array_equal(tm.transposable_mask(given_, "2:4"), expected)


def test_read_only_weights():
    array = np.random.default_rng(2).standard_normal((8, 10))
    array.flags.writeable = False
    assert tm.solve(array, "2:4").status is tm.Status.OPTIMAL


@pytest.mark.parametrize(("n", "m"), [(1, 3), (2, 4), (3, 5)])
@pytest.mark.parametrize("shape", [(7, 9), (4, 4), (2, 11), (1, 1), (10, 3)])
def test_cut_blocks_are_solved_as_at_most_on_what_is_there(n, m, shape, constraint):
    scores = np.abs(np.random.default_rng(3).standard_normal(shape))
    result = tm.solve(scores, (n, m), constraint=constraint, solver="min_cost_flow")
    assert naive.offender(result.mask, n, m, constraint) is None
    optimum = naive.matrix_value(scores, n, m, constraint)
    assert abs(naive.kept_value(scores, result.mask) - optimum) <= optimum * 1e-12
    assert float(optimum) <= result.upper_bound * (1 + 1e-12)


def test_at_most_is_never_worse_and_sometimes_better_than_exactly():
    scores = np.random.default_rng(4).standard_normal((400, 400))
    exactly, at_most = (tm.solve(scores, "2:4", constraint=constraint) for constraint in ("exactly", "at_most"))
    assert at_most.kept > exactly.kept
    blocks = [(scores**2 > -1) & result.mask for result in (exactly, at_most)]
    kept = [
        np.add.reduceat(np.add.reduceat(np.abs(scores) * mask, range(0, 400, 4), 0), range(0, 400, 4), 1)
        for mask in blocks
    ]
    assert (kept[1] >= kept[0] * (1 - 1e-12)).all()
    assert 0.01 < (kept[1] > kept[0] * (1 + 1e-9)).mean() < 0.10


def test_a_result_prints_itself_on_one_line_and_pickles():
    result = tm.solve(np.arange(64.0).reshape(8, 8), "2:4", solver="min_cost_flow")
    assert repr(result).startswith(
        "MaskResult(8x8, 2:4 'exactly', min_cost_flow: kept 1008 = 50.00% of the total, 4 blocks, gap 0.0e+00, optima"
    )
    assert "\n" not in repr(result)
    again = pickle.loads(pickle.dumps(result))
    assert np.array_equal(again.mask, result.mask)
    assert (again.gap, again.status, again.pattern) == (result.gap, result.status, result.pattern)


class Shifted(Solver):
    """A solver that answers with the same circulant for every block."""

    info = MinCostFlow.info

    def solve_scores(self, scores, pattern, constraint):
        line = np.arange(pattern.m)
        return np.broadcast_to((line - line[:, None]) % pattern.m < pattern.n, scores.shape)


def test_a_solver_of_ones_own_and_the_status_of_a_mask_that_is_not_optimal(constraint):
    scores = np.abs(np.random.default_rng(5).standard_normal((8, 8)))
    result = tm.solve(scores, "2:4", constraint=constraint, solver=Shifted())
    optimum = tm.solve(scores, "2:4", constraint=constraint)
    assert result.status is tm.Status.FEASIBLE
    assert result.gap == pytest.approx(1 - result.kept / optimum.kept, abs=1e-6)
    assert "feasible" in repr(result)


def test_solvers_that_have_no_warm_start_say_so():
    array = np.ones((4, 4))
    start = tm.solve(array, "2:4")
    for solver in ("enumeration", "min_cost_flow", "milp"):
        with pytest.raises(
            tm.InvalidArgumentError, match=f"`start` must be None for the solver '{solver}', which has no warm"
        ):
            tm.solve(array, "2:4", solver=solver, start=start)
    with pytest.raises(tm.InvalidTypeError, match="`start` must be a MaskResult or None, got ndarray"):
        tm.solve(array, "2:4", start=start.mask)


class WarmShifted(Shifted):
    """The same, with a warm start that it ignores."""

    warm_startable = True

    def solve_blocks(self, blocks, pattern, *, threads, warm):
        assert warm
        assert blocks.u.any()
        super().solve_blocks(blocks, pattern, threads=threads, warm=warm)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("shape", {"array": np.ones((8, 4))}),
        ("pattern", {"pattern": "1:4"}),
        ("constraint", {"constraint": "at_most"}),
        ("axes", {"axes": (1, 0)}),
    ],
)
def test_a_start_that_does_not_fit_is_refused(name, change):
    array = np.random.default_rng(6).standard_normal((8, 8))
    start = tm.solve(array, "2:4", solver="min_cost_flow")
    assert tm.solve(array, "2:4", solver=WarmShifted(), start=start).n_blocks == 4
    call = {"array": array, "pattern": "2:4", "constraint": "exactly", "axes": (0, 1)} | change
    with pytest.raises(
        tm.InvalidArgumentError, match=f"`start` must be a result for the same {name}, got .* Leave it out"
    ):
        tm.solve(
            call["array"],
            call["pattern"],
            constraint=call["constraint"],
            axes=call["axes"],
            solver=WarmShifted(),
            start=start,
        )


def test_a_start_is_not_changed():
    array = np.random.default_rng(7).standard_normal((8, 8))
    start = tm.solve(array, "2:4", solver="min_cost_flow")
    before = start.u.copy(), start.v.copy(), start.mask.copy()
    tm.solve(2 * array, "2:4", solver=WarmShifted(), start=start)
    assert all(np.array_equal(*pair) for pair in zip(before, (start.u, start.v, start.mask), strict=True))


@pytest.mark.parametrize(
    ("solver", "error", "text"),
    [
        ("gredy", ValueError, "Did you mean 'greedy'?"),
        ("min cost flow", ValueError, "got 'min cost flow'. Did you mean 'min_cost_flow'?"),
        ("", ValueError, "`solver` must be one of 'auto', '"),
        (None, TypeError, "`solver` must be a name or an instance of Solver, got None."),
        (MinCostFlow, TypeError, "Make an instance of it."),
    ],
)
def test_what_is_no_solver(solver, error, text):
    with pytest.raises(error) as raised:
        tm.transposable_mask(np.ones((4, 4)), "2:4", solver=solver)
    assert isinstance(raised.value, tm.TransmaskError)
    assert text in str(raised.value)


def test_blocks_do_not_see_each_other():
    rng = np.random.default_rng(8)
    array = rng.standard_normal((12, 12))
    mask = tm.transposable_mask(array, "2:4")
    for row, column in product(range(0, 12, 4), repeat=2):
        other = array.copy()
        other[row : row + 4, column : column + 4] = rng.standard_normal((4, 4)) * 100
        changed = tm.transposable_mask(other, "2:4") != mask
        changed[row : row + 4, column : column + 4] = False
        assert not changed.any()


def test_a_pattern_too_large_for_memory_is_refused():
    with pytest.raises(tm.UnsupportedPatternError, match="`pattern` must have M of at most 4096, got '2:40000'"):
        tm.transposable_mask(np.ones((4, 4)), "2:40000", solver="greedy")
    assert tm.nm_mask(np.ones((2, 5)), "2:1000000").sum(axis=1).tolist() == [2, 2]


def test_a_dtype_without_a_zero_is_refused():
    with pytest.raises(tm.InvalidTypeError, match="`weights` must hold a dtype that has a zero, got float8_e8m0fnu"):
        tm.solve(np.ones((3, 3)).astype(ml_dtypes.float8_e8m0fnu), "1:4")


def test_a_huge_weight_does_not_hide_what_other_blocks_lose():
    weights = np.random.default_rng(0).standard_normal((40, 40))
    weights[:4, :4] *= 1e20
    exact = tm.solve(weights, "2:4")
    weights_left = np.abs(weights)
    worse = exact.mask.copy()
    worse[36:, 36:] = np.roll(worse[36:, 36:], 1, axis=0)
    assert weights_left[worse].sum() == pytest.approx(exact.kept, rel=1e-15)
    certificate = tm.certify(weights, worse, "2:4")
    assert certificate.gap <= 1e-12 < certificate.worst_gap
    assert exact.worst_gap <= 1e-12
    assert exact.status is tm.Status.OPTIMAL


def test_edited_duals_of_another_shape_are_no_start():
    result = tm.solve(np.ones((8, 8)), "2:4")
    with pytest.raises(tm.InvalidArgumentError, match="`start` must be a result for the same shape of u and v"):
        tm.solve(np.ones((8, 8)), "2:4", start=dataclasses.replace(result, u=np.zeros((1, 1))))
