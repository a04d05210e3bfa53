"""The certificate: never below the optimum, tight for optimal masks, honest for all others, whoever made the mask."""

from fractions import Fraction

import families
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transmask as tm
from transmask.blocks import empty_duals
from transmask.certificate import PROVEN_GAP, certify_matrices
from transmask.certificate.duals import linear_program_duals
from transmask.testing import patterns, weights

SLACK = Fraction(1, 10**15)  # rounding of the float64 sum that the bound is


def optimal_masks(scores, n, constraint):
    return np.array([naive.best_mask(block, n, constraint) for block in scores])


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (2, 4), (3, 4), (2, 5), (4, 8), (7, 8), (1, 8)])
def test_optimal_masks_are_proven_optimal(family, n, m, constraint):
    scores = family(np.random.default_rng(m), 3, m)
    mask = optimal_masks(scores, n, constraint)
    for block, block_mask in zip(scores, mask, strict=True):
        certificate = tm.certify(block, block_mask, (n, m), constraint=constraint)
        kept = naive.kept_value(block, block_mask)
        assert certificate.gap <= 1e-12
        assert certificate.kept == pytest.approx(float(kept), rel=1e-14)
        assert certificate.kept <= certificate.upper_bound
        assert Fraction(certificate.upper_bound) >= kept * (1 - SLACK)
    assert tm.certify(scores, mask, (n, m), constraint=constraint, threads=2).gap <= 1e-12


@pytest.mark.parametrize("family", [families.gaussian_float32, families.int4, families.cauchy, families.half_zeros])
@pytest.mark.parametrize(("n", "m"), [(8, 16), (3, 16), (16, 32)])
def test_optimal_masks_of_larger_blocks(family, n, m, constraint):
    scores = family(np.random.default_rng(m), 1, m)
    certificate = tm.certify(scores, optimal_masks(scores, n, constraint), (n, m), constraint=constraint)
    assert certificate.gap <= 1e-12


