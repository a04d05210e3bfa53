"""Masks come out of their file as they went in; the bytes are those that the documentation promises."""

import json
import re

import numpy as np
import pytest
from checkpoint_files import CODES, files_in, read_safetensors, same_bits, write_raw, write_safetensors
from hypothesis import given
from hypothesis import strategies as st

import transmask as tm
from transmask.checkpoint import read_masks, write_masks

DIAGONAL = np.eye(4, dtype=bool)


@st.composite
def named_masks(draw):
    """{name: mask} of which every matrix holds 1:3 "at_most", with the axes of each."""
    masks, axes = {}, {}
    for name in draw(st.lists(st.text(min_size=1, max_size=5).filter(str.isprintable), unique=True, max_size=4)):
        shape = tuple(draw(st.lists(st.integers(0, 7), min_size=2, max_size=4)))
        pair = tuple(draw(st.permutations(range(len(shape))))[:2])
        scores = np.random.default_rng(draw(st.integers(0, 99))).random(shape)
        masks[name] = tm.transposable_mask(scores, "1:3", constraint="at_most", axes=pair)
        axes[name] = pair
    return masks, axes


@given(named_masks(), st.sampled_from(["", "enumeration"]))
def test_round_trip(tmp_path_factory, drawn, solver):
    masks, axes = drawn
    path = tmp_path_factory.mktemp("masks") / "masks.safetensors"
    write_masks(path, masks, "1:3", constraint="at_most", solver=solver, axes=axes)
    found = read_masks(path)
    assert (found.pattern, found.constraint, found.solver) == (tm.Pattern(1, 3), "at_most", solver)
    assert list(found) == list(masks)
    assert len(found) == len(masks)
    assert found.axes == axes
    for name, mask in masks.items():
        assert same_bits(found[name], mask)
        assert found.shapes[name] == mask.shape


def test_the_bytes_are_the_documented_ones(tmp_path):
    masks = {"b": np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]]), "a": DIAGONAL}
    write_masks(tmp_path / "masks.safetensors", masks, "1:3", constraint="at_most", axes={"a": (1, 0)})
    metadata, tensors = read_safetensors(tmp_path / "masks.safetensors")
    # Entry k of the flattened mask is bit k % 8 of byte k // 8.
    assert {name: array.tolist() for name, array in tensors.items()} == {
        "b": [0b00001010, 0b1],
        "a": [0b00100001, 0b10000100],
    }
    assert json.loads(metadata["transmask_masks"]) == {
        "version": 1,
        "pattern": "1:3",
        "constraint": "at_most",
        "solver": "",
        "axes": {"b": [0, 1], "a": [1, 0]},
        "shapes": {"b": [3, 3], "a": [4, 4]},
    }


def test_a_mask_costs_an_eighth_of_a_byte(tmp_path):
    write_masks(tmp_path / "masks.safetensors", {"w": tm.nm_mask(np.ones((256, 256)), "4:4")}, "4:4")
    assert (tmp_path / "masks.safetensors").stat().st_size < 256 * 256 / 8 + 400


def test_reading_a_name_that_is_not_there(tmp_path):
    write_masks(tmp_path / "masks.safetensors", {"w": DIAGONAL}, "1:4")
    found = read_masks(tmp_path / "masks.safetensors")
    assert "v" not in found
    with pytest.raises(KeyError):
        found["v"]


@pytest.mark.parametrize(
    ("masks", "options", "message"),
    [
        ({"w": np.tri(4)}, {}, "`masks['w']` must hold 1:4 exactly, but row 1, columns 0 to 3 keeps 2, more than 1"),
        ({"w": np.zeros((4, 4))}, {}, "`masks['w']` must hold 1:4 exactly, but row 0, columns 0 to 3 keeps 0, fewer"),
        ({"w": [2.0]}, {}, "`masks['w']` must have at least 2 axes, got shape (1,)"),
        ({"w": [[0.5]]}, {}, "`masks['w']` must hold only 0 and 1, got 0.5 at index (0, 0)"),
        (
            {"__metadata__": DIAGONAL},
            {},
            "must have names that a safetensors file can hold, got '__metadata__'",
        ),
        ({"\ud800": DIAGONAL}, {}, "`masks` must have names that a safetensors file can hold, got '\\ud800'"),
        ({3: DIAGONAL}, {}, "`masks` must have names that a safetensors file can hold, got 3"),
        ([DIAGONAL], {}, "`masks` must be a mapping from names to masks, got list"),
        ({"w": DIAGONAL}, {"constraint": "exact"}, "`constraint` must be one of 'exactly', 'at_most', got 'exact'"),
        ({"w": DIAGONAL}, {"axes": {"w": (0, 0)}}, "`axes` must name two different axes, got (0, 0)"),
        ({"w": DIAGONAL}, {"axes": (1, 0)}, "`axes` must be a mapping from names of masks to two axes, got tuple"),
        ({"w": DIAGONAL}, {"axes": ()}, "`axes` must be a mapping from names of masks to two axes, got tuple"),
        ({"w": DIAGONAL}, {"axes": {"v": (1, 0)}}, "`axes` must name masks only, got 'v', which is not in `masks`"),
    ],
)
def test_what_is_no_mask_is_refused_and_nothing_written(tmp_path, masks, options, message):
    with pytest.raises(tm.TransmaskError, match=re.escape(message)):
        write_masks(tmp_path / "masks.safetensors", masks, "1:4", **options)
    assert files_in(tmp_path) == {}


