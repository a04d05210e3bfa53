"""Structures against every mask of small shapes, and against random masks of larger ones."""

import math
from itertools import product

import ml_dtypes
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import transmask as tm
from transmask import NM, Block, Channel, Product, Transposable, Unstructured


def rounded(share, units):
    """Round half up, in decimal."""
    return math.floor(share * units / 100 + 0.5) if share * units % 100 != 50 else share * units // 100 + 1


def has_kept(mask, percent):
    return mask.sum() == rounded(percent, mask.size)


def is_nm(mask, n, m):
    """Along the last axis: exactly n in whole groups, at most n in a cut one."""
    for line in mask.reshape(-1, mask.shape[-1]):
        for start in range(0, len(line), m):
            group = line[start : start + m]
            if group.sum() > n or (len(group) == m and group.sum() != n):
                return False
    return True


def is_transposable(mask, n, m, constraint):
    return all(naive.offender(matrix, n, m, constraint) is None for matrix in mask.reshape(-1, *mask.shape[-2:]))


def is_tiled(mask, tile, percent):
    states = []
    for matrix in mask.reshape(-1, *mask.shape[-2:]):
        for row in range(0, matrix.shape[0], tile[0]):
            for column in range(0, matrix.shape[1], tile[1]):
                states.append(set(matrix[row : row + tile[0], column : column + tile[1]].ravel().tolist()))
    return all(len(state) == 1 for state in states) and sum(True in s for s in states) == rounded(percent, len(states))


def is_sliced(mask, percent):
    states = [set(part.ravel().tolist()) for part in mask]
    return all(len(state) == 1 for state in states) and sum(True in s for s in states) == rounded(percent, len(states))


CASES = [
    (Unstructured(0.5), (3, 4), lambda mask: has_kept(mask, 50)),
    (Unstructured(0.3), (2, 5), lambda mask: has_kept(mask, 30)),
    (Unstructured(0.25), (2, 1, 3), lambda mask: has_kept(mask, 25)),
    (Unstructured(0), (2, 3), lambda mask: not mask.any()),
    (Unstructured(1), (2, 3), lambda mask: mask.all()),
    (NM(2, 4), (3, 4), lambda mask: is_nm(mask, 2, 4)),
    (NM(1, 3), (2, 5), lambda mask: is_nm(mask, 1, 3)),
    (NM(2, 3), (2, 2, 3), lambda mask: is_nm(mask, 2, 3)),
    (NM(2, 4), (2, 2), lambda mask: is_nm(mask, 2, 4)),
    (NM(1, 2, axis=0), (4, 3), lambda mask: is_nm(mask.T, 1, 2)),
    (NM(1, 2, axis=1), (2, 3, 2), lambda mask: is_nm(mask.swapaxes(1, 2), 1, 2)),
    (Transposable(1, 2), (4, 2), lambda mask: is_transposable(mask, 1, 2, "exactly")),
    (Transposable(2, 3), (3, 4), lambda mask: is_transposable(mask, 2, 3, "exactly")),
    (Transposable(1, 2), (3, 3), lambda mask: is_transposable(mask, 1, 2, "exactly")),
    (Transposable(1, 2, "at_most"), (3, 4), lambda mask: is_transposable(mask, 1, 2, "at_most")),
    (Transposable(2, 3, "at_most"), (3, 4), lambda mask: is_transposable(mask, 2, 3, "at_most")),
    (Transposable(2, 4), (3, 3), lambda mask: is_transposable(mask, 2, 4, "exactly")),
    (Transposable(1, 2), (2, 2, 3), lambda mask: is_transposable(mask, 1, 2, "exactly")),
    (
        Transposable(1, 2, axes=(0, 1)),
        (2, 3, 2),
        lambda mask: is_transposable(np.moveaxis(mask, 2, 0), 1, 2, "exactly"),
    ),
    (Transposable(0, 2), (2, 4), lambda mask: not mask.any()),
    (Block((2, 2), 0.5), (4, 3), lambda mask: is_tiled(mask, (2, 2), 50)),
    (Block((1, 3), 0.25), (2, 5), lambda mask: is_tiled(mask, (1, 3), 25)),
    (Block((2, 2), 0.5), (2, 2, 3), lambda mask: is_tiled(mask, (2, 2), 50)),
    (Block((2, 1), 0.4, axes=(1, 0)), (3, 4), lambda mask: is_tiled(mask.T, (2, 1), 40)),
    (Block((9, 9), 0.6), (3, 4), lambda mask: is_tiled(mask, (9, 9), 60)),
    (Channel(0.5), (3, 4), lambda mask: is_sliced(mask, 50)),
    (Channel(0.6), (4, 1, 3), lambda mask: is_sliced(mask, 60)),
    (Channel(0.3, axis=-1), (3, 4), lambda mask: is_sliced(mask.T, 30)),
]