@pytest.mark.parametrize("shape", [(10, 13), (4, 9), (3, 3), (1, 17), (9, 4), (2, 7, 6)])
@pytest.mark.parametrize("family", [families.gaussian, families.int4, families.sixty_decades])
def test_optimal_masks_of_matrices_with_edges(shape, family, constraint):
    scores = family(np.random.default_rng(0), shape[0] if len(shape) == 3 else 1, 17)[:, : shape[-2], : shape[-1]]
    mask = np.zeros(scores.shape, bool)
    for index, row, column in np.ndindex(len(scores), -(-shape[-2] // 4), -(-shape[-1] // 4)):
        part = index, slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4)
        mask[part] = naive.best_mask(scores[part], 2, constraint if scores[part].shape == (4, 4) else "at_most")
    assert tm.certify(scores, mask, "2:4", constraint=constraint).gap <= 1e-12


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_bound_is_never_below_brute_force_whatever_the_mask(family, n, constraint):
    rng = np.random.default_rng(n)
    for block in family(rng, 4, 4):
        optimum = naive.brute_force_value(block, n, constraint)
        for mask in (naive.random_mask(rng, n, 4), naive.all_masks(n, 4, constraint)[-1]):
            certificate = tm.certify(block, mask, (n, 4), constraint=constraint)
            assert Fraction(certificate.upper_bound) >= optimum * (1 - SLACK)
            bound = naive.dual_bound(block, certificate.u[:, 0], certificate.v[0], n)
            assert bound >= optimum
            assert abs(bound - Fraction(certificate.upper_bound)) <= bound * Fraction(1, 10**12)
            if constraint == "at_most":
                assert min(certificate.u.min(), certificate.v.min()) >= 0


@pytest.mark.parametrize("family", [families.gaussian, families.int4, families.tenths, families.band, families.cauchy])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_a_mask_that_is_not_optimal_never_gets_gap_0(family, n, m, constraint):
    rng = np.random.default_rng(5)
    tried = 0
    for block in family(rng, 20, m):
        mask = naive.random_mask(rng, n, m)
        kept, optimum = naive.kept_value(block, mask), naive.best_value(block, n, constraint)
        if kept == optimum:
            continue
        tried += 1
        certificate = tm.certify(block, mask, (n, m), constraint=constraint)
        lost = float((optimum - kept) / optimum)
        assert certificate.gap >= lost * (1 - 1e-9)
        assert certificate.gap > PROVEN_GAP
    assert tried >= 10


@pytest.mark.parametrize("epsilon", [1e-2, 1e-5, 1e-8, 1e-10])
def test_a_loss_however_small_is_seen(epsilon, constraint):
    """Two masks differ by one exchange that costs epsilon of the sum."""
    scores = np.array([[1.0, 1.0 - epsilon], [1.0, 1.0]])
    worse = tm.certify(scores, [[False, True], [True, False]], "1:2", constraint=constraint)
    better = tm.certify(scores, np.eye(2), "1:2", constraint=constraint)
    assert worse.gap == pytest.approx(epsilon / 2, rel=1e-4)
    assert better.gap == 0


def test_a_mask_short_of_an_entry_is_not_optimal_at_most():
    scores = np.ones((4, 4))
    mask = naive.random_mask(np.random.default_rng(0), 2, 4)
    assert tm.certify(scores, mask, "2:4", constraint="at_most").gap == 0
    mask[tuple(np.argwhere(mask)[0])] = False
    assert tm.certify(scores, mask, "2:4", constraint="at_most").gap == pytest.approx(1 / 8, rel=1e-6)
    assert tm.certify(scores, np.zeros((4, 4)), "2:4", constraint="at_most").gap == pytest.approx(1, rel=1e-6)


def test_a_mask_can_be_optimal_exactly_and_not_at_most():
    scores = families.better_with_fewer(np.random.default_rng(0), 1, 4)[0]
    mask = naive.best_mask(scores, 2, "exactly")
    assert tm.certify(scores, mask, "2:4", constraint="exactly").gap <= 1e-12
    lost = 1 - naive.kept_value(scores, mask) / naive.best_value(scores, 2, "at_most")
    assert tm.certify(scores, mask, "2:4", constraint="at_most").gap == pytest.approx(float(lost), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_for_greedy_masks_the_gap_is_the_loss(seed):
    """To within 1e-6 of the kept sum, on Gaussian blocks with 4:8."""
    scores = families.gaussian(np.random.default_rng(seed), 100, 8)
    mask = np.array([naive.greedy_mask(block, 4) for block in scores])
    certificate = tm.certify(scores, mask, "4:8", constraint="at_most")
    optimum = float(sum(naive.best_value(block, 4, "at_most") for block in scores))
    assert certificate.upper_bound - optimum <= 1e-6 * certificate.kept
    assert certificate.gap == pytest.approx(1 - certificate.kept / optimum, abs=1e-6)
    assert certificate.gap > 1e-3


@pytest.mark.parametrize(
    "family", sorted({*families.FAMILIES} - {families.denormal}, key=lambda family: family.__name__)
)
@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (4, 8)])
def test_for_any_mask_the_gap_is_the_loss(family, n, m, constraint):
    """Of each block, to within 1e-6, also where coordinate-wise minimisation of the bound stalls.

    Not so for scores of a few times the smallest float64: their duals, halves of them, are none.
    """
    rng = np.random.default_rng(m)
    for block in family(rng, 10, m):
        mask = naive.random_mask(rng, n, m)
        certificate = tm.certify(block, mask, (n, m), constraint=constraint)
        optimum = naive.best_value(block, n, constraint)
        lost = 1 - naive.kept_value(block, mask) / optimum if optimum else 0
        assert certificate.gap == pytest.approx(float(lost), abs=1e-6)


