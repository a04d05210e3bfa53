"""`start=`: the duals of a previous result, however bad, change how long a solve takes, never how good its mask is."""

import dataclasses

import families
import numba
import numpy as np
import pytest

import transmask as tm
from transmask.blocks import Blocks
from transmask.solvers import PrimalDual

pytestmark = pytest.mark.many_patterns

COUNT = 1 if numba.config.DISABLE_JIT else 25  # blocks of each family
PATTERNS = [(2, 4), (3, 5), (4, 8)] if numba.config.DISABLE_JIT else [(2, 4), (3, 5), (4, 8), (8, 16)]

# numpy says so where kernels are not compiled, of duals that are clamped in the end
python_overflows = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


def solve(weights, pattern, constraint, **options):
    return tm.solve(weights, pattern, constraint=constraint, solver="primal_dual", **options)


def assert_as_good(result, cold):
    """Feasible, proven, and worth what the cold solve found."""
    assert tm.check_mask(result.mask, cold.pattern, constraint=cold.constraint).ok
    assert result.gap <= 1e-12
    assert result.kept == pytest.approx(cold.kept, rel=1e-12)
    assert result.worst_gap <= 1e-12


def stacks(m):
    """One (B, M, M) stack of blocks for each family."""
    rng = np.random.default_rng(m)
    for family in families.FAMILIES:
        yield family.__name__, np.asarray(family(rng, COUNT, m)) * rng.choice([-1, 1], (COUNT, m, m)).astype(np.int8)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_the_same_weights_again(n, m, constraint):
    for _, weights in stacks(m):
        cold = solve(weights, (n, m), constraint)
        warm = solve(weights, (n, m), constraint, start=cold)
        assert_as_good(warm, cold)
        assert_as_good(solve(weights, (n, m), constraint, start=warm), cold)


@pytest.mark.parametrize("change", [1e-3, 0.3])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_weights_that_changed(n, m, constraint, change):
    for _, weights in stacks(m):
        previous = solve(weights, (n, m), constraint)
        factor = 1 - change * np.random.default_rng(0).random(weights.shape)
        changed = (weights * factor).astype(weights.dtype)
        assert_as_good(solve(changed, (n, m), constraint, start=previous), solve(changed, (n, m), constraint))


@python_overflows
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_weights_that_have_nothing_to_do_with_the_previous_ones(n, m, constraint):
    names, weights = zip(*stacks(m), strict=True)
    for index in range(len(names)):
        previous = solve(weights[index - 1], (n, m), constraint)
        cold = solve(weights[index], (n, m), constraint)
        assert_as_good(solve(weights[index], (n, m), constraint, start=previous), cold)


GARBAGE = {
    "zeros": lambda rng, shape: np.zeros(shape),
    "random": lambda rng, shape: rng.standard_normal(shape) * 3,
    "negative": lambda rng, shape: -rng.random(shape),
    "far too large": lambda rng, shape: np.full(shape, 1e300),
    "far too small": lambda rng, shape: np.full(shape, -1e300),
    "mixed sizes": lambda rng, shape: rng.choice([-1.0, 1.0], shape) * 10.0 ** rng.uniform(-300, 300, shape),
    "tiny": lambda rng, shape: np.full(shape, 5e-324),
    "not a number": lambda rng, shape: np.where(rng.random(shape) < 0.5, np.nan, 1.0),
    "infinite": lambda rng, shape: rng.choice([-np.inf, np.inf, 0.0], shape),
}


@python_overflows
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(
    ("n", "m"), [PATTERNS[0], PATTERNS[-1], *(pytest.param(*size, marks=pytest.mark.slow) for size in PATTERNS[1:-1])]
)
def test_garbage(n, m, garbage, constraint):
    rng = np.random.default_rng(1)
    for _, weights in stacks(m):
        cold = solve(weights, (n, m), constraint)
        u, v = GARBAGE[garbage](rng, cold.u.shape), GARBAGE[garbage](rng, cold.v.shape)
        for start in ({"u": u, "v": v}, {"v": v}, {"u": u, "v": -v}):
            start = dataclasses.replace(cold, **start)
            before = start.u.tobytes(), start.v.tobytes()
            assert_as_good(solve(weights, (n, m), constraint, start=start), cold)
            assert (start.u.tobytes(), start.v.tobytes()) == before


@python_overflows
@pytest.mark.parametrize("garbage", ["zeros", "random", "far too large", "mixed sizes"])
def test_what_the_solver_leaves_from_garbage_proves_its_masks_too(garbage, constraint):
    """Without the certificate, which finds duals of its own where the solver's are bad."""
    rng = np.random.default_rng(2)
    n, m = 4, 8
    for _, weights in stacks(m):
        scores = np.abs(weights.astype(np.float64))
        mask = np.zeros(scores.shape, bool)
        u, v = (GARBAGE[garbage](rng, scores.shape[:2]) for _ in range(2))
        blocks = Blocks(scores[None, None], mask[None, None], u[None, None], v[None, None], constraint)
        PrimalDual().solve_blocks(blocks, tm.Pattern(n, m), threads=1, warm=True)
        assert (mask.sum(axis=1) <= n).all()
        assert (mask.sum(axis=2) <= n).all()
        slack = (scores - u[:, :, None] - v[:, None, :]).clip(0).sum(axis=(1, 2))
        bound = n * (u.sum(axis=1) + v.sum(axis=1)) + slack
        kept = (scores * mask).sum(axis=(1, 2))
        resolution = 2 * n * m * np.finfo(np.float64).smallest_subnormal
        assert (np.abs(bound - kept) <= 1e-12 * bound + resolution).all()


