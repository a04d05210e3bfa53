"""Masks are optimal in exact arithmetic beside scores that are larger by many orders of magnitude."""

from fractions import Fraction

import families
import numpy as np
import pytest

import transmask as tm

PATTERNS = [(2, 4), *(pytest.param(*p, marks=pytest.mark.compiled) for p in [(1, 4), (2, 5), (4, 8), (8, 16)])]
LARGE = [(16, 32), (32, 64)]


def one_outlier(size):
    def family(rng, count, m):
        scores = np.abs(rng.standard_normal((count, m, m)))
        for block in scores:
            block[tuple(rng.integers(0, m, 2))] = size
        return scores

    return family


def two_outliers(rng, count, m):
    return one_outlier(1e9)(rng, count, m) + np.maximum(one_outlier(1e18)(rng, count, m) - 10, 0)


def large_lines(rng, count, m):
    scores = np.abs(rng.standard_normal((count, m, m)))
    scores[:, 0] *= 1e18
    scores[:, :, -1] *= 1e15
    return scores


def powers_of_two(rng, count, m):
    """Ties at every size."""
    return 2.0 ** rng.integers(-60, 60, (count, m, m))


def small_integers(rng, count, m):
    scores = rng.integers(0, 3, (count, m, m)) * 1.0
    scores[:, 0, 0], scores[:, 1, 1] = 2.0**60, 2.0**90
    return scores


OUTLIERS = {f"{size:g}": one_outlier(size) for size in (1e6, 1e12, 1e18, 1e30)}
WIDE = {
    family.__name__: family
    for family in (
        two_outliers, large_lines, powers_of_two, small_integers, families.below_resolution, families.sixty_decades,
        families.six_hundred_decades,
    )
}  # fmt: skip


def can_be_improved(scores, mask, n, at_most):
    """Tell whether an exchange gains, by Bellman-Ford on rational numbers: as integers of any size."""
    m = len(scores)
    exact = [[Fraction(float(score)) for score in row] for row in scores]
    common = max(score.denominator for row in exact for score in row)
    gains = [[int(score * common) for score in row] for row in exact]
    dummy = 2 * m
    arcs = [
        (m + j, i, gains[i][j]) if mask[i, j] else (i, m + j, -gains[i][j])
        for i in range(m) for j in range(m)
    ]  # fmt: skip
    for line in range(m if at_most else 0):
        arcs += [(line, dummy, 0), (dummy, m + line, 0)]
        arcs += [(dummy, line, 0)] * int(mask[line].sum() < n) + [(m + line, dummy, 0)] * int(mask[:, line].sum() < n)
    distances = [0] * (dummy + 1)
    for _ in range(dummy + 2):
        changed = False
        for tail, head, cost in arcs:
            if distances[tail] + cost < distances[head]:
                distances[head], changed = distances[tail] + cost, True
        if not changed:
            return False
    return True


def proof_gap(scores, mask, u, v, n):
    """The bound of the duals less what is kept, in exact arithmetic."""
    u, v = ([Fraction(dual) for dual in duals.ravel().tolist()] for duals in (u, v))
    gap = n * (sum(u) + sum(v))
    for (i, j), score in np.ndenumerate(scores):
        gap += max(Fraction(0), Fraction(float(score)) - u[i] - v[j]) - int(mask[i, j]) * Fraction(float(score))
    return gap


def blocks_of(family, count, m, dtype):
    """Blocks side by side, among others without an outlier, which are solved in the lanes beside them."""
    rng = np.random.default_rng(m)
    with np.errstate(over="ignore"):
        blocks = np.asarray(family(rng, count, m)).astype(dtype)
    ordinary = families.gaussian(rng, 17, m).astype(dtype)
    return rng.permutation(
        np.concatenate([np.minimum(blocks, dtype(1e30) if dtype == np.float32 else 1e300), ordinary])
    )


def check(family, n, m, dtype, constraint, count):
    """Solve blocks; yield each with its mask and duals, once the mask is known to be optimal."""
    blocks = blocks_of(family, count, m, dtype)
    matrix = np.ascontiguousarray(blocks.swapaxes(0, 1)).reshape(m, -1)
    result = tm.solve(matrix, (n, m), constraint=constraint, solver="primal_dual")
    masks = result.mask.reshape(m, -1, m).swapaxes(0, 1)
    assert np.array_equal(tm.transposable_mask(blocks, (n, m), constraint=constraint, solver="primal_dual"), masks)
    assert tm.check_mask(result.mask, (n, m), constraint=constraint).ok
    for block, mask, u, v in zip(blocks, masks, result.u.T, result.v.reshape(-1, m), strict=True):
        assert not can_be_improved(block, mask, n, constraint == "at_most")
        assert constraint == "exactly" or min(u.min(), v.min()) >= 0
        yield block, mask, u, v


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", OUTLIERS)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_beside_one_outlier_the_rest_is_optimal_and_proven(n, m, size, dtype, constraint):
    """The duals prove it to 1e-8 of the median score of the block, up to 1e18."""
    for block, mask, u, v in check(OUTLIERS[size], n, m, dtype, constraint, max(3, 64 // m)):
        assert size == "1e+30" or proof_gap(block, mask, u, v, n) < 1e-8 * np.median(block)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("family", WIDE)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_scores_of_all_sizes(n, m, family, dtype, constraint):
    for _ in check(WIDE[family], n, m, dtype, constraint, max(3, 64 // m)):
        pass


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("family", ["1e+18", "large_lines", "sixty_decades"])
@pytest.mark.parametrize(("n", "m"), LARGE)
def test_large_blocks(n, m, family, constraint):
    for _ in check({**OUTLIERS, **WIDE}[family], n, m, np.float64, constraint, 3):
        pass


@pytest.mark.parametrize(
    ("solver", "size"),
    [
        ("enumeration", 1e12),
        ("min_cost_flow", 1e12),
        ("milp", 1e12),
        ("network_simplex", 1e12),
        ("network_simplex", 1e18),
    ],
)
def test_what_the_other_exact_solvers_tell_apart(solver, size, constraint):
    for block in one_outlier(size)(np.random.default_rng(0), 10, 4):
        mask = tm.transposable_mask(block, "2:4", constraint=constraint, solver=solver)
        assert not can_be_improved(block, mask, 2, constraint == "at_most")


@pytest.mark.parametrize("constraint", ["exactly", "at_most"])
def test_the_oracle_sees_the_least_exchange(constraint):
    """One unit of the last place of the smallest score, beside 1e18."""
    block = np.array([[1e18, 0.0], [0.0, 1e-300]])
    assert not can_be_improved(block, np.eye(2, dtype=bool), 1, constraint == "at_most")
    block[0, 1] = np.nextafter(1e18, 2e18)
    assert can_be_improved(block, np.eye(2, dtype=bool), 1, constraint == "at_most")
    zeros = np.array([[5.0, 1e-320], [0.0, 0.0]])
    assert can_be_improved(zeros, np.array([[False, True], [True, False]]), 1, constraint == "at_most")
    assert not can_be_improved(zeros, np.array([[True, False], [False, True]]), 1, constraint == "at_most")
