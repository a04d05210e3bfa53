"""`transmask apply`: masks of a file, and those of a checkpoint in training, become zeros, and nothing else changes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from checkpoint_files import CODES, files_in, read_safetensors, same_bits, write_safetensors, write_sharded
from naive import offender

import transmask as tm
from transmask.checkpoint import (
    apply_masks,
    check_checkpoint,
    open_checkpoint,
    plan_applying,
    plan_pruning,
    prune_checkpoint,
    write_masks,
)

RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((8, 12)).astype(np.float32)
EXPERTS = RNG.standard_normal((2, 8, 4)).astype(CODES["BF16"])
MASKS = {
    "fc.weight": tm.transposable_mask(WEIGHTS, "2:4"),
    "experts.w": tm.transposable_mask(EXPERTS, "2:4", axes=(1, 2)),
}
TENSORS = {"fc.weight": WEIGHTS, "fc.bias": np.ones(8), "experts.w": EXPERTS, "ids": np.arange(3)}
"""The masks were not made by what is tested here, and they go onto a fine-tuned checkpoint too."""


def transmask(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "transmask", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


def write_model(tmp_path, kind, tensors, metadata=None):
    """Write a checkpoint; return its path, the name of an output, and what reads that."""
    if kind == "file":
        write_safetensors(tmp_path / "m.safetensors", tensors, metadata)
        return tmp_path / "m.safetensors", tmp_path / "new.safetensors", lambda path: read_safetensors(path)[1]
    if kind == "npz":
        np.savez(tmp_path / "m.npz", **{name: np.asarray(array, np.float32) for name, array in tensors.items()})
        return tmp_path / "m.npz", tmp_path / "new.npz", lambda path: dict(np.load(path))
    names = list(tensors)
    shards = {f"{i}.safetensors": {name: tensors[name] for name in names[i::2]} for i in range(2)}
    write_sharded(tmp_path / "m", shards, metadata)
    (tmp_path / "m" / "config.json").write_text("{}")

    def read(path):
        found = {name: read_safetensors(path / name)[1] for name in shards}
        index = json.loads((path / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == {tensor: name for name in found for tensor in found[name]}
        assert index["metadata"]["total_size"] == sum(array.nbytes for f in found.values() for array in f.values())
        assert (path / "config.json").read_text() == "{}"
        return {name: array for shard in found.values() for name, array in shard.items()}

    return tmp_path / "m", tmp_path / "new", read


@pytest.mark.surface
@pytest.mark.parametrize("kind", ["file", "shards"])
def test_masks_go_onto_a_fine_tuned_checkpoint(tmp_path, kind):
    fine_tuned = TENSORS | {"fc.weight": -WEIGHTS[::-1].copy()}
    model, output, read = write_model(tmp_path, kind, fine_tuned, {"format": "pt"})
    write_masks(tmp_path / "masks.safetensors", MASKS, "2:4", axes={"experts.w": (1, 2)}, solver="somebody's")
    done = transmask("apply", model, "--masks", "masks.safetensors", "-o", output, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = read(output)
    for name, old in fine_tuned.items():
        expected = np.where(MASKS[name], old, np.zeros_like(old)) if name in MASKS else old
        assert same_bits(after[name], expected), name
    rows = {row["name"]: row for row in json.loads(done.stdout)["tensors"]}
    assert {name: (row["pattern"], row["zeroed"], row["density"]) for name, row in rows.items()} == {
        "fc.weight": ("2:4", 48, 0.5),
        "experts.w": ("2:4", 32, 0.5),
    }
    assert transmask("check", output, cwd=tmp_path).returncode == 0
    record = open_checkpoint(output).record
    assert (record.axes, record.solver) == ({"fc.weight": (0, 1), "experts.w": (1, 2)}, "somebody's")


def test_masks_of_prune_give_what_prune_writes(tmp_path):
    model, output, _ = write_model(tmp_path, "file", TENSORS)
    plan = plan_pruning(model, tm.checkpoint.Recipe("2:4", {"experts": "1:4"}))
    prune_checkpoint(plan, tmp_path / "pruned.safetensors", masks=tmp_path / "masks.safetensors")
    plan = plan_applying(model, tmp_path / "masks.safetensors")
    apply_masks(plan, output)
    assert output.read_bytes() == (tmp_path / "pruned.safetensors").read_bytes()
    again = apply_masks(plan_applying(output, tmp_path / "masks.safetensors"), tmp_path / "again.safetensors")
    assert [(one.name, str(one.pattern), one.n_zeroed) for one in again] == [
        ("fc.weight", "2:4", 0),
        ("experts.w", "1:4", 0),
    ]


def in_training(style, mask_type):
    """The tensors of a model whose weight is trained under a mask, and the mask."""
    mask = MASKS["fc.weight"].astype(mask_type)
    if style == "hook":
        names = {"fc.weight_orig": WEIGHTS, "fc.weight_mask": mask}
    else:
        base = "fc.parametrizations.weight"
        names = {f"{base}.original": WEIGHTS, f"{base}.0.mask": mask, f"{base}.0.step": np.array(3)}
    return {"head.weight": np.eye(8)} | names | {"fc.bias": np.ones(8)}


@pytest.mark.parametrize("mask_type", [np.float32, np.bool_, np.uint8])
@pytest.mark.parametrize("style", ["hook", "parametrisation"])
@pytest.mark.parametrize("kind", ["file", "shards", "npz"])
def test_a_checkpoint_in_training(tmp_path, kind, style, mask_type):
    tensors = in_training(style, mask_type)
    model, output, read = write_model(tmp_path, kind, tensors)
    original = next(name for name in tensors if name.endswith(("_orig", ".original")))
    found = {one.name: one.report.ok for one in check_checkpoint(model, "2:4")}
    assert found == {"head.weight": True, "fc.weight": True}, "dense entries under a mask hold the pattern"
    with pytest.raises(tm.InvalidArgumentError) as caught:
        plan_pruning(model, "2:4")
    assert f"no mask is on yet, got {original!r} with" in str(caught.value)
    assert "Fold its masks in first: transmask apply" in str(caught.value)
    assert list(plan_pruning(model, "2:4", exclude="fc").axes) == ["head.weight"]
    [applied] = apply_masks(plan_applying(model), output)
    assert (applied.name, applied.pattern, applied.n_kept, applied.n_zeroed) == ("fc.weight", None, 48, 48)
    after = read(output)
    assert set(after) == {"head.weight", "fc.weight", "fc.bias"}
    np.testing.assert_array_equal(after["fc.weight"], np.where(MASKS["fc.weight"], WEIGHTS, 0))
    assert offender(after["fc.weight"] != 0, 2, 4, "exactly") is None
    prune_checkpoint(plan_pruning(output, "1:4", include="fc"), output.with_name("pruned" + output.suffix))


def test_check_judges_the_product(tmp_path):
    tensors = in_training("hook", np.float32)
    tensors["fc.weight_mask"][0] = 1
    model, _, _ = write_model(tmp_path, "file", tensors)
    found = {one.name: one.report.first_offender for one in check_checkpoint(model, "2:4")}
    assert found["fc.weight"] == "row 0, columns 0 to 3 keeps 4, more than 2 of 4"
    tensors["fc.weight_orig"] = np.where(MASKS["fc.weight"], WEIGHTS, 0)
    model, _, _ = write_model(tmp_path, "file", tensors)
    assert all(one.report.ok for one in check_checkpoint(model, "2:4")), "zeros in the entries count as well"


def test_masks_of_both_kinds_in_one_run(tmp_path):
    model, output, read = write_model(tmp_path, "file", in_training("hook", np.bool_) | {"experts.w": EXPERTS})
    write_masks(tmp_path / "k.safetensors", {"experts.w": MASKS["experts.w"]}, "2:4", axes={"experts.w": (1, 2)})
    assert len(apply_masks(plan_applying(model, tmp_path / "k.safetensors"), output)) == 2
    assert all(np.count_nonzero(read(output)[name]) * 2 == read(output)[name].size for name in MASKS)
    assert list(open_checkpoint(output).record.axes) == ["experts.w"]


def drop(name):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "masks", "message"),
    [
        (
            None,
            {"fc.weight": np.zeros((8, 8), bool)},
            "must have the shapes of the tensors, got (8, 8) for 'fc.weight'",
        ),
        (None, {"fd.weight": np.zeros((8, 12), bool)}, "got one for 'fd.weight', which it does not hold."),
        (None, {"ids": np.zeros((3, 1), bool)}, "must have the shapes of the tensors"),
        (None, {"table": np.zeros((4, 4), bool)}, "must hold a weight where it gets a mask, got 'table' in "),
        (None, {}, "`masks` must be a file with a mask, got an empty one"),
        (None, None, "`masks` must be a file with a mask, got none"),
        ("fc.weight_mask", {"fc.weight": MASKS["fc.weight"]}, "Fold that in first: apply without a masks file."),
        (
            np.ones((8, 8)),
            None,
            "the mask 'fc.weight_mask' must have the shape of 'fc.weight_orig', (8, 12), got (8, 8)",
        ),
        (np.full((8, 12), 0.5), None, "the mask 'fc.weight_mask' must hold 0 and 1 only."),
        (np.full((8, 12), np.nan), None, "the mask 'fc.weight_mask' must hold 0 and 1 only."),
        (np.ones((8, 12), np.int64), None, "the mask 'fc.weight_mask' must hold 0 and 1, got dtype I64."),
        ("fc.weight", None, "'fc.weight' must be stored once, got it with a mask and in another way."),
        ("second", None, "must have no parametrisation but its mask, got 'fc.parametrizations.weight.1.scale'"),
    ],
)
def test_what_does_not_fit_is_one_line_and_writes_nothing(tmp_path, change, masks, message):
    tensors = TENSORS | {"table": np.zeros((4, 4), np.int64)}
    if change is not None:
        tensors = in_training("parametrisation" if isinstance(change, str) and change == "second" else "hook", np.bool_)
        if isinstance(change, np.ndarray):
            tensors["fc.weight_mask"] = change
        elif change == "fc.weight":
            tensors["fc.weight"] = WEIGHTS
        elif change == "second":
            tensors["fc.parametrizations.weight.1.scale"] = np.ones(1)
    model, output, _ = write_model(tmp_path, "file", tensors)
    if masks is not None:
        write_masks(tmp_path / "masks.safetensors", masks, "2:4", constraint="at_most")
    before = files_in(tmp_path)
    with pytest.raises((tm.InvalidArgumentError, tm.CheckpointError)) as caught:
        apply_masks(plan_applying(model, None if masks is None else tmp_path / "masks.safetensors"), output)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path) == before


def test_a_masks_file_that_lies_is_refused(tmp_path, monkeypatch):
    model, output, _ = write_model(tmp_path, "file", TENSORS)
    write_masks(tmp_path / "masks.safetensors", {"fc.weight": np.ones((8, 12), bool)}, "4:4")
    raw = (tmp_path / "masks.safetensors").read_bytes()
    (tmp_path / "masks.safetensors").write_bytes(raw.replace(b'"4:4', b'"2:4'))
    with pytest.raises(tm.CheckpointError, match=r"must hold 2:4 exactly, but row 0, .* The file is damaged\."):
        apply_masks(plan_applying(model, tmp_path / "masks.safetensors"), output)
    assert sorted(os.listdir(tmp_path)) == ["m.safetensors", "masks.safetensors"]
    with pytest.raises(tm.InvalidArgumentError, match="which is a masks file"):
        plan_applying(tmp_path / "masks.safetensors", tmp_path / "masks.safetensors")
    with pytest.raises(tm.InvalidArgumentError, match="`output` must not be the input"):
        apply_masks(plan_applying(model, tmp_path / "masks.safetensors"), tmp_path / "masks.safetensors")


def test_masks_of_prune_on_stored_weights_that_are_scaled(tmp_path):
    """The g of a weight norm is shortened with its v, as `prune` does; 8-bit entries become zeros."""
    tensors = {
        "v.weight_g": RNG.uniform(1, 2, (8, 1)).astype(np.float32),
        "v.weight_v": WEIGHTS,
        "q.weight": RNG.integers(-127, 128, (16, 24)).astype(np.int8),
        "q.weight_scale": RNG.uniform(0.01, 1, (16, 1)).astype(np.float32),
    }
    model, output, read = write_model(tmp_path, "file", tensors)
    prune_checkpoint(plan_pruning(model, "2:4"), tmp_path / "p.safetensors", masks=tmp_path / "masks.safetensors")
    apply_masks(plan_applying(model, tmp_path / "masks.safetensors"), output)
    assert output.read_bytes() == (tmp_path / "p.safetensors").read_bytes()
    after = read(output)
    kept = after["v.weight_v"] != 0
    old, new = (
        one["v.weight_g"] * one["v.weight_v"] / np.linalg.norm(one["v.weight_v"], axis=1, keepdims=True)
        for one in (tensors, after)
    )
    np.testing.assert_allclose(new[kept], old[kept], rtol=1e-6)
    assert not kept.all()
    write_safetensors(model, {name: array for name, array in tensors.items() if name != "q.weight_scale"})
    with pytest.raises(tm.InvalidArgumentError, match=r"must hold a weight where it gets a mask, got 'q\.weight' in "):
        plan_applying(model, tmp_path / "masks.safetensors")
