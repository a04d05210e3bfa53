"""Files that cannot be used: each gets one clear error, whatever is wrong with it, and nothing is written."""

import json
import os
import pickle
import re
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import files_in, write_raw, write_safetensors, write_sharded
from hypothesis import given, settings
from hypothesis import strategies as st

import transmask as tm
from transmask.checkpoint import check_checkpoint, open_checkpoint, plan_pruning, prune_checkpoint, read_masks

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def refuses(path, message):
    """Opening, pruning and checking `path` all fail with one line that holds `message`, and change no file."""
    before = files_in(path.parent)
    output = path.parent / ("new" + path.suffix)
    for use in (open_checkpoint, lambda p: prune_checkpoint(plan_pruning(p, "2:4"), output), check):
        with pytest.raises(tm.CheckpointError, match=re.escape(message)) as caught:
            use(path)
        assert "\n" not in str(caught.value)
    assert files_in(path.parent) == before


def check(path):
    return list(check_checkpoint(path, "2:4"))


# The library that reads the headers words what is wrong with them, differently from release to release.
DAMAGED = "m.safetensors' must be a .safetensors file, but it is damaged: "


@pytest.mark.parametrize(
    ("header", "n_bytes"),
    [
        ({"a": ENTRY}, 7),
        ({"a": ENTRY}, 9),
        (b"{bad", 0),
        ([], 0),
        ({"a": {**ENTRY, "dtype": "Q9"}}, 8),
        ({"a": {**ENTRY, "shape": [3]}}, 8),
        ({"a": {**ENTRY, "shape": [-2]}}, 8),
        ({"a": {**ENTRY, "shape": [2.0]}}, 8),
        ({"a": {**ENTRY, "data_offsets": [8, 0]}}, 8),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, 12),
        ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [12, 20]}}, 20),
        ({"a": {**ENTRY, "shape": [1 << 40, 1 << 40]}}, 8),
        ({"__metadata__": {"k": 1}, "a": ENTRY}, 8),
    ],
)
def test_damaged_safetensors(tmp_path, header, n_bytes):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    write_raw(tmp_path / "m.safetensors", raw, bytes(n_bytes))
    refuses(tmp_path / "m.safetensors", DAMAGED)


def test_the_same_safetensors_without_damage(tmp_path):
    write_raw(tmp_path / "m.safetensors", json.dumps({"a": ENTRY}).encode(), bytes(8))
    assert open_checkpoint(tmp_path / "m.safetensors").tensors[0].shape == (2,)


@pytest.mark.parametrize("raw", [b"", b"abc", struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", 99) + b"{}"])
def test_safetensors_cut_in_the_header(tmp_path, raw):
    (tmp_path / "m.safetensors").write_bytes(raw)
    refuses(tmp_path / "m.safetensors", DAMAGED)


def test_a_record_that_is_not_about_this_file(tmp_path):
    record = {"version": 1, "pattern": "2:4", "constraint": "exactly", "solver": "", "axes": {"gone": [0, 1]}}
    write_safetensors(tmp_path / "m.safetensors", {"w": np.eye(4)}, {"transmask": json.dumps(record)})
    with pytest.raises(
        tm.CheckpointError, match=r"says that 'gone' was pruned along the axes \(0, 1\), but it holds no"
    ):
        check(tmp_path / "m.safetensors")
    write_safetensors(tmp_path / "m.safetensors", {"w": np.eye(4)}, {"transmask": json.dumps(record | {"version": 9})})
    refuses(tmp_path / "m.safetensors", "the transmask record in the metadata of")


def sharded(tmp_path):
    return write_sharded(
        tmp_path / "m", {"1.safetensors": {"a": np.ones((4, 4))}, "2.safetensors": {"b": np.ones((4, 4))}}
    )


def test_a_missing_shard(tmp_path):
    index = sharded(tmp_path)
    (index.parent / "2.safetensors").unlink()
    refuses(index, "names the shard '2.safetensors', which holds 1 of 2 tensors, but the file is missing")


def test_a_damaged_shard(tmp_path):
    index = sharded(tmp_path)
    shard = index.parent / "2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    refuses(index, "2.safetensors' must be a .safetensors file, but it is damaged")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "1.safetensors", "b": "1.safetensors"}, "says that 'b' is in '1.safetensors', which does not hold it"),
        (
            {"a": "1.safetensors", "c": "2.safetensors"},
            "but '2.safetensors' holds the tensor 'b', which the index does not list",
        ),
        ({"a": "1.safetensors\0"}, "must name files in its own folder, got '1.safetensors\\x00'"),
        ({"a": "\ud800.safetensors"}, "is damaged: opening it failed, UnicodeEncodeError"),
        ({"a": "../m/1.safetensors"}, "must name files in its own folder, got '../m/1.safetensors' for the tensor 'a'"),
        ({"a": "..safetensors/"}, "must name files in its own folder, got '..safetensors/'"),
        ({"a": ".."}, "must name .safetensors files, got '..'"),
        ({"a": "..\\1.safetensors"}, "must name files in its own folder"),
        ({"a": "/etc/passwd"}, "must name files in its own folder"),
        ({"a": 3}, "must name files in its own folder, got 3"),
        ({"a": "pytorch_model-00001-of-00002.bin"}, "must name .safetensors files, got 'pytorch_model-00001"),
        ({}, "must hold a 'weight_map' from tensors to files"),
        (None, "must hold a 'weight_map' from tensors to files"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path, weight_map, message):
    index = sharded(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map}))
    refuses(index, message)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"weight_map": ' * 100_000, "\xff"])
