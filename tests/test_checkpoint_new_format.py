"""A new format is a file and a row: nothing else needs to know it."""

import json
import lzma
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import write_sharded
from toy_format import SUFFIX, ToyCheckpoint

import transmask as tm
from transmask.checkpoint import FORMATS, check_checkpoint, open_checkpoint, plan_pruning, prune_checkpoint

CODE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from toy_format import SUFFIX, ToyCheckpoint
from transmask.checkpoint import FORMATS
FORMATS[SUFFIX] = ToyCheckpoint
from transmask.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A file of the toy format, registered for this test."""
    monkeypatch.setitem(FORMATS, SUFFIX, ToyCheckpoint)
    weights = np.random.default_rng(0).standard_normal((8, 8))
    path = tmp_path / "m.toy"
    path.write_text(json.dumps({"weight": weights.tolist(), "bias": [1.0, 2.0]}))
    return path


def test_it_is_opened_pruned_and_checked(model):
    checkpoint = open_checkpoint(model)
    assert isinstance(checkpoint, ToyCheckpoint)
    [outcome] = prune_checkpoint(plan_pruning(model, "2:4"), model.with_name("new.toy"))
    assert outcome.tensor.name == "weight"
    before, after = (json.loads(path.read_text()) for path in (model, model.with_name("new.toy")))
    mask = tm.transposable_mask(before["weight"], "2:4")
    assert np.array_equal(after["weight"], np.where(mask, before["weight"], 0))
    assert after["bias"] == before["bias"]
    assert all(found.report.ok for found in check_checkpoint(model.with_name("new.toy"), "2:4"))


@pytest.mark.parametrize("suffix", [".toy.json", ".npz.toy"])
def test_a_suffix_of_several_parts_counts_before_a_shorter_one(model, monkeypatch, suffix):
    monkeypatch.setitem(FORMATS, suffix, ToyCheckpoint)
    other = model.with_name(f"m{suffix}")
    other.write_text(model.read_text())
    assert isinstance(open_checkpoint(other), ToyCheckpoint)


def test_errors_name_it(model, tmp_path):
    (tmp_path / "m.other").write_text("anything")
    with pytest.raises(tm.CheckpointError) as raised:
        open_checkpoint(tmp_path / "m.other")
    assert "must end with .safetensors, .npz, .npy, .toy or .safetensors.index.json." in str(raised.value)
    with pytest.raises(tm.InvalidArgumentError, match=r"`output` must end with '\.toy' like the input"):
        prune_checkpoint(plan_pruning(model, "2:4"), tmp_path / "new.npz")
    index = write_sharded(tmp_path / "shards", {"1.safetensors": {"a": np.eye(4)}})
    with pytest.raises(tm.InvalidArgumentError, match="`output` must be a folder"):
        prune_checkpoint(plan_pruning(index, "2:4"), tmp_path / "new.toy")


class BrokenCheckpoint(ToyCheckpoint):
    """A format whose decoder knows errors of its own."""

    fails_in = ""

    def read(self, tensor):
        """Read one tensor; see `Checkpoint.read`."""
        if self.fails_in == "read":
            raise lzma.LZMAError("Corrupt input\ndata")
        return super().read(tensor)

    def rewrite(self, target, replace, record):
        """Write the file again; see `Checkpoint.rewrite`."""
        super().rewrite(target, replace, record)
        if self.fails_in == "rewrite":
            raise struct.error("unpack requires a buffer of 8 bytes")


@pytest.fixture
def broken(model, monkeypatch):
    monkeypatch.setitem(FORMATS, SUFFIX, BrokenCheckpoint)
    return model


def test_whatever_its_decoder_raises_is_one_line_that_names_the_file(broken, tmp_path, monkeypatch):
    def fails(path, words):
        pattern = rf"'.*{path.name}' must be a \.toy file, but it is damaged: {words}\. Was it copied completely\?"
        with pytest.raises(tm.CheckpointError, match=f"^{pattern}$"):
            prune_checkpoint(plan_pruning(path, "2:4"), tmp_path / "new.toy")
        assert not (tmp_path / "new.toy").exists()
        assert not list(tmp_path.glob(".transmask*"))

    monkeypatch.setattr(BrokenCheckpoint, "fails_in", "read")
    fails(broken, r"reading 'weight' failed, LZMAError: Corrupt input data")
    with pytest.raises(tm.CheckpointError, match="reading 'weight' failed"):
        list(check_checkpoint(broken, "2:4"))
    monkeypatch.setattr(BrokenCheckpoint, "fails_in", "rewrite")
    fails(broken, r"copying it failed, error: unpack requires a buffer of 8 bytes")
    (tmp_path / "cut.toy").write_text("{")
    fails(tmp_path / "cut.toy", r"opening it failed, JSONDecodeError: .*")
    monkeypatch.setitem(FORMATS, SUFFIX, lambda path: {}[path.name])  # a function, not a class
    fails(broken, r"opening it failed, KeyError: 'm.toy'")


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), PermissionError(13, "mine"), MemoryError("mine")])
def test_what_the_caller_or_the_system_raises_stays_what_it_is(broken, tmp_path, monkeypatch, error):
    def progress(tensor, outcome):
        raise error

    with pytest.raises(type(error), match="mine"):
        prune_checkpoint(plan_pruning(broken, "2:4"), tmp_path / "new.toy", progress=progress)
    if not isinstance(error, ZeroDivisionError):
        monkeypatch.setattr(ToyCheckpoint, "read", lambda self, tensor: progress(tensor, None))
        with pytest.raises(type(error), match="mine"):
            list(check_checkpoint(broken, "2:4"))


def test_the_command_line_names_and_takes_it(model):
    def run(*arguments):
        command = [sys.executable, "-c", CODE, *arguments]
        return subprocess.run(command, cwd=model.parent, capture_output=True, text=True, check=True).stdout

    assert ".safetensors, .npz, .npy or .toy file" in " ".join(run("prune", "--help").replace("│", " ").split())
    assert "pruned 1 tensor," in run("prune", "m.toy", "-o", "new.toy", "-p", "2:4")
