"""Tied tensors, as safetensors and others store them: judged by all their names, and pruned alike or not at all."""

import numpy as np
import pytest
from checkpoint_files import read_safetensors, same_bits, write_safetensors

from transmask.checkpoint import check_checkpoint, plan_check, plan_pruning, prune_checkpoint


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reasons(plan):
    return {chosen.tensor.name: chosen.reason for chosen in plan.selections}


def test_one_stored_of_two_tied_names_is_judged_by_both(tmp_path):
    metadata = {"format": "pt", "model.embed_tokens.weight": "lm_head.weight", "wte.weight": "nowhere"}
    tensors = {"lm_head.weight": random(16, 8), "fc.weight": random(16, 8, seed=1)}
    path = tmp_path / "m.safetensors"
    write_safetensors(path, tensors, metadata)
    plan = plan_pruning(path, "2:4")
    assert reasons(plan) == {"lm_head.weight": "tied to an embedding, 'model.embed_tokens.weight'", "fc.weight": ""}
    assert list(plan_check(path, "2:4").axes) == ["fc.weight"]
    prune_checkpoint(plan, tmp_path / "new.safetensors")
    found, after = read_safetensors(tmp_path / "new.safetensors")
    assert found.items() >= metadata.items()
    assert same_bits(after["lm_head.weight"], tensors["lm_head.weight"])
    included = plan_pruning(path, "2:4", include="embed_tokens")
    assert list(included.axes) == ["lm_head.weight"]
    assert list(plan_pruning(path, "2:4", exclude="embed_tokens").axes) == ["fc.weight"]
    assert plan_pruning(path, "2:4", include="lm", axes={"embed": (1, 0)}).axes == {"lm_head.weight": (1, 0)}
    prune_checkpoint(included, tmp_path / "new.safetensors")
    [checked] = check_checkpoint(tmp_path / "new.safetensors", "2:4", include="embed_tokens")
    assert checked.name == "lm_head.weight"
    assert checked.report.ok


@pytest.mark.torch
def test_what_save_model_of_safetensors_writes(tmp_path):
    torch = pytest.importorskip("torch")
    save_model = pytest.importorskip("safetensors.torch").save_model
    model = torch.nn.ModuleDict({"embed_tokens": torch.nn.Embedding(16, 8), "a_head": torch.nn.Linear(8, 16)})
    model["fc"] = torch.nn.Linear(8, 8)
    model["a_head"].weight = model["embed_tokens"].weight
    save_model(model, tmp_path / "m.safetensors")
    plan = plan_pruning(tmp_path / "m.safetensors", "2:4")
    assert reasons(plan)["a_head.weight"] == "tied to an embedding, 'embed_tokens.weight'"
    assert list(plan.axes) == ["fc.weight"]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_twins_are_skipped_together_or_pruned_alike(tmp_path, suffix):
    path, output = tmp_path / f"m{suffix}", tmp_path / f"new{suffix}"
    begins_alike = random(16, 8)
    begins_alike[-1, -1] += 1
    tensors = {
        "embed.weight": random(16, 8),
        "lm_head.weight": random(16, 8),
        "near.weight": begins_alike,
        "a.weight": random(8, 8, seed=2),
        "b.weight": random(8, 8, seed=2),
    }
    np.savez(path, **tensors) if suffix == ".npz" else write_safetensors(path, tensors)
    plan = plan_pruning(path, "2:4")
    assert reasons(plan) == {
        "embed.weight": "embedding by its name",
        "lm_head.weight": "tied to an embedding: the same entries as 'embed.weight'",
        "near.weight": "",
        "a.weight": "",
        "b.weight": "",
    }
    assert list(plan_check(path, "2:4").axes) == ["near.weight", "a.weight", "b.weight"]
    assert list(plan_check(path, "2:4", include="head").axes) == ["lm_head.weight"]
    prune_checkpoint(plan, output)
    after = dict(np.load(output)) if suffix == ".npz" else read_safetensors(output)[1]
    assert same_bits(after["a.weight"], after["b.weight"])
    assert np.count_nonzero(after["a.weight"]) == 32
    both = plan_pruning(path, "2:4", include="embed|head")
    assert list(both.axes) == ["embed.weight", "lm_head.weight"]
    other = plan_pruning(path, "2:4", exclude="^a")
    assert reasons(other)["b.weight"] == "the same entries as 'a.weight', which is skipped: excluded"
    turned = plan_pruning(path, "2:4", axes={"^a": (1, 0)})
    assert reasons(turned)["b.weight"] == "the same entries as 'a.weight', whose matrix is read along other axes"
    assert list(turned.axes) == ["near.weight"]


def test_what_is_constant_is_tied_to_nothing(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"embed.weight": np.ones((8, 8)), "fc.weight": np.ones((8, 8))})
    assert list(plan_pruning(tmp_path / "m.safetensors", "2:4").axes) == ["fc.weight"]


def test_zero_and_minus_zero_are_not_the_same_bits(tmp_path):
    first, second = np.eye(8), np.eye(8)
    second[1, 0] = -0.0
    write_safetensors(tmp_path / "m.safetensors", {"embed.weight": first, "fc.weight": second})
    assert list(plan_pruning(tmp_path / "m.safetensors", "2:4").axes) == ["fc.weight"]
