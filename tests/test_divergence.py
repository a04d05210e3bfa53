"""Sparse architecture divergence: a metric, for arrays, layers and packed masks; and masks followed over time."""

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import transmask as tm
from transmask import PackedMask, SADTracker, sparse_architecture_divergence

SHAPES = hnp.array_shapes(min_dims=2, max_dims=4, min_side=0, max_side=6)


@st.composite
def masks_of_one_shape(draw, count):
    shape = draw(SHAPES)
    return [draw(hnp.arrays(bool, shape)) for _ in range(count)]


def by_loop(first, second):
    return sum(int(a) != int(b) for a, b in zip(first.ravel(), second.ravel(), strict=True))


@given(masks_of_one_shape(3))
def test_it_is_a_metric(masks):
    a, b, c = masks
    assert sparse_architecture_divergence(a, b) == by_loop(a, b)
    assert sparse_architecture_divergence(a, b) == sparse_architecture_divergence(b, a) >= 0
    assert (sparse_architecture_divergence(a, b) == 0) == np.array_equal(a, b)
    between = sparse_architecture_divergence(a, b) + sparse_architecture_divergence(b, c)
    assert sparse_architecture_divergence(a, c) <= between


@given(masks_of_one_shape(2))
def test_packed_masks_have_the_same_divergence(masks):
    a, b = masks
    expected = by_loop(a, b)
    packed = [PackedMask.pack(mask) for mask in masks]
    assert sparse_architecture_divergence(*packed) == expected
    assert sparse_architecture_divergence(packed[0], b) == sparse_architecture_divergence(a, packed[1]) == expected
    assert np.array_equal(packed[0].unpack(), a)
    assert (packed[0].shape, packed[0].size) == (a.shape, a.size)


@given(masks_of_one_shape(2))
def test_the_normalised_one_is_the_share_of_entries(masks):
    a, b = masks
    assert sparse_architecture_divergence(a, b, normalize=True) == (by_loop(a, b) / a.size if a.size else 0.0)


def test_masks_of_one_density_differ_in_pairs():
    rng = np.random.default_rng(0)
    first, second = (tm.transposable_mask(rng.standard_normal((16, 16)), "2:4") for _ in range(2))
    found = sparse_architecture_divergence(first, second)
    assert found > 0
    assert found % 2 == 0
    assert isinstance(found, int)


def test_layers_are_counted_one_by_one_and_together():
    before = {"a": np.eye(4), "b": np.zeros((2, 3), bool)}
    after = {"b": np.ones((2, 3)), "a": np.eye(4)[::-1]}
    found = sparse_architecture_divergence(before, after)
    assert (found.layers, found.total) == ({"a": 8, "b": 6}, 14)
    share = sparse_architecture_divergence(before, after, normalize=True)
    assert (share.layers, share.total) == ({"a": 0.5, "b": 1.0}, 14 / 22)
    assert sparse_architecture_divergence({}, {}, normalize=True).total == 0.0


def test_a_file_of_masks_is_compared_without_unpacking_by_hand(tmp_path):
    from transmask.checkpoint import read_masks, write_masks

    rng = np.random.default_rng(0)
    masks = [tm.transposable_mask(rng.standard_normal((8, 12)), "2:4") for _ in range(2)]
    for number, mask in enumerate(masks):
        write_masks(tmp_path / f"{number}.safetensors", {"fc": mask}, "2:4")
    files = [read_masks(tmp_path / f"{number}.safetensors") for number in range(2)]
    assert sparse_architecture_divergence(*files).layers == {"fc": by_loop(*masks)}


def test_a_packed_mask_is_packed_little_end_first():
    packed = PackedMask.pack([[1, 0, 0], [0, 0, 0], [1, 1, 1]])
    assert packed.bits.tolist() == [0b11000001, 0b1]
    assert np.array_equal(PackedMask(np.array([193, 1], np.uint8), (3, 3)).unpack(), packed.unpack())


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: sparse_architecture_divergence(np.eye(2), np.eye(3)),
            ValueError,
            r"`before` and `after` must have the same shape, got \(2, 2\) and \(3, 3\)",
        ),
        (
            lambda: sparse_architecture_divergence({"a": np.ones((2, 3))}, {"a": PackedMask.pack(np.ones((3, 2)))}),
            ValueError,
            r"`before\['a'\]` and `after\['a'\]` must have the same shape",
        ),
        (
            lambda: sparse_architecture_divergence(np.eye(2), 2 * np.eye(2)),
            ValueError,
            r"`after` must hold only 0 and 1, got 2\.0 at index \(0, 0\)",
        ),
        (
            lambda: sparse_architecture_divergence({"": [["x"]]}, {"": [["y"]]}),
            TypeError,
            r"`before\[''\]` must be bool, got dtype",
        ),
        (
            lambda: sparse_architecture_divergence({"a": np.eye(2)}, np.eye(2)),
            TypeError,
            "must both be masks or both map names to masks, got dict and ndarray",
        ),
        (
            lambda: sparse_architecture_divergence({"a": np.eye(2)}, {"a": np.eye(2), "b": np.eye(2)}),
            ValueError,
            "must have the same layers, got 'b' in one of them only",
        ),
        (lambda: PackedMask(np.ones(2, np.int64), (4, 4)), TypeError, "`bits` must be of dtype uint8, got int64"),
        (
            lambda: PackedMask(np.ones(3, np.uint8), (4, 4)),
            ValueError,
            r"`bits` must have shape \(2,\), 8 entries of \(4, 4\) a byte, got \(3,\)",
        ),
        (lambda: PackedMask(np.array([16], np.uint8), (2, 2)), ValueError, "`bits` must be zero past the last entry"),
    ],
)
def test_bad_input_gets_one_clear_error(call, kind, message):
    with pytest.raises(kind, match=message) as raised:
        call()
    assert isinstance(raised.value, tm.TransmaskError)