def every_mask(shape):
    size = math.prod(shape)
    bits = (np.arange(2**size)[:, None] >> np.arange(size)) & 1
    return bits.astype(bool).reshape(-1, *shape)


@pytest.mark.parametrize(("structure", "shape", "belongs"), CASES, ids=[f"{case[0]}, {case[1]}" for case in CASES])
def test_count_check_and_best_mask_agree_with_every_mask_there_is(structure, shape, belongs):
    masks = every_mask(shape)
    members = np.array([belongs(mask) for mask in masks])
    assert [structure.check(mask).ok for mask in masks] == members.tolist()
    assert structure.count(shape).value == members.sum() > 0
    assert structure.count(shape).log2 == pytest.approx(math.log2(members.sum()))
    rng = np.random.default_rng(0)
    for weights in (rng.standard_normal(shape), rng.integers(-3, 4, shape), np.zeros(shape)):
        best = structure.best_mask(weights)
        assert best.dtype == bool
        assert belongs(best)
        values = (np.abs(weights) * masks[members]).reshape(members.sum(), -1).sum(axis=1)
        assert np.abs(weights)[best].sum() == pytest.approx(values.max())


def switched(rng, blocks, count):
    """Shuffle (B, M, M) masks by exchanges of 2 x 2 checkerboards, which keep the sums of lines."""
    blocks, m = blocks.copy(), blocks.shape[1]
    index = np.arange(len(blocks))
    for _ in range(count):
        (i, k), (j, z) = (rng.permuted(np.tile(np.arange(m), (len(blocks), 1)), axis=1)[:, :2].T for _ in "ij")
        a, b, c, d = blocks[index, i, j], blocks[index, i, z], blocks[index, k, j], blocks[index, k, z]
        flip = (a == d) & (b == c) & (a != b)
        for row, column in ((i, j), (i, z), (k, j), (k, z)):
            blocks[index, row, column] ^= flip
    return blocks


def random_transposable(rng, count, n, m, thin):
    """Masks of shape (count, 2m, 2m); with `thin`, entries are dropped at random."""
    blocks = np.array([naive.random_mask(rng, n, m) for _ in range(4 * count)])
    blocks = switched(rng, blocks, 4 * m)
    masks = blocks.reshape(count, 2, 2, m, m).swapaxes(2, 3).reshape(count, 2 * m, 2 * m)
    return masks & (rng.random(masks.shape) < rng.random((count, 1, 1))) if thin else masks


def random_groups(rng, count, n, m):
    order = rng.permuted(np.tile(np.arange(m), (count, 8, 16 // m, 1)), axis=-1)
    return (order < n).reshape(count, 8, 16)


def random_choice(rng, count, units, kept):
    return rng.permuted(np.tile(np.arange(units) < kept, (count, 1)), axis=1)


RANDOM = [
    (Unstructured(0.5), lambda rng: random_choice(rng, 1000, 96, 48).reshape(1000, 8, 12)),
    (NM(2, 4), lambda rng: random_groups(rng, 1000, 2, 4)),
    (NM(3, 16), lambda rng: random_groups(rng, 1000, 3, 16)),
    (Transposable(2, 4), lambda rng: random_transposable(rng, 1000, 2, 4, thin=False)),
    (Transposable(2, 4, "at_most"), lambda rng: random_transposable(rng, 1000, 2, 4, thin=True)),
    (Transposable(3, 8), lambda rng: random_transposable(rng, 1000, 3, 8, thin=False)),
    (Block((4, 4), 0.5), lambda rng: random_choice(rng, 1000, 6, 3).reshape(-1, 2, 3).repeat(4, 1).repeat(4, 2)),
    (Channel(0.25), lambda rng: random_choice(rng, 1000, 8, 2)[:, :, None].repeat(12, 2)),
]


@pytest.mark.parametrize(("structure", "draw"), RANDOM, ids=[str(structure) for structure, _ in RANDOM])
def test_the_best_mask_beats_a_thousand_random_ones(structure, draw):
    rng = np.random.default_rng(1)
    masks = draw(rng)
    assert len(masks) == 1000
    assert all(structure.check(mask) for mask in masks)
    assert len({mask.tobytes() for mask in masks}) > 5
    weights = rng.standard_normal(masks.shape[1:])
    values = (np.abs(weights) * masks).sum(axis=(1, 2))
    best = np.abs(weights)[structure.best_mask(weights)].sum()
    assert best >= values.max() * (1 - 1e-12)
    assert best > np.median(values)


def test_ties_keep_the_earlier_entry_tile_or_slice():
    ones = np.ones((4, 4))
    assert Unstructured(0.25).best_mask(ones).nonzero()[0].tolist() == [0] * 4
    assert Block((2, 2), 0.25).best_mask(ones)[:2, :2].all()
    assert Channel(0.25).best_mask(ones)[0].all()
    assert NM(1, 4).best_mask(ones)[:, 0].all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint8, ml_dtypes.bfloat16])
@pytest.mark.parametrize("structure", [Unstructured(0.5), Block((2, 2), 0.5), Channel(0.5), NM(1, 2)], ids=str)
def test_weights_of_any_dtype_are_compared_by_magnitude_and_left_alone(structure, dtype):
    info = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else None
    weights = np.random.default_rng(0).integers(info.min if info else -99, info.max + 1 if info else 99, (8, 8))
    weights = weights.astype(dtype)
    before = weights.copy()
    assert np.array_equal(structure.best_mask(weights), structure.best_mask(np.abs(weights.astype(float))))
    assert weights.tobytes() == before.tobytes()


@pytest.mark.parametrize("structure", [Block((2, 2), 0.25), Channel(0.5)], ids=str)
@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e300], ids=str)
def test_sums_of_tiny_and_huge_weights_are_compared(structure, scale):
    weights = np.full((4, 4), scale if scale < 1 else scale / 2)
    weights[2:, 2:] *= 2
    assert structure.best_mask(weights)[2:, 2:].all()


