"""The pass that proves: every sum against loops that share no code with it, whatever the weights, masks and duals."""

from statistics import median_low

import families
import ml_dtypes
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transmask as tm
from transmask.certificate import proof as proof_module
from transmask.certificate.proof import prove, prove_each
from transmask.solvers import Greedy, SolverInfo

PATTERNS = [(2, 4), (1, 4), (3, 5), (4, 8), (6, 9), (8, 16), (0, 3), (3, 3), (16, 32), (20, 64), (1, 3)]


def blocks_of(shape, m):
    return [(i, j) for i in range(-(-shape[0] // m)) for j in range(-(-shape[1] // m))]


def slow_proof(weights, mask, u, v, n, m, constraint):
    """Sum up the bound of one matrix in float64, block by block and line by line; duals that are not valid are 0."""
    kept = bound = total = 0.0
    gaps, unproven, broken = [0.0], 0, 0
    for i, j in blocks_of(weights.shape, m):
        part = slice(i * m, i * m + m), slice(j * m, j * m + m)
        scores, block = np.abs(weights[part].astype(np.float64)), mask[part]
        at_most = constraint == "at_most" or scores.shape != (m, m)
        rows, columns = u[part[0], j].copy(), v[i, part[1]].copy()
        for duals in (rows, columns):
            duals[~np.isfinite(duals) | (at_most & (duals < 0))] = 0.0
        block_kept, distance = scores[block].sum(), 0.0
        for (row, column), score in np.ndenumerate(scores):
            reduced = score - rows[row] - columns[column]
            distance += max(0.0, -reduced if block[row, column] else reduced)
        counts = block.sum(axis=1), block.sum(axis=0)
        for duals, count in zip((rows, columns), counts, strict=True):
            distance += float((duals * (n - count)).sum())
            broken += int((count > n).sum() if at_most else (count != n).sum())
        kept, total, bound = kept + block_kept, total + scores.sum(), bound + block_kept + distance
        if distance > 0:
            gaps.append(distance / (block_kept + distance))
            values = scores[block][scores[block] > 0].tolist()
            unproven += distance > 1e-12 * len(values) * (median_low(values) if values else 0.0)
    return kept, bound, total, max(gaps), broken, unproven


def compare(weights, mask, u, v, n, m, constraint, threads=1):
    """Hold the pass to the slow sums. Whether the last digit of a distance proves a block is not compared."""
    found = prove(weights, mask, (u.copy(), v.copy()), tm.Pattern(n, m), constraint, threads=threads)
    matrices = zip(*(a.reshape(-1, *a.shape[-2:]) for a in (weights, mask, u, v)), strict=True)
    kept, bound, total, gap, broken, unproven = zip(
        *(slow_proof(*arrays, n, m, constraint) for arrays in matrices), strict=True
    )
    assert found.broken == sum(broken)
    assert found.kept == pytest.approx(sum(kept), rel=1e-13)
    assert found.total == pytest.approx(sum(total), rel=1e-13)
    if not found.broken:
        assert found.upper_bound == pytest.approx(sum(bound), rel=1e-12, abs=1e-12 * sum(total))
        assert found.worst_gap == pytest.approx(max(gap), rel=1e-6, abs=1e-13)
        if max(gap) > 1e-9:
            assert found.unproven == sum(unproven)
    if weights.ndim == 3:
        for matrix, one in enumerate(prove_each(weights, mask, (u.copy(), v.copy()), tm.Pattern(n, m), constraint)):
            alone = prove(
                *(array[matrix] for array in (weights, mask)),
                (u[matrix], v[matrix]),
                tm.Pattern(n, m),
                constraint,
                threads=1,
            )
            assert one[:4] == pytest.approx(alone[:4], rel=1e-12)
            assert one[4:6] == alone[4:6]
    return found


def some_masks(rng, scores, n, constraint):
    """Masks that hold their constraint: at random, and with "at_most" a few entries short of full."""
    masks = np.array([naive.random_mask(rng, n, scores.shape[-1]) for _ in scores], bool)
    return masks & (rng.random(masks.shape) < 0.9) if constraint == "at_most" else masks


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_the_sums_are_those_of_plain_loops(family, n, m, constraint):
    rng = np.random.default_rng(m)
    scores = family(rng, 2, m)
    largest = float(scores.max()) or 1.0
    mask = some_masks(rng, scores, n, constraint)
    u, v = (rng.uniform(-0.2 if constraint == "exactly" else 0.0, 0.8, (2, m)) * largest for _ in range(2))
    compare(scores, mask, u[..., None], v[:, None, :], n, m, constraint)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("shape", [(13, 17), (70, 5), (3, 130), (64, 64), (1, 1), (2, 33, 40)])
def test_edges_and_broken_lines(shape, n, m, constraint):
    """Masks are thrown at random, so most lines are broken; each is counted once."""
    rng = np.random.default_rng(n)
    weights, mask = rng.standard_normal(shape), rng.random(shape) < (n / m)
    u, v = (rng.random(part.shape) for part in tm.blocks.empty_duals(shape, m))
    found = compare(weights, mask, u, v, n, m, constraint, threads=2)
    assert bool(found.broken) != bool(tm.check_mask(mask, (n, m), constraint=constraint))


@pytest.mark.compiled
@pytest.mark.parametrize(("n", "m"), [(250, 256), (130, 256), (256, 264), (2039, 2040), (2047, 2048)])
def test_lines_that_keep_more_than_a_byte_holds(n, m):
    """Every row keeps N of M, or one fewer."""
    shift = (np.arange(m) - np.arange(m)[:, None]) % m
    for kept, broken in ((n, 0), (n - 1, 2 * m)):
        duals = np.zeros((m, 1)), np.zeros((1, m))
        assert prove(np.ones((m, m)), shift < kept, duals, tm.Pattern(n, m), "exactly", threads=1).broken == broken


def test_chunks_change_nothing(monkeypatch, constraint):
    rng = np.random.default_rng(4)
    weights = rng.standard_normal((3, 26, 31))
    mask = tm.transposable_mask(weights, "2:4", constraint=constraint)
    u, v = (rng.random(part.shape) for part in tm.blocks.empty_duals(weights.shape, 4))
    whole = compare(weights, mask, u, v, 2, 4, constraint)
    for entries in (1, 16, 50, 200, 1000):
        monkeypatch.setattr(proof_module, "_CHUNK_ENTRIES", entries)
        part = compare(weights, mask, u, v, 2, 4, constraint, threads=3)
        assert (part.broken, part.unproven, part.worst_gap) == (whole.broken, whole.unproven, whole.worst_gap)


DTYPES = [
    np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
    np.longdouble, np.int8, np.uint8, np.int16, np.int64, np.bool_, ml_dtypes.int4, ">f4",
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_layout_is_read_where_it_lies(dtype):
    rng = np.random.default_rng(1)
    weights = (rng.standard_normal((12, 10, 14)) * 3).astype(dtype)
    plain = weights.astype(np.float64)
    mask = tm.transposable_mask(plain, "2:4")
    u, v = (rng.random(part.shape) for part in tm.blocks.empty_duals(weights.shape, 4))
    reference = prove(plain, mask, (u, v), tm.Pattern(2, 4), "exactly", threads=1)
    frozen = weights.copy()
    frozen.flags.writeable = False
    raw = np.zeros(weights.nbytes + 1, np.uint8)[1:]
    unaligned = raw.view(weights.dtype).reshape(weights.shape)
    unaligned[...] = weights
    for layout in (weights, frozen, unaligned, np.asfortranarray(weights), weights[::-1][::-1]):
        assert prove(layout, mask, (u, v), tm.Pattern(2, 4), "exactly", threads=1)[:6] == reference[:6]
    assert weights.tobytes() == frozen.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_finite_half_is_read_exactly(dtype):
    halves = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs of bfloat16
        halves = halves[np.isfinite(halves)][None]
    mask, duals = np.ones(halves.shape, bool), (np.zeros(halves.shape), np.zeros(halves.shape))
    found = [prove(w, mask, duals, tm.Pattern(1, 1), "at_most", threads=1) for w in (halves, halves.astype(float))]
    assert found[0][:6] == found[1][:6]
    for index in range(0, halves.size, 97):
        one = slice(index, index + 1)
        alone = prove(halves[:, one], mask[:, one], (duals[0][:, one], duals[1][:, one]),
                      tm.Pattern(1, 1), "at_most", threads=1)  # fmt: skip
        assert alone.total == abs(float(halves[0, index]))


@pytest.mark.parametrize("outlier", [1e3, 1e6, 1e12, 1e18, 1e30])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_an_outlier_does_not_hide_what_its_neighbours_lose(outlier, scale, constraint):
    """The best mask of a block is proven where its duals tell; one that loses a thousandth of the rest never is."""
    scores = np.full((4, 4), 1.0)
    scores[np.ix_([0, 1], [0, 1])] = scores[np.ix_([2, 3], [2, 3])] = 1.001
    scores[0, 0] = outlier
    best = np.kron(np.eye(2), np.ones((2, 2))).astype(bool)
    u, v = np.full((4, 1), 0.5 * scale), np.full((1, 4), 0.5 * scale)
    good = prove(scores * scale, best, (u, v), tm.Pattern(2, 4), constraint, threads=1)
    assert (good.broken, good.unproven) == (0, 0)
    worse = exchanged(best)
    bad = prove(scores * scale, worse, (u, v), tm.Pattern(2, 4), constraint, threads=1)
    assert (bad.broken, bad.unproven) == (0, 1)
    assert tm.certify(scores * scale, worse, "2:4", constraint=constraint).unproven == 1


def exchanged(mask):
    """Exchange two kept entries outside row 0 and column 0 for two pruned ones: a 4-cycle, so that sums stay."""
    other = mask.copy()
    for row, column, kept in ((1, 1, False), (2, 2, False), (1, 2, True), (2, 1, True)):
        other[row, column] = kept
    return other


def test_zeros_among_what_is_kept_do_not_count():
    """A block that is mostly zeros is judged by its other scores, and rounding of theirs is forgiven."""
    scores = np.zeros((4, 4))
    scores[0, :2] = 1.0, 0.5
    mask = np.kron(np.eye(2), np.ones((2, 2))).astype(bool)
    u, v = np.zeros((4, 1)), np.zeros((1, 4))
    u[0] = 1.0 + 2**-52
    assert prove(scores, mask, (u, v), tm.Pattern(2, 4), "exactly", threads=1).unproven == 1
    u[0] = 0.5 + 2**-52
    assert prove(scores, mask, (u, v), tm.Pattern(2, 4), "exactly", threads=1).unproven == 0


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8])
def test_up_to_half_of_what_is_kept_may_be_huge(count):
    scores = np.ones((4, 4))
    mask = np.kron(np.eye(2), np.ones((2, 2))).astype(bool)
    rows, columns = (index[:count] for index in np.nonzero(mask))
    scores[rows, columns] = 1e18
    u, v = np.full((4, 1), 0.5), np.full((1, 4), 0.5)
    u[3] += 0.01  # loses a hundredth of the last row where that is small
    v[0, 3] += 0.01
    found = prove(scores, mask, (u, v), tm.Pattern(2, 4), "exactly", threads=1)
    assert found.unproven == (count <= 4)


@settings(max_examples=60)
@given(st.sampled_from([(1, 2), (2, 4), (3, 7)]), st.sampled_from(["exactly", "at_most"]), st.integers(0, 2**32))
def test_a_callers_duals_give_their_bound(pattern, constraint, seed):
    rng = np.random.default_rng(seed)
    n, m = pattern
    shape = tuple(rng.integers(1, 12, 2))
    weights = rng.standard_normal(shape)
    mask = tm.transposable_mask(weights, pattern, constraint=constraint, solver="greedy")
    u, v = (rng.random(part.shape) for part in tm.blocks.empty_duals(shape, m))
    before = u.copy(), v.copy()
    certificate = tm.certify(weights, mask, pattern, constraint=constraint, duals=(u, v))
    assert np.array_equal(certificate.u, u)
    assert np.array_equal(certificate.v, v)
    scores = np.abs(weights)
    slack = scores - u.repeat(m, 1)[:, : shape[1]] - v.repeat(m, 0)[: shape[0]]
    assert certificate.upper_bound == pytest.approx(n * (u.sum() + v.sum()) + slack.clip(0).sum(), rel=1e-12)
    assert np.array_equal(u, before[0])
    assert np.array_equal(v, before[1])


@pytest.mark.parametrize(
    ("duals", "kind", "text"),
    [
        ((np.zeros((8, 1)), np.zeros((2, 8))), tm.InvalidArgumentError, "with u of shape (8, 2), got (8, 1)"),
        ((np.zeros((8, 2)), np.zeros((8, 2))), tm.InvalidArgumentError, "with v of shape (2, 8), got (8, 2)"),
        (
            (np.full((8, 2), np.nan), np.zeros((2, 8))),
            tm.InvalidArgumentError,
            "must be finite and at most 1e+307 in magnitude, got nan in u at index (0, 0)",
        ),
        ((np.zeros((8, 2)), np.full((2, 8), np.inf)), tm.InvalidArgumentError, "got inf in v at index (0, 0)"),
        (
            (np.zeros((8, 2)), np.full((2, 8), "a")),
            tm.InvalidTypeError,
            "`duals` must hold real numbers, got v of dtype <U1",
        ),
        (np.zeros((8, 2)), tm.InvalidTypeError, "`duals` must be a pair of arrays (u, v) or None, got ndarray"),
        ((np.zeros((8, 2)),), tm.InvalidTypeError, "`duals` must be a pair of arrays (u, v) or None, got tuple"),
    ],
)
def test_duals_that_cannot_be_used(duals, kind, text):
    with pytest.raises(kind) as raised:
        tm.certify(np.ones((8, 8)), np.eye(8), "1:4", duals=duals, constraint="at_most")
    assert text in str(raised.value)


def test_negative_duals_prove_nothing_at_most():
    u, v = np.zeros((8, 2)), np.zeros((2, 8))
    v[1, 3] = -0.5
    mask = tm.transposable_mask(np.ones((8, 8)), "1:4")
    assert tm.certify(np.ones((8, 8)), mask, "1:4", duals=(u, v)).upper_bound == 64 - 0.5 + 4 * 0.5
    with pytest.raises(tm.InvalidArgumentError) as raised:
        tm.certify(np.ones((8, 8)), mask, "1:4", duals=(u, v), constraint="at_most")
    assert "must be at least 0 in blocks that keep at most N (cut blocks do), got -0.5 in v at index (1, 3)" in str(
        raised.value
    )


def test_a_mask_of_other_bytes_than_0_and_1_counts_as_numpy_counts_it():
    mask = (np.eye(4, dtype=np.uint8) * 7).view(np.bool_)
    assert tm.certify(np.ones((4, 4)), mask, "1:4").kept == 4


@pytest.mark.parametrize("shift", [1e3, 1e10, 1e16, 1e17, 1e200, 1e300])
def test_duals_that_are_far_apart_prove_no_more(shift):
    """For "exactly" u + t and v - t have the bound of u and v; S - u - v must not lose S."""
    scores = np.random.default_rng(0).random((8, 8))
    mask = np.kron(np.eye(2), np.roll(np.eye(4), 1, axis=1) + np.eye(4)).astype(bool) | np.kron(
        1 - np.eye(2), np.roll(np.eye(4), 1, axis=1) + np.eye(4)
    ).astype(bool)
    duals = np.full((8, 2), shift), np.full((2, 8), -shift)
    found = tm.certify(scores, mask, "2:4", duals=duals)
    assert found.upper_bound == pytest.approx(scores.sum())
    assert found.unproven == 4


def test_an_outlier_s_dual_does_not_hide_its_neighbours():
    scores = np.array([[1e18, 1, 1, 1], [1e18, 5, 1, 1], [0, 0, 1, 0.5], [0, 0, 0.5, 1]])
    mask = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    duals = np.array([[1.0], [5], [1], [1]]), np.array([[1e18, 0, 0, 0]])
    assert tm.certify(scores, mask, "1:4", constraint="at_most", duals=duals).unproven == 1


class LeavesDuals(Greedy):
    """Leaves duals whose floating-point bound is below the optimum."""

    info = SolverInfo("leaves", "LeavesDuals", "none", ("exactly", "at_most"), None, "numpy", "unpublished")

    def solve_blocks(self, blocks, pattern, *, threads, warm):
        super().solve_blocks(blocks, pattern, threads=threads, warm=warm)
        blocks.u[...], blocks.v[...] = 1e18, -1e18


def test_duals_of_a_solver_are_not_trusted():
    weights = np.random.default_rng(0).standard_normal((64, 64))
    result = tm.solve(weights, "2:4", solver=LeavesDuals())
    assert result.status is tm.Status.FEASIBLE
    assert result.upper_bound == pytest.approx(tm.solve(weights, "2:4").kept)


def test_a_bound_that_overflows_is_no_proof():
    mask = tm.transposable_mask(np.ones((1024, 1024), np.float32), "2:4")
    duals = np.full((1024, 256), 1e306), np.zeros((256, 1024))
    found = tm.certify(np.ones((1024, 1024), np.float32), mask, "2:4", duals=duals)
    assert (found.upper_bound, found.gap, found.worst_gap) == (np.inf, 1.0, 1.0)


@pytest.mark.parametrize("constraint", ["exactly", "at_most"])
def test_the_bound_of_any_duals_in_exact_arithmetic(constraint):
    """Scores, duals and what is left of both spread over many decades."""
    rng = np.random.default_rng(8)
    for _ in range(200):
        scores, u, v = (10.0 ** rng.uniform(-18, 18, (4, 4)) for _ in range(3))
        u, v = u[:, :1] * rng.choice([1, -1, 0], (4, 1)), v[:1] * rng.choice([1, -1, 0], (1, 4))
        if rng.random() < 0.5:
            u, v = u + v.max(), v - v.max()
        if constraint == "at_most":
            u, v = abs(u), abs(v)
        mask = naive.random_mask(rng, 2, 4)
        exact = naive.dual_bound(scores, u[:, 0], v[0], 2) - naive.kept_value(scores, mask)
        found = prove(scores, mask, (u, v), tm.Pattern(2, 4), constraint, threads=1)
        assert found.distance == pytest.approx(float(exact), rel=1e-13)


@pytest.mark.parametrize(("off", "is_near"), [(1e-10, True), (1e-3, False)])
def test_a_part_is_near_if_its_gap_may_be_the_rounding_of_duals(off, is_near):
    scores = np.eye(4) + 0.0
    u, v = np.full((4, 1), off), np.zeros((1, 4))
    found = prove(scores, np.eye(4, dtype=bool), (u, v + 1), tm.Pattern(1, 4), "exactly", threads=1)
    assert found.worst_gap == pytest.approx(off, rel=1e-3)
    assert (found.unproven, len(found.unproven_parts)) == (1, 1)
    assert len(found.near_parts) == is_near