def random_history(seed, length):
    rng = np.random.default_rng(seed)
    return [{"a": rng.random((4, 6)) < 0.5, "b": rng.random((3, 3)) < 0.5} for _ in range(length)]


def test_a_tracker_compares_with_the_masks_before_and_the_first():
    history = random_history(0, 6)
    tracker = SADTracker()
    for step, masks in enumerate(history):
        record = tracker.update(masks, step=10 * step)
        assert record is tracker.records[-1]
    assert tracker.records[0].from_previous is None
    for layer in ("a", "b", None):
        names = ["a", "b"] if layer is None else [layer]
        size = sum(history[0][name].size for name in names)
        for index, row in enumerate(tracker.table(layer).rows):
            assert row["step"] == 10 * index
            moved = sum(by_loop(history[index][name], history[0][name]) for name in names)
            assert (row["from_first"], row["share_from_first"]) == (moved, moved / size)
            if index:
                moved = sum(by_loop(history[index][name], history[index - 1][name]) for name in names)
                assert (row["from_previous"], row["share_from_previous"]) == (moved, moved / size)


def test_a_tracker_keeps_what_it_was_fed_though_the_array_changes():
    mask = np.zeros((4, 4), bool)
    tracker = SADTracker()
    tracker.update(mask)
    mask[0] = True
    assert tracker.update(mask).from_previous.total == 4
    mask[:] = False
    assert (tracker.update(mask).from_first.total, tracker.records[-1].from_previous.total) == (0, 4)


def test_the_table_of_a_tracker_can_be_printed_and_read_back():
    tracker = SADTracker()
    for masks in random_history(1, 3):
        tracker.update(masks)
    table = tracker.table()
    rows = list(csv.DictReader(table.to_csv().splitlines()))
    assert [int(row["from_first"]) for row in rows] == table.to_dict()["from_first"]
    assert rows[0]["from_previous"] == ""
    lines = str(table).splitlines()
    assert lines[0].split() == ["step", "from", "previous", "share", "from", "first", "share"]
    assert lines[1].split() == ["0", "-", "-", "0", "0.00%"]


def test_a_tracker_refuses_other_layers_shapes_and_times_and_records_nothing():
    tracker = SADTracker()
    tracker.update({"a": np.eye(4)}, step=5)
    for masks, message in (
        ({"a": np.eye(3)}, r"got \(3, 3\) where that had \(4, 4\) for 'a'"),
        ({"b": np.eye(4)}, r"got nothing where that had \(4, 4\) for 'a'"),
        (np.eye(4), "where that had"),
    ):
        with pytest.raises(tm.InvalidArgumentError, match=message):
            tracker.update(masks)
    with pytest.raises(tm.InvalidArgumentError, match="`step` must be larger than 5, that of the update before, got 5"):
        tracker.update({"a": np.eye(4)}, step=5)
    with pytest.raises(tm.InvalidTypeError, match=r"`step` must be an integer or None, got 6\.0"):
        tracker.update({"a": np.eye(4)}, step=6.0)
    with pytest.raises(tm.InvalidArgumentError, match="`layer` must be one of the layers 'a', got 'c'"):
        tracker.table("c")
    assert len(tracker.records) == 1
    assert tracker.update({"a": np.eye(4)}).step == 6


@pytest.mark.torch
def test_torch_tensors_are_masks_too():
    torch = pytest.importorskip("torch")
    before, after = torch.eye(4), torch.ones(4, 4, dtype=torch.bool)
    assert sparse_architecture_divergence({"fc": before}, {"fc": after}).total == 12


def test_packed_masks_do_not_follow_the_array_they_were_made_of():
    bits = tm.PackedMask.pack(np.eye(4)).bits.copy()
    packed = tm.PackedMask(bits, (4, 4))
    bits[:] = 0
    assert packed.unpack().sum() == 4


def test_layers_with_names_of_different_types():
    with pytest.raises(tm.InvalidArgumentError, match="must have the same layers"):
        tm.sparse_architecture_divergence({1: [[1]]}, {"a": [[1]]})