def test_an_index_that_is_no_json_object(tmp_path, text):
    index = sharded(tmp_path)
    index.write_bytes(text.encode("latin-1"))
    refuses(index, "must hold")


def test_an_index_with_a_byte_order_mark_is_read_and_copied_as_it_is(tmp_path):
    index = sharded(tmp_path)
    index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes())
    assert [tensor.name for tensor in open_checkpoint(index).tensors] == ["a", "b"]
    prune_checkpoint(plan_pruning(index, "2:4"), tmp_path / "new")
    assert (tmp_path / "new" / index.name).read_bytes() == index.read_bytes()
    index.write_bytes(index.read_text(encoding="utf-8-sig").encode("utf-16"))
    refuses(index, "must hold JSON, but it cannot be read")


@pytest.mark.parametrize("second", ["1.safetensors", "2.safetensors"])
def test_an_index_that_names_a_tensor_twice(tmp_path, second):
    index = sharded(tmp_path)
    index.write_text(f'{{"weight_map": {{"a": "1.safetensors", "b": "2.safetensors", "a": "{second}"}}}}')
    refuses(index, "must hold JSON, but it cannot be read: it has the key 'a' twice")


def test_a_tensor_in_two_shards(tmp_path):
    index = sharded(tmp_path)
    write_safetensors(index.parent / "2.safetensors", {"a": np.zeros((4, 4)), "b": np.ones((4, 4))})
    refuses(index, "'2.safetensors' holds the tensor 'a', which the index puts in '1.safetensors'")


def test_a_header_that_names_a_tensor_twice(tmp_path):
    entry = json.dumps(ENTRY)
    write_raw(tmp_path / "m.safetensors", f'{{"a": {entry}, "a": {entry}}}'.encode(), bytes(8))
    refuses(tmp_path / "m.safetensors", "twice")


def test_a_shard_that_the_index_does_not_name_is_no_part_of_the_checkpoint(tmp_path):
    index = sharded(tmp_path)
    write_safetensors(index.parent / "3.safetensors", {"a": np.zeros((4, 4))})
    prune_checkpoint(plan_pruning(index, "2:4"), tmp_path / "new")
    assert sorted(files_in(tmp_path / "new")) == ["1.safetensors", "2.safetensors", index.name]


def test_shards_that_were_not_pruned_together(tmp_path):
    index = sharded(tmp_path)
    prune_checkpoint(plan_pruning(index, "2:4"), tmp_path / "new")
    (tmp_path / "new" / "2.safetensors").write_bytes((index.parent / "2.safetensors").read_bytes())
    refuses(tmp_path / "new" / index.name, "must have been pruned together, but their transmask records differ")