@python_overflows
def test_one_start_is_the_same_for_any_number_of_threads_and_any_layout(constraint):
    weights = np.concatenate([stack for _, stack in stacks(8)]).reshape(-1, 8).astype(np.float64)
    weights[np.abs(weights) > 1e200] = 1.0
    cold = solve(weights, "4:8", constraint)
    start = dataclasses.replace(cold, u=cold.u * 1.1, v=cold.v * 0.9 + 0.01)
    expected = solve(weights, "4:8", constraint, start=start, threads=1)
    for threads in (2, 3, 7):
        for array in (weights, np.asfortranarray(weights)):
            found = solve(array, "4:8", constraint, start=start, threads=threads)
            assert (found.mask.tobytes(), found.u.tobytes()) == (expected.mask.tobytes(), expected.u.tobytes())


def test_a_start_near_the_optimum_saves_sweeps(monkeypatch):
    """Four half sweeps are enough for hardly any cold block of 8:16, and for nearly all after a small change.

    A block for which they are enough is left with the same duals if there may be more of them.
    """
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((40, 16, 16))
    previous = solve(weights, "8:16", "exactly")
    changed = weights * (1 + 1e-5 * rng.standard_normal(weights.shape))

    def duals(warm):
        u, v = previous.u.copy().reshape(1, 1, 40, 16), previous.v.copy().reshape(1, 1, 40, 16)
        blocks = Blocks(changed[None, None], np.zeros((1, 1, 40, 16, 16), bool), u, v, "exactly")
        PrimalDual().solve_blocks(blocks, tm.Pattern(8, 16), threads=1, warm=warm)
        return u[0, 0]

    unlimited = {warm: duals(warm) for warm in (False, True)}
    monkeypatch.setattr("transmask.solvers.primal_dual.half_sweep_limit", lambda m: 4)
    enough = {warm: (duals(warm) == unlimited[warm]).all(axis=1).sum() for warm in (False, True)}
    assert enough[False] <= 4
    assert enough[True] >= 36


@pytest.mark.parametrize("axes", [(-2, -1), (0, 1), (2, 0)])
def test_axes_and_cut_edges(axes, constraint):
    weights = np.random.default_rng(4).standard_normal((11, 13, 9))
    cold = solve(weights, "2:4", constraint, axes=axes)
    warm = solve(weights * 1.001, "2:4", constraint, axes=axes, start=cold)
    assert warm.kept == pytest.approx(1.001 * cold.kept, rel=1e-12)
    assert np.array_equal(warm.mask, cold.mask)
    assert warm.gap <= 1e-12


def test_what_does_not_fit_is_refused():
    weights = np.random.default_rng(5).standard_normal((8, 8))
    start = solve(weights, "2:4", "exactly")
    why = "A mask alone holds no dual variables."
    floats = "Pass a result of `solve`."
    cases = [
        (
            {},
            {"start": dataclasses.replace(start, u=start.u.tolist())},
            TypeError,
            f"`start.u` must be an array of floats, got list. {floats}",
        ),
        (
            {},
            {"start": dataclasses.replace(start, v=start.v.astype(complex))},
            TypeError,
            f"`start.v` must be an array of floats, got complex128. {floats}",
        ),
        ({}, {"start": (start.u, start.v)}, TypeError, f"`start` must be a MaskResult or None, got tuple. {why}"),
        ({}, {"start": start.mask}, TypeError, f"`start` must be a MaskResult or None, got ndarray. {why}"),
        (
            {"weights": weights[:4]},
            {},
            ValueError,
            "`start` must be a result for the same shape, got (8, 8) where the weights have (4, 8). Leave it out.",
        ),
        (
            {"pattern": "1:4"},
            {},
            ValueError,
            "`start` must be a result for the same pattern, got 2:4 where the weights have 1:4. Leave it out.",
        ),
        (
            {},
            {"constraint": "at_most"},
            ValueError,
            "`start` must be a result for the same constraint, got exactly where the weights have at_most. "
            "Leave it out.",
        ),
        (
            {},
            {"axes": (1, 0)},
            ValueError,
            "`start` must be a result for the same axes, got (0, 1) where the weights have (1, 0). Leave it out.",
        ),
        (
            {},
            {"solver": "greedy"},
            ValueError,
            "`start` must be None for the solver 'greedy', which has no warm start, got a MaskResult. "
            "Use 'primal_dual'.",
        ),
    ]
    for positional, options, error, text in cases:
        arguments = {"weights": weights, "pattern": "2:4", **positional}
        options = {"solver": "primal_dual", "start": start, **options}
        with pytest.raises(error) as raised:
            tm.solve(*arguments.values(), **options)
        assert isinstance(raised.value, tm.TransmaskError)
        assert str(raised.value) == text