def test_the_density_is_what_is_kept_without_edges():
    for structure in (NM(1, 4), Transposable(1, 4), Unstructured(0.25), Block((4, 4), 0.25), Channel(0.25)):
        assert structure.density == structure.best_mask(np.arange(256.0).reshape(16, 16)).mean() == 0.25


def test_a_convolution_is_counted_at_every_position_and_pruned_by_filters():
    shape = (8, 4, 3, 3)
    assert Transposable(2, 4, axes=(0, 1)).count(shape).value == 90**18
    assert NM(2, 4, axis=1).count(shape).value == 6**72
    assert Channel(0.5).count(shape).value == math.comb(8, 4)
    best = Channel(0.5).best_mask(np.random.default_rng(0).standard_normal(shape))
    assert sorted(best.reshape(8, -1).mean(axis=1).tolist()) == [0.0] * 4 + [1.0] * 4


@pytest.mark.parametrize("structure", [structure for structure, _ in RANDOM], ids=str)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 8, 8)])
def test_a_shape_without_entries_has_one_mask(structure, shape):
    assert structure.count(shape).value == 1
    best = structure.best_mask(np.zeros(shape))
    assert best.shape == shape
    assert structure.check(best)


def test_a_report_says_what_is_wrong():
    report = NM(2, 4).check(np.eye(8, dtype=bool))
    assert (report.ok, report.kept, report.size) == (False, 8, 64)
    assert report.first_offender == "the entries [0, 0:4] keep 1, not 2"
    assert NM(1, 2, axis=0).check([[1, 0], [1, 0]]).first_offender == "the entries [0:2, 0] keep 2, not 1"
    assert NM(1, 2).check([[1, 0, 0]]).ok
    assert Unstructured(0.5).check(np.eye(4)).first_offender == "it keeps 4 of 16, not 8"
    assert Channel(0.5).check(np.eye(2)).first_offender == "the entry (0, 1) is pruned where its neighbours are kept"
    assert Transposable(1, 2).check(np.tri(2)).first_offender == "row 1, columns 0 to 1 keeps 2, more than 1 of 2"
    assert bool(Transposable(1, 2).check(np.eye(2)))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Unstructured(1.5), ValueError, r"`density` must lie in \[0, 1\], got 1\.5\. It is the fraction"),
        (lambda: Block((4, 4), -0.1), ValueError, r"`density` must lie in \[0, 1\], got -0\.1"),
        (lambda: Channel(float("nan")), ValueError, r"`density` must lie in \[0, 1\], got nan"),
        (lambda: Unstructured("0.5"), TypeError, r"`density` must be a number, got '0\.5'"),
        (lambda: Unstructured(True), TypeError, "`density` must be a number, got True"),
        (
            lambda: Block((4,), 0.5),
            ValueError,
            r"`shape` must be the two sides of a tile, such as \(4, 4\), got \(4,\)",
        ),
        (lambda: Block((0, 4), 0.5), ValueError, r"`shape` must be the two sides of a tile, .* got \(0, 4\)"),
        (lambda: Block(4, 0.5), ValueError, "`shape` must be the two sides of a tile, .* got 4"),
        (lambda: NM(5, 4), ValueError, "`n` must be at most m = 4, got 5"),
        (lambda: Transposable(2, 4, "atmost"), ValueError, "Did you mean 'at_most'"),
        (lambda: Transposable(2, 4, axes=(1, 1)), ValueError, "`axes` must name two different axes"),
        (lambda: NM(2, 4, axis=0.5), TypeError, r"`axis` must be an integer, got 0\.5"),
        (lambda: NM(2, 4, axis=2).count((4, 4)), ValueError, r"`axis` must lie in \[-2, 1\], got 2"),
        (lambda: Channel(0.5, axis=3).best_mask(np.ones((4, 4))), ValueError, r"`axis` must lie in \[-2, 1\], got 3"),
        (lambda: Transposable(2, 4, axes=(0, 2)).count((4, 4)), ValueError, r"`axes` must lie in \[-2, 1\]"),
        (lambda: NM(2, 4).count((8,)), ValueError, r"`shape` must have at least 2 axes, got \(8,\)"),
        (lambda: NM(2, 4).count((8, -8)), ValueError, r"`shape` must hold sizes of at least 0, got \(8, -8\)"),
        (lambda: NM(2, 4).count(8), TypeError, r"`shape` must be a sequence of integers such as \(8, 8\), got 8"),
        (lambda: NM(2, 4).count((8.0, 8)), TypeError, "`shape` must be a sequence of integers"),
        (lambda: NM(2, 4).check([[2, 0]]), ValueError, "`mask` must hold only 0 and 1, got 2"),
        (lambda: NM(2, 4).best_mask([[np.nan, 0]]), ValueError, "`weights` must be finite"),
        (lambda: Product({"a": "2:4"}), TypeError, "`layers` must map names to structures, got '2:4' for 'a'"),
        (lambda: Product({"a": NM(2, 4)}).count([(4, 4)]), TypeError, "`shapes` must map the names of the layers, got"),
        (
            lambda: Product({"a": NM(2, 4)}).best_mask({"b": np.ones((4, 4))}),
            ValueError,
            "`weights` must have the layers 'a', got 'b'",
        ),
    ],
)
def test_bad_input_gets_one_clear_error(make, kind, message):
    with pytest.raises(kind, match=message) as raised:
        make()
    assert isinstance(raised.value, tm.TransmaskError)
    assert "\n" not in str(raised.value)


