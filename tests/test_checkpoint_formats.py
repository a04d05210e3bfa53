"""Every format is read as it was written, and rewritten with nothing changed but what was asked."""

import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import (
    CODES,
    FLOATING,
    files_in,
    read_safetensors,
    same_bits,
    write_raw,
    write_safetensors,
    write_sharded,
)
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from transmask.checkpoint import open_checkpoint


def tensors_of_every_kind():
    rng = np.random.default_rng(0)
    tensors = {f"{code}.weight": (4 * rng.standard_normal((5, 3))).astype(dtype) for code, dtype in CODES.items()}
    return tensors | {"scalar": np.float32(7), "empty": np.zeros((0, 4), np.float16), "räksmörgås/w": np.ones(3)}


def copy_of(checkpoint, target):
    checkpoint.rewrite(target, lambda tensor: None, None)


def negated(checkpoint, target):
    """Rewrite with the sign of every floating tensor turned."""

    def replace(tensor):
        if not tensor.is_floating:
            return None
        half = tensor.size // 2
        return (
            np.negative(entries, out=entries) for entries in checkpoint.stretches(tensor, [half, tensor.size - half])
        )

    checkpoint.rewrite(target, replace, None)


def assert_negated(before, after):
    """Both are {name: array}; the order counts."""
    assert list(after) == list(before)
    for name, array in before.items():
        array = np.asarray(array)
        turned = array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat16", "float8"))
        assert same_bits(np.asarray(after[name]), -array if turned else array), name


def test_safetensors_are_listed_in_the_order_of_their_data(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"b": np.ones((2, 3), np.float32), "a": np.ones(4, np.int64)})
    listed = open_checkpoint(tmp_path / "m.safetensors").tensors
    assert [(t.name, t.shape, t.dtype, t.is_floating) for t in listed] == [
        ("b", (2, 3), "float32", True),
        ("a", (4,), "I64", False),
    ]


@pytest.mark.parametrize("code", FLOATING)
def test_every_floating_type_is_read_bit_for_bit(tmp_path, code):
    # Every bit pattern of the 8 bit types, and as many of the others, NaN and infinities included.
    bits = np.random.default_rng(0).permutation(256 * np.dtype(CODES[code]).itemsize).astype(np.uint8)
    array = bits.view(CODES[code]).reshape(16, -1)
    write_safetensors(tmp_path / "m.safetensors", {"before": np.ones(3, np.uint8), "w": array})
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    read = checkpoint.read(checkpoint.tensors[1])
    assert same_bits(read, array)
    assert read.flags.writeable
    assert read.flags.owndata or read.base.flags.owndata