def test_a_folder_without_a_checkpoint_or_with_two(tmp_path):
    with pytest.raises(tm.CheckpointError, match=r"got neither\. Is the model in a subfolder\?"):
        open_checkpoint(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors.index.json").write_text("{}")
    with pytest.raises(tm.CheckpointError, match=r"got 'a.*json', 'b.*json'\. Name the file, such as '.*a\.safe"):
        open_checkpoint(tmp_path)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.safetensors", "model.npz", "model.npy", "model"])
def test_a_pickle_is_refused_and_never_run(tmp_path, name, protocol):
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "owned"), protocol))
    refuses(tmp_path / name, "must hold tensors only, got a pickle")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "pytorch_model.bin"])
def test_what_torch_saves_is_refused_with_the_way_out(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:  # the layout of torch.save since torch 1.6
        archive.writestr("model/data.pkl", pickle.dumps({}, 2))
        archive.writestr("model/data/0", b"")
    target = name.rsplit(".", 1)[0] + ".safetensors"
    refuses(tmp_path / name, f"s.save_file(torch.load('{name}', weights_only=True), '{target}')")


def test_a_header_length_that_looks_like_a_pickle(tmp_path):
    # 0x0280 bytes of header: the file begins with the bytes of pickle protocol 2.
    header = json.dumps({"w": {"dtype": "F64", "shape": [4, 4], "data_offsets": [0, 128]}}).encode().ljust(0x0280)
    write_raw(tmp_path / "m.safetensors", header, bytes(128))
    assert (tmp_path / "m.safetensors").read_bytes()[:2] == b"\x80\x02"
    assert open_checkpoint(tmp_path / "m.safetensors").tensors[0].shape == (4, 4)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_python_objects_in_numpy_files(tmp_path, suffix):
    array = np.array([[Bomb(tmp_path / "owned")]], dtype=object)
    path = tmp_path / f"m{suffix}"
    np.save(path, array, allow_pickle=True) if suffix == ".npy" else np.savez(path, w=array)
    refuses(path, "must hold numbers, got Python objects, which are a pickle and can run code")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("kept", [0, 5, 40, 130, 255])
def test_truncated_npy(tmp_path, kept):
    np.save(tmp_path / "m.npy", np.ones((4, 4)))
    raw = (tmp_path / "m.npy").read_bytes()
    (tmp_path / "m.npy").write_bytes(raw[:kept])
    refuses(tmp_path / "m.npy", "Was it copied completely?")


def test_truncated_npz(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.ones((4, 4)))
    raw = (tmp_path / "m.npz").read_bytes()
    for kept in range(0, len(raw), 7):
        (tmp_path / "m.npz").write_bytes(raw[:kept])
        refuses(tmp_path / "m.npz", "must be a .npz file, but it is damaged")


def test_an_npz_whose_data_does_not_fit_its_checksum(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.ones((4, 4)))
    raw = bytearray((tmp_path / "m.npz").read_bytes())
    raw[raw.index(np.float64(1).tobytes())] ^= 1
    (tmp_path / "m.npz").write_bytes(raw)
    with pytest.raises(tm.CheckpointError, match="Bad CRC-32"):
        prune_checkpoint(plan_pruning(tmp_path / "m.npz", "2:4"), tmp_path / "new.npz")
    assert list(files_in(tmp_path)) == ["m.npz"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_that_names_an_array_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        for _ in range(2):
            with archive.open("w.npy", "w") as member:
                np.lib.format.write_array(member, np.ones((4, 4)))
    refuses(tmp_path / "m.npz", "must name each array once")


@pytest.mark.parametrize("name", ["model.h5", "model.gguf", "model", "model.txt"])
def test_other_formats(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89HDF or anything")
    refuses(tmp_path / name, "must end with .safetensors, .npz, .npy or .safetensors.index.json")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(tm.InvalidTypeError, match="`path` must be a path, got None of type NoneType"):
        open_checkpoint(None)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".npy"])
def test_a_file_that_shrinks_after_it_was_opened(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    weights = np.random.default_rng(0).standard_normal((64, 64))
    if suffix == ".safetensors":
        write_safetensors(path, {"w": weights})
    else:
        np.savez(path, w=weights) if suffix == ".npz" else np.save(path, weights)
    plan = plan_pruning(path, "2:4")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(tm.CheckpointError, match=r"changed while it was read|damaged"):
        prune_checkpoint(plan, tmp_path / f"new{suffix}")
    assert list(files_in(tmp_path)) == [path.name]


def test_a_file_that_shrinks_in_a_tensor_that_is_only_copied(tmp_path):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"w": np.eye(4), "embed": np.ones((64, 64))})
    plan = plan_pruning(path, "2:4")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(tm.CheckpointError, match="changed while it was read"):
        prune_checkpoint(plan, tmp_path / "new.safetensors")
    assert list(files_in(tmp_path)) == [path.name]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_weight_that_is_not_finite_is_refused_with_the_name_of_its_tensor(tmp_path, bad, dtype):
    weights = np.ones((8, 8), dtype)
    weights[2, 3] = bad
    write_safetensors(tmp_path / "m.safetensors", {"fine": np.ones((8, 8)), "layer.1": weights})
    plan = plan_pruning(tmp_path / "m.safetensors", "2:4")
    message = (
        "tensor 'layer.1': `weights` must be finite, got 1 of 64 entries NaN or infinite, the first at index (2, 3)"
    )
    with pytest.raises(tm.InvalidArgumentError, match=re.escape(message)):
        prune_checkpoint(plan, tmp_path / "new.safetensors", masks=tmp_path / "masks.safetensors")
    assert list(files_in(tmp_path)) == ["m.safetensors"]


