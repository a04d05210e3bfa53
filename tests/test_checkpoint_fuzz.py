"""Thousands of damaged files through every command that reads one: an error of ours or a result, and nothing else.

The commands' functions are called in this process, so that whatever a library raises on damage and nobody turned into
an error of ours comes out here.
"""

import random
import shutil
import zipfile

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import files_in, write_safetensors, write_sharded

import transmask as tm
from transmask.checkpoint import plan_pruning, prune_checkpoint
from transmask.cli.check import check
from transmask.cli.compare import compare
from transmask.cli.prune import prune
from transmask.cli.sad import sad

pytestmark = [pytest.mark.surface, pytest.mark.filterwarnings("ignore")]

CASES = 300  # of each kind of file, each through every command


def tensors():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4, 8)).astype(np.float32)
    return {"a.weight": weights, "b": np.ones((4, 4), ml_dtypes.bfloat16), "i": np.arange(3)}


def write_npz(path, compression):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, array in tensors().items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)


def write_plain(path):
    write_safetensors(path, tensors(), {"k": "v"})


def write_pruned(path):
    write_plain(path.with_suffix(".dense.safetensors"))
    prune_checkpoint(plan_pruning(path.with_suffix(".dense.safetensors"), "2:4", solver="enumeration"), path)
    path.with_suffix(".dense.safetensors").unlink()


def write_masks_file(path):
    write_plain(path.with_suffix(".dense.safetensors"))
    plan = plan_pruning(path.with_suffix(".dense.safetensors"), "2:4", solver="enumeration")
    prune_checkpoint(plan, None, masks=path, apply=False)
    path.with_suffix(".dense.safetensors").unlink()


def write_shards(path):
    first, *rest = tensors().items()
    write_sharded(path.parent, {"1.safetensors": dict([first]), "2.safetensors": dict(rest)})


# For each kind how to write it, the file that is damaged, and the path that a command gets.
KINDS = {
    "safetensors": (write_plain, "m.safetensors", "m.safetensors"),
    "pruned": (write_pruned, "m.safetensors", "m.safetensors"),
    "masks": (write_masks_file, "m.safetensors", "m.safetensors"),
    "index": (write_shards, "model.safetensors.index.json", "model.safetensors.index.json"),
    "shard": (write_shards, "2.safetensors", "model.safetensors.index.json"),
    "stored": (lambda path: write_npz(path, zipfile.ZIP_STORED), "m.npz", "m.npz"),
    "deflate": (lambda path: write_npz(path, zipfile.ZIP_DEFLATED), "m.npz", "m.npz"),
    "bz2": (lambda path: write_npz(path, zipfile.ZIP_BZIP2), "m.npz", "m.npz"),
    "lzma": (lambda path: write_npz(path, zipfile.ZIP_LZMA), "m.npz", "m.npz"),
    "npy": (lambda path: np.save(path, tensors()["a.weight"]), "m.npy", "m.npy"),
}


def commands(model, whole, output):
    """Every command that reads a checkpoint, on the damaged one and on a whole one; `prune` is the first."""
    yield lambda: prune(model, "2:4", output, solver="enumeration")
    yield lambda: check(model, "2:4")
    yield lambda: sad(model, whole)
    yield lambda: sad(whole, model)
    yield lambda: compare(model, "2:4", ["enumeration"], sample=2)


def verdict(command):
    """Run a command; return whether it came to an end without an error of ours, which must be one plain line."""
    try:
        command()
    except tm.TransmaskError as error:
        line = str(error)
    else:
        return True
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    return False


def damage(raw, other, choose):
    """Flip bits, put bytes that mean something to a parser, cut the end off, or put in a piece of another file."""
    raw = bytearray(raw)
    way = choose.choice(("flip", "flip", "put", "cut", "splice"))
    for _ in range(choose.randint(1, 4)):
        place = choose.randrange(len(raw)) if raw else 0
        if way == "cut" or not raw:
            return raw[:place]
        if way == "flip":
            raw[place] ^= 1 << choose.randrange(8)
        elif way == "put":
            raw[place] = choose.choice(b"\x00\xff019{}[]\",:-' ")
        else:
            start, length = choose.randrange(len(other)), choose.randint(1, 40)
            raw[place : place + choose.choice((0, length))] = other[start : start + length]
    return raw


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """The bytes of one whole file of each kind, to cut pieces from."""
    found = []
    for kind, (write, name, _) in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        write(folder / name)
        found.append((folder / name).read_bytes())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_damage_gives_a_result_or_one_line_and_no_partial_output(kind, pieces, tmp_path, capsys):
    write, name, given = KINDS[kind]
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    write(model / name)
    whole, choose, verdicts = (model / name).read_bytes(), random.Random(kind), []
    write_plain(tmp_path / "whole.safetensors")
    for _ in range(CASES):
        (model / name).write_bytes(damage(whole, choose.choice(pieces), choose))
        before = files_in(model)
        out.mkdir()
        output = out / ("folder" if given.endswith(".json") else given)
        passed = [verdict(command) for command in commands(model / given, tmp_path / "whole.safetensors", output)]
        assert [path.name for path in out.iterdir()] == [output.name] * passed[0]
        assert files_in(model) == before
        verdicts += passed
        shutil.rmtree(out)
    capsys.readouterr()
    assert verdicts.count(False) > CASES  # the damage was found...
    assert verdicts.count(True) > 0  # ...and not everything was refused