def test_safetensors_rewritten_without_change_are_the_same_bytes(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", tensors_of_every_kind(), {"format": "pt", "größe": "ä"})
    copy_of(open_checkpoint(tmp_path / "m.safetensors"), tmp_path / "copy.safetensors")
    assert read_safetensors(tmp_path / "copy.safetensors")[0] == {"format": "pt", "größe": "ä"}
    before, after = (read_safetensors(tmp_path / f"{name}.safetensors")[1] for name in ("m", "copy"))
    assert list(before) == list(after)
    assert all(same_bits(before[name], after[name]) for name in before)


def test_safetensors_that_are_rewritten_can_be_read_by_the_library(tmp_path):
    tensors = {name: array for name, array in tensors_of_every_kind().items() if not name.startswith("F8")}
    write_safetensors(tmp_path / "m.safetensors", tensors, {"format": "pt"})
    negated(open_checkpoint(tmp_path / "m.safetensors"), tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert_negated(tensors, {name: file.get_tensor(name) for name in file.offset_keys()})


def test_data_begins_at_a_multiple_of_eight_bytes(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"w": np.ones((2, 2))}, {"odd": "x"})
    copy_of(open_checkpoint(tmp_path / "m.safetensors"), tmp_path / "copy.safetensors")
    assert int.from_bytes((tmp_path / "copy.safetensors").read_bytes()[:8], "little") % 8 == 0


def test_a_header_in_another_order_than_the_data(tmp_path):
    header = {
        "late": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        "early": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    write_raw(tmp_path / "m.safetensors", json.dumps(header).encode(), np.array([1, 2], "<f4").tobytes())
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert [tensor.name for tensor in checkpoint.tensors] == ["early", "late"]
    assert [checkpoint.read(tensor)[0] for tensor in checkpoint.tensors] == [1, 2]
    negated(checkpoint, tmp_path / "new.safetensors")
    raw = (tmp_path / "new.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert list(json.loads(raw[8 : 8 + length])) == ["late", "early"]
    assert np.frombuffer(raw[8 + length :], "<f4").tolist() == [-1, -2]


def test_types_that_numpy_has_not_are_copied(tmp_path):
    header = {
        "packed": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]},
        "scales": {"dtype": "F8_E8M0", "shape": [2, 2], "data_offsets": [4, 8]},
        "w": {"dtype": "F16", "shape": [1], "data_offsets": [8, 10]},
    }
    body = bytes(range(10))
    write_raw(tmp_path / "m.safetensors", json.dumps(header).encode(), body)
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert [tensor.is_floating for tensor in checkpoint.tensors] == [False, False, True]
    negated(checkpoint, tmp_path / "new.safetensors")
    raw = (tmp_path / "new.safetensors").read_bytes()[-10:]
    assert raw[:8] == body[:8]
    assert raw[8:] == (-np.frombuffer(body[8:], "<f2")).tobytes()


NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__" and name.isprintable())
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def checkpoints(draw, codes):
    """{name: array} of any shapes and types, with random bits."""
    tensors = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=5)):
        dtype, shape = np.dtype(CODES[draw(st.sampled_from(codes))]), draw(SHAPES)
        n_bytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
        bits = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, n_bytes, np.uint8)
        if dtype == np.bool_:
            bits &= 1
        tensors[name] = bits.view(dtype).reshape(shape)
    return tensors


@given(checkpoints(list(CODES)), st.dictionaries(NAMES, st.text(max_size=5), max_size=3))
def test_any_safetensors_file_survives(tmp_path_factory, tensors, metadata):
    folder = tmp_path_factory.mktemp("any")
    metadata = {key: text for key, text in metadata.items() if text.isprintable()}
    write_safetensors(folder / "m.safetensors", tensors, metadata)
    negated(open_checkpoint(folder / "m.safetensors"), folder / "new.safetensors")
    found, after = read_safetensors(folder / "new.safetensors")
    assert found == metadata
    assert_negated(read_safetensors(folder / "m.safetensors")[1], after)


NUMPY_CODES = [code for code in CODES if not code.startswith(("F8", "BF"))]


@given(checkpoints(NUMPY_CODES), st.booleans())
def test_any_npz_survives(tmp_path_factory, tensors, compressed):
    folder = tmp_path_factory.mktemp("any")
    tensors = {name: array for name, array in tensors.items() if "/" not in name and not name.endswith(".npy")}
    (np.savez_compressed if compressed else np.savez)(folder / "m.npz", **{"x": np.ones(2)} | tensors)
    negated(open_checkpoint(folder / "m.npz"), folder / "new.npz")
    with np.load(folder / "m.npz") as before, np.load(folder / "new.npz") as after:
        assert_negated(dict(before), dict(after))