def test_the_path_must_say_what_is_in_it(tmp_path):
    with pytest.raises(tm.InvalidArgumentError, match=r"`path` must end with '\.safetensors', got '.*masks\.npz'"):
        write_masks(tmp_path / "masks.npz", {"w": DIAGONAL}, "1:4")
    with pytest.raises(tm.InvalidTypeError, match="`path` must be a path, got 3 of type int"):
        read_masks(3)


def damaged(tmp_path, change):
    """A masks file with a change to its parsed metadata or to its tensors."""
    write_masks(tmp_path / "masks.safetensors", {"w": np.eye(3, dtype=bool)}, "1:3")
    metadata, tensors = read_safetensors(tmp_path / "masks.safetensors")
    fields = json.loads(metadata["transmask_masks"])
    change(fields, tensors)
    write_safetensors(tmp_path / "masks.safetensors", tensors, {"transmask_masks": json.dumps(fields)})
    found = read_masks(tmp_path / "masks.safetensors")
    return {name: found[name] for name in found}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f, t: f.update(version=3),
            "must have version 1 or 2, got 3. Use the release of transmask that wrote it",
        ),
        (lambda f, t: f.pop("version"), "must have version 1 or 2, got None"),
        (lambda f, t: f.update(version=2), "is damaged: 'patterns'"),
        (lambda f, t: f.update(version=2, patterns={"v": "1:3"}), "is damaged: it has a pattern for a tensor without"),
        (lambda f, t: f.update(version=2, patterns={"w": "3:1"}), "is damaged: `n` must be at most m = 1, got 3"),
        (lambda f, t: f.update(pattern="3:1"), "is damaged: `n` must be at most m = 1, got 3"),
        (lambda f, t: f.update(constraint="none"), "is damaged: `constraint` must be one of"),
        (lambda f, t: f.update(axes={"w": [0, 0]}), "is damaged: two different axes make a matrix"),
        (lambda f, t: f.update(axes={"w": [0]}), "is damaged: not enough values to unpack"),
        (lambda f, t: f.update(axes=[]), "is damaged"),
        (lambda f, t: f.update(axes={}), "does not fit the packed mask 'w'"),
        (lambda f, t: f.update(shapes={"w": [3, 6]}), "does not fit the packed mask 'w'"),
        (lambda f, t: f.update(shapes={"w": [3, -3]}), "must list the shapes of the masks"),
        (lambda f, t: f.update(shapes={"w": [3, 3], "v": [1, 1]}), "lists 2 masks, but the file holds 1"),
        (lambda f, t: f.pop("shapes"), "must list the shapes of the masks"),
        (lambda f, t: t.update(w=t["w"].view(np.bool_)), "does not fit the packed mask 'w'"),
        (lambda f, t: t.update(w=np.array([0, 0x82], np.uint8)), "the packed mask 'w' in .* has bits past its end"),
    ],
)
def test_damage_is_told(tmp_path, change, message):
    with pytest.raises(tm.CheckpointError, match=message):
        damaged(tmp_path, change)


def test_undamaged_files_pass_the_same_way(tmp_path):
    assert same_bits(damaged(tmp_path, lambda fields, tensors: None)["w"], np.eye(3, dtype=bool))


def test_a_checkpoint_is_no_masks_file(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"w": np.ones((2, 2), CODES["F32"])})
    with pytest.raises(tm.CheckpointError, match="must be a masks file, got a safetensors file without"):
        read_masks(tmp_path / "m.safetensors")


def test_metadata_that_is_no_json(tmp_path):
    header = json.dumps({"__metadata__": {"transmask_masks": "{"}}).encode()
    write_raw(tmp_path / "m.safetensors", header, b"")
    with pytest.raises(tm.CheckpointError, match=r"the metadata of .* must hold JSON, but it cannot be read"):
        read_masks(tmp_path / "m.safetensors")