@settings(max_examples=100)
@given(
    weights(max_side=9, max_batch_axes=1),
    patterns(max_m=5),
    st.sampled_from(["exactly", "at_most"]),
    st.integers(0, 99),
)
def test_any_weights_and_any_feasible_mask(array, pattern, constraint, seed):
    n, m = pattern.n, pattern.m
    rng = np.random.default_rng(seed)
    tiles = [np.block([[naive.random_mask(rng, n, m)] * (array.shape[-1] // m + 1)] * (array.shape[-2] // m + 1))]
    mask = np.broadcast_to(tiles[0][: array.shape[-2], : array.shape[-1]], array.shape)
    before = array.tobytes()
    certificate = tm.certify(array, mask, pattern, constraint=constraint)
    assert array.tobytes() == before
    if not array.size:
        assert (certificate.kept, certificate.upper_bound, certificate.gap) == (0.0, 0.0, 0.0)
        return
    scores = np.abs(array.astype(np.float64)).reshape(-1, *array.shape[-2:])
    kept = naive.kept_value(scores, mask.reshape(scores.shape))
    optimum = sum(naive.matrix_value(matrix, n, m, constraint) for matrix in scores)
    assert Fraction(certificate.upper_bound) >= optimum * (1 - SLACK * array.size)
    assert abs(Fraction(certificate.kept) - kept) <= kept * SLACK * array.size
    if kept == optimum:
        assert certificate.gap <= 1e-12


def test_the_answer_does_not_depend_on_threads_or_memory_order(constraint):
    rng = np.random.default_rng(9)
    array = rng.standard_normal((3, 130, 70))
    mask = tm.transposable_mask(array, "2:4", constraint=constraint)
    mask[0, :4, :4] = naive.random_mask(rng, 2, 4)
    one = tm.certify(array, mask, "2:4", constraint=constraint, threads=1)
    for other in (
        tm.certify(array, mask, "2:4", constraint=constraint, threads=3),
        tm.certify(np.asfortranarray(array), mask, "2:4", constraint=constraint),
        tm.certify(-array[:, ::-1][:, ::-1], np.asfortranarray(mask), "2:4", constraint=constraint),
        tm.certify(array.transpose(1, 2, 0), mask.transpose(1, 2, 0), "2:4", constraint=constraint, axes=(0, 1)),
    ):
        assert (other.kept, other.upper_bound) == (one.kept, one.upper_bound)
        assert np.array_equal(other.u, one.u)
        assert np.array_equal(other.v, one.v)


def test_the_worst_gap_is_that_of_the_worst_block(constraint):
    rng = np.random.default_rng(11)
    scores = families.gaussian(rng, 30, 4) * 10.0 ** rng.integers(-9, 9, (30, 1, 1))
    mask = np.array([naive.random_mask(rng, 2, 4) for _ in scores])
    together = tm.certify(scores, mask, "2:4", constraint=constraint, threads=2)
    alone = [tm.certify(*pair, "2:4", constraint=constraint).gap for pair in zip(scores, mask, strict=True)]
    assert together.worst_gap == pytest.approx(max(alone), rel=1e-12)
    assert together.worst_gap > together.gap


@pytest.mark.parametrize("n", [0, 4])
def test_keeping_nothing_or_everything_is_optimal(n, constraint):
    scores = families.gaussian(np.random.default_rng(0), 2, 8)
    certificate = tm.certify(scores, np.full(scores.shape, n > 0), (n, 4), constraint=constraint)
    assert certificate.gap <= 1e-12
    assert certificate.kept == pytest.approx(n / 4 * scores.sum())


@pytest.mark.parametrize(
    ("mask", "constraint", "text"),
    [
        (np.tri(4), "at_most", "keep at most 2 of every 4, but row 2, columns 0 to 3 keeps 3, more than 2 of 4."),
        (np.eye(4), "exactly", "keep exactly 2 of every 4, but row 0, columns 0 to 3 keeps 1, fewer than 2 of 4."),
        (np.eye(3), "exactly", "`mask` must have the shape of the weights, (4, 4), got (3, 3)."),
        (np.eye(4)[None], "exactly", "`mask` must have the shape of the weights, (4, 4), got (1, 4, 4)."),
        (np.full((4, 4), 0.5), "exactly", "`mask` must hold only 0 and 1, got 0.5 at index (0, 0)."),
    ],
)
def test_what_cannot_be_certified(mask, constraint, text):
    with pytest.raises(tm.InvalidArgumentError) as raised:
        tm.certify(np.ones((4, 4)), mask, "2:4", constraint=constraint)
    assert text in str(raised.value)


@pytest.mark.parametrize("start", [-1.0, 1e3, -1e6, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_whatever_duals_a_solver_leaves_the_bound_holds_and_is_tight(start, share, constraint):
    rng = np.random.default_rng(3)
    scores = families.gaussian(rng, 1, 20)[0]
    duals = tuple(np.where(rng.random(part.shape) < share, start, part) for part in empty_duals(scores.shape, 4))
    for good in (True, False):
        mask = tm.transposable_mask(scores, "2:4", constraint=constraint, solver="min_cost_flow")
        if not good:
            mask[:4, :4] = naive.random_mask(rng, 2, 4)
        u, v = (part.copy() for part in duals)
        proof = certify_matrices(scores, mask, (u, v), tm.Pattern(2, 4), constraint, threads=1)
        optimum = float(naive.matrix_value(scores, 2, 4, constraint))
        assert proof.upper_bound == pytest.approx(optimum, rel=1e-9)
        assert proof.upper_bound >= optimum * (1 - 1e-15)
        assert proof.kept == pytest.approx((scores * mask).sum(), rel=1e-14)
        assert np.isfinite(u).all()
        assert np.isfinite(v).all()


def test_duals_of_the_other_constraint_prove_nothing():
    """For "exactly" they may be negative, and then their bound is none for "at_most"."""
    scores = families.better_with_fewer(np.random.default_rng(0), 1, 4)[0]
    mask = naive.best_mask(scores, 2, "exactly")
    exactly = tm.certify(scores, mask, "2:4", constraint="exactly")
    assert min(exactly.u.min(), exactly.v.min()) < 0
    duals = exactly.u.copy(), exactly.v.copy()
    proof = certify_matrices(scores, mask, duals, tm.Pattern(2, 4), "at_most", threads=1)
    assert proof.upper_bound == pytest.approx(float(naive.best_value(scores, 2, "at_most")), rel=1e-9)


EXTREME = {families.denormal, families.zeros, families.six_hundred_decades}


@pytest.mark.parametrize("family", sorted({*families.FAMILIES} - EXTREME, key=lambda family: family.__name__))
@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (4, 8)])
def test_the_linear_program_is_tight(family, n, m, constraint):
    for block in family(np.random.default_rng(m), 2, m).astype(np.float64):
        u, v = linear_program_duals(block, n, at_most=constraint == "at_most")
        optimum = naive.best_value(block, n, constraint)
        assert 0 <= naive.dual_bound(block, u, v, n) - optimum <= optimum * Fraction(1, 10**12)
        if constraint == "at_most":
            assert min(u.min(), v.min()) >= 0


def test_what_proves_shares_no_code_with_a_solver():
    """Nothing of the solvers is imported by the files that prove, nor by what they import."""
    import ast
    from pathlib import Path

    import transmask

    package = Path(transmask.__file__).parent
    seen, todo = set(), [package / "certificate" / "proof.py"]
    while todo:
        path = todo.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert "solvers" not in (node.module or "").split(".")
                target = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                todo += [target.with_suffix(".py"), target / "__init__.py"]
    names = {path.relative_to(package).as_posix() for path in seen}
    assert {"certificate/proof.py", "certificate/kernel.py", "blocks.py", "pattern.py"} <= names