def test_nothing_to_prune_and_nothing_to_check(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"bias": np.ones(4), "wte": np.ones((8, 8)), "n": np.array(3)})
    with pytest.raises(
        tm.InvalidArgumentError, match=r"got none of 3 .* Skipped: bias: 1-d, not a matrix; wte: embedding"
    ):
        plan_pruning(tmp_path / "m.safetensors", "2:4")
    with pytest.raises(tm.InvalidArgumentError, match="`model` must hold a tensor to check, got none"):
        check(tmp_path / "m.safetensors")


def test_arguments_are_checked_before_the_file_is_read(tmp_path):
    missing = tmp_path / "missing.safetensors"
    for arguments, message in (
        (("4:2", {}), "did you mean '2:4'"),
        (("2:4", {"solver": "enumeratoin"}), "Did you mean 'enumeration'"),
        (("2:4", {"constraint": "exact"}), "Did you mean 'exactly'"),
        (("8:16", {"solver": "enumeration"}), "'min_cost_flow'"),
    ):
        with pytest.raises(tm.InvalidArgumentError, match=message):
            plan_pruning(missing, arguments[0], **arguments[1])


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """One small valid file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    tensors = {"a.weight": np.ones((4, 8), np.float32), "b": np.ones((4, 4), ml_dtypes.bfloat16), "i": np.arange(3)}
    write_safetensors(folder / "m.safetensors", tensors, {"k": "v"})
    plan = plan_pruning(folder / "m.safetensors", "2:4")
    prune_checkpoint(plan, folder / "pruned.safetensors", masks=folder / "masks.safetensors")
    np.savez(folder / "m.npz", **tensors)
    np.savez_compressed(folder / "c.npz", **tensors)
    np.save(folder / "m.npy", tensors["a.weight"])
    return [(path.suffix, path.read_bytes()) for path in sorted(folder.iterdir())]


@settings(max_examples=400)
@given(st.data())
def test_any_damage_gives_an_error_of_ours_or_none(whole_files, tmp_path_factory, data):
    suffix, raw = data.draw(st.sampled_from(whole_files))
    raw = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from(b"\x00\xff019{}[]\",:-' "))
    raw = raw[: data.draw(st.sampled_from([len(raw)] * 3 + [len(raw) // 2, len(raw) - 1]))]
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / f"m{suffix}"
    path.write_bytes(raw)
    for use in (lambda: prune_checkpoint(plan_pruning(path, "2:4"), folder / f"new{suffix}"), lambda: check(path)):
        try:
            use()
        except tm.TransmaskError:
            assert not list(folder.glob(".transmask*"))
    if suffix == ".safetensors":
        try:
            masks = read_masks(path)
            assert all(masks[name].dtype == np.bool_ for name in masks)
        except tm.CheckpointError:
            pass