def test_densities_are_rounded_half_up_as_they_are_written():
    for percent, units in product(range(101), (1, 2, 10, 50, 99)):
        assert Unstructured(percent / 100).best_mask(np.ones((1, units))).sum() == rounded(percent, units)


def test_names_tell_structures_apart():
    structures = [structure for structure, *_ in CASES] + [Transposable(2, 4, axes=(0, 1)), Channel(0.5, axis=1)]
    assert len({str(structure) for structure in structures}) == len(set(structures))


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.tuples(
            st.sampled_from([structure for structure, _ in RANDOM]),
            st.tuples(st.integers(0, 12), st.integers(0, 12)),
        ),
        max_size=4,
    )
)
def test_the_count_of_a_product_is_the_product_of_the_counts(layers):
    network = Product({name: structure for name, (structure, _) in layers.items()})
    count = network.count({name: shape for name, (_, shape) in layers.items()})
    assert count.value == math.prod(structure.count(shape).value for structure, shape in layers.values())


def test_a_product_finds_and_checks_the_masks_of_its_layers():
    rng = np.random.default_rng(0)
    network = Product({"a": Transposable(2, 4), "b": Channel(0.5)})
    weights = {"b": rng.standard_normal((4, 5)), "a": rng.standard_normal((8, 8))}
    masks = network.best_mask(weights)
    assert list(masks) == ["a", "b"]
    assert np.array_equal(masks["a"], tm.transposable_mask(weights["a"], "2:4"))
    assert all(network.check(masks).values())
    masks["b"] = ~masks["b"] & (np.arange(5) > 0)
    assert {name: bool(report) for name, report in network.check(masks).items()} == {"a": True, "b": False}
    assert str(network) == "product of 2:4 transposable, channels 0.5"
    assert repr(network).startswith("Product({'a': Transposable(n=2, m=4")