def test_npz_keeps_how_its_members_are_packed(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.comment = b"made by hand"
        for name, array, packing in (
            ("fortran", np.asfortranarray(np.arange(6.0).reshape(2, 3)), zipfile.ZIP_STORED),
            ("big_endian", np.arange(6, dtype=">f4").reshape(3, 2), zipfile.ZIP_DEFLATED),
            ("layer/kernel", np.ones((2, 2)), zipfile.ZIP_BZIP2),
        ):
            info = zipfile.ZipInfo(f"{name}.npy", (2024, 5, 6, 7, 8, 10))
            info.compress_type = packing
            with archive.open(info, "w") as member:
                np.lib.format.write_array(member, array)
        archive.writestr("README.txt", "not an array")
    checkpoint = open_checkpoint(tmp_path / "m.npz")
    assert [tensor.name for tensor in checkpoint.tensors] == ["fortran", "big_endian", "layer/kernel", "README.txt"]
    negated(checkpoint, tmp_path / "new.npz")
    with zipfile.ZipFile(tmp_path / "m.npz") as before, zipfile.ZipFile(tmp_path / "new.npz") as after:
        assert after.testzip() is None
        assert after.comment == before.comment
        facts = [
            [(m.filename, m.compress_type, m.date_time) for m in archive.infolist()] for archive in (before, after)
        ]
        assert facts[0] == facts[1]
        assert after.read("README.txt") == b"not an array"
    with np.load(tmp_path / "new.npz") as after:
        assert after["fortran"].flags.f_contiguous
        assert not after["fortran"].flags.c_contiguous
        assert after["big_endian"].dtype == ">f4"
        assert after["big_endian"].tolist() == [[0, -1], [-2, -3], [-4, -5]]


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_bfloat16_in_numpy_files(tmp_path, suffix):
    array = np.array([[1.5, -2.25], [0, 1e30]], ml_dtypes.bfloat16)
    np.savez(tmp_path / "w.npz", w=array)
    np.save(tmp_path / "w.npy", array)
    checkpoint = open_checkpoint(tmp_path / f"w{suffix}")
    (tensor,) = checkpoint.tensors
    assert (tensor.name, tensor.dtype, tensor.is_floating) == ("w", "bfloat16", True)
    assert same_bits(checkpoint.read(tensor), array)
    negated(checkpoint, tmp_path / f"new{suffix}")
    saved = np.load(tmp_path / f"new{suffix}")
    saved = saved["w"] if suffix == ".npz" else saved
    assert same_bits(saved.view(ml_dtypes.bfloat16), -array)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_keeps_its_order_and_type(tmp_path, order):
    array = np.array(np.arange(12.0).reshape(3, 4), dtype=">f2", order=order)
    np.save(tmp_path / "w.npy", array)
    negated(open_checkpoint(tmp_path / "w.npy"), tmp_path / "new.npy")
    assert np.load(tmp_path / "new.npy").dtype == ">f2"
    turned = (tmp_path / "new.npy").read_bytes()
    np.save(tmp_path / "expected.npy", np.negative(array, out=array.copy(order="K")))
    assert turned == (tmp_path / "expected.npy").read_bytes()
    copy_of(open_checkpoint(tmp_path / "w.npy"), tmp_path / "copy.npy")
    assert (tmp_path / "copy.npy").read_bytes() == (tmp_path / "w.npy").read_bytes()


@pytest.mark.parametrize("given", ["index", "folder"])
def test_shards_are_read_as_one_and_written_as_they_were(tmp_path, given):
    shards = {
        "model-00001-of-00002.safetensors": {"a.weight": np.ones((4, 4)), "a.bias": np.ones(4)},
        "model-00002-of-00002.safetensors": {"b.weight": np.full((2, 2), 3, np.float16), "ids": np.arange(2)},
    }
    index = write_sharded(tmp_path / "m", shards, {"format": "pt"})
    checkpoint = open_checkpoint(index if given == "index" else index.parent)
    assert [tensor.name for tensor in checkpoint.tensors] == ["a.weight", "a.bias", "b.weight", "ids"]
    assert checkpoint.read(checkpoint.tensors[2]).tolist() == [[3, 3], [3, 3]]
    assert len(checkpoint.files) == 3
    (tmp_path / "new").mkdir()
    negated(checkpoint, tmp_path / "new")
    assert list(files_in(tmp_path / "new")) == list(files_in(tmp_path / "m"))
    assert (tmp_path / "new" / index.name).read_bytes() == index.read_bytes()
    for name, tensors in shards.items():
        metadata, after = read_safetensors(tmp_path / "new" / name)
        assert metadata == {"format": "pt"}
        assert_negated(tensors, after)
