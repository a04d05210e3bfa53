"""A model folder: the weights are pruned, every other file is copied, and a hub's cache is only read."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from checkpoint_files import files_in, read_safetensors, write_safetensors, write_sharded
from naive import offender

import transmask as tm
from transmask.checkpoint import check_checkpoint, open_checkpoint, plan_pruning, prune_checkpoint

LAYER = "model.layers.0.mlp.up_proj.weight"


def transmask(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "transmask", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


def tensors():
    rng = np.random.default_rng(0)
    return {
        LAYER: rng.standard_normal((16, 8), np.float32),
        "model.embed_tokens.weight": rng.standard_normal((16, 8), np.float32),
        "lm_head.weight": rng.standard_normal((16, 8), np.float32),
    }


def write_model(folder, kind):
    """A folder as transformers writes it, with a subfolder, a hidden file and two hidden folders."""
    folder.mkdir()
    if kind == "file":
        write_safetensors(folder / "model.safetensors", tensors(), {"format": "pt"})
    else:
        names = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
        parts = [dict([item]) for item in list(tensors().items())[:1]] + [dict(list(tensors().items())[1:])]
        write_sharded(folder, dict(zip(names, parts, strict=True)), {"format": "pt"})
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_bytes(b"{}")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    for name in (".git", ".cache"):
        (folder / name).mkdir()
        (folder / name / "state").write_text("of the old files")


def weights_in(folder):
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in read_safetensors(file)[1].items()}


@pytest.fixture(params=["file", "shards"])
def model(request, tmp_path):
    write_model(tmp_path / "model", request.param)
    return tmp_path / "model"


@pytest.mark.surface
@pytest.mark.parametrize("is_cache", [False, True])
def test_a_folder_is_pruned_and_everything_else_copied(model, tmp_path, is_cache):
    if is_cache:  # as a hub's cache is laid out: links into a folder of blobs
        (tmp_path / "blobs").mkdir()
        for file in [file for file in model.rglob("*") if file.is_file()]:
            blob = tmp_path / "blobs" / hashlib.sha256(str(file).encode()).hexdigest()
            file.rename(blob)
            file.symlink_to(os.path.relpath(blob, file.parent))
    before = files_in(tmp_path)
    done = transmask("prune", model, "-o", "new", "-p", "2:4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    new = tmp_path / "new"
    after = files_in(new)
    assert {name: data for name, data in files_in(tmp_path).items() if not name.startswith("new/")} == before
    expected = {str(file.relative_to(model)) for file in model.rglob("*") if file.is_file()}
    assert set(after) == expected - {".git/state", ".cache/state"}
    assert not any(path.is_symlink() for path in new.rglob("*"))
    for name, data in after.items():
        assert name.endswith(".safetensors") or data == (model / name).read_bytes(), name
    pruned, old = weights_in(new), tensors()
    assert offender(pruned[LAYER] != 0, 2, 4, "exactly") is None
    np.testing.assert_array_equal(pruned[LAYER] != 0, tm.transposable_mask(old[LAYER], "2:4"))
    np.testing.assert_array_equal(pruned["model.embed_tokens.weight"], old["model.embed_tokens.weight"])
    assert [row["name"] for row in json.loads(done.stdout)["pruned"]] == [LAYER, "lm_head.weight"]
    for file in new.glob("*.safetensors"):
        metadata = read_safetensors(file)[0]
        assert (metadata["format"], json.loads(metadata["transmask"])["pattern"]) == ("pt", "2:4")
    assert transmask("check", "new", cwd=tmp_path).returncode == 0
    assert transmask("check", model, "-p", "2:4", cwd=tmp_path).returncode == 1


def test_weights_beside_are_copied_with_a_warning(model, tmp_path):
    write_safetensors(model / "consolidated.safetensors", tensors())
    plan = plan_pruning(model, "2:4")
    with pytest.warns(RuntimeWarning, match=r"'consolidated.safetensors' was copied as it is: if it holds weights"):
        prune_checkpoint(plan, tmp_path / "new")
    assert (tmp_path / "new/consolidated.safetensors").read_bytes() == (model / "consolidated.safetensors").read_bytes()
    assert all(found.report.ok for found in check_checkpoint(tmp_path / "new"))


@pytest.mark.parametrize("name", ["config.json", "model.txt", "tokenizer"])
def test_no_other_file_of_the_folder_is_replaced(model, tmp_path, name):
    (model / "other.safetensors").write_text("kept")
    plan = plan_pruning(model, "2:4")
    with pytest.raises(tm.InvalidArgumentError, match="`masks` must not be the input"):
        prune_checkpoint(plan, tmp_path / "new", masks=model / "other.safetensors")
    (tmp_path / name).mkdir()
    (tmp_path / name / "x").touch()
    with pytest.raises(tm.InvalidArgumentError, match=r"must be a .*folder for a model folder, got"):
        prune_checkpoint(plan, tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == sorted(["model", name])


def test_two_checkpoints_of_which_loaders_take_one(tmp_path):
    write_model(tmp_path / "model", "shards")
    write_safetensors(tmp_path / "model" / "model.safetensors", tensors())
    with pytest.raises(tm.CheckpointError, match=r"got 'model.safetensors' and 'model.safetensors.index.json', of"):
        open_checkpoint(tmp_path / "model")


def test_a_variant_is_left_to_the_loader_that_asks_for_it(model):
    write_safetensors(model / "model.fp16.safetensors", {"other": np.ones((4, 4))})
    assert [tensor.name for tensor in open_checkpoint(model).tensors] == list(tensors())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: (folder / "1_Pooling" / "up").symlink_to(folder),
            "must not be a link to a folder that it is in",
        ),
        (lambda folder: os.mkfifo(folder / "pipe"), "pipe' must be a file or a folder to be copied"),
        (lambda folder: (folder / "gone.json").symlink_to("nowhere"), "No such file"),
    ],
)
def test_what_cannot_be_copied_is_told_before_anything_is_written(model, tmp_path, spoil, message):
    spoil(model)
    with pytest.raises((tm.CheckpointError, OSError), match=message):
        plan_pruning(model, "2:4")
    assert os.listdir(tmp_path) == ["model"]


def test_a_copy_that_fails_leaves_nothing(model, tmp_path):
    plan = plan_pruning(model, "2:4")
    (model / "config.json").unlink()
    with pytest.raises(OSError, match=r"config\.json"):
        prune_checkpoint(plan, tmp_path / "new")
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", ["1GB", "30KB"])
def test_transformers_loads_the_new_folder(tmp_path, size):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "m", max_shard_size=size)
    assert (len(list((tmp_path / "m").glob("*.safetensors"))) > 1) is (size == "30KB")
    plan = plan_pruning(tmp_path / "m", "2:4")
    prune_checkpoint(plan, tmp_path / "new")
    loader = transformers.AutoModelForCausalLM
    model, report = loader.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(report.values()), report
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    assert len(plan.axes) == 15
    for name in plan.axes:
        assert offender(weights[name] != 0, 2, 4, "exactly") is None, name
    transformers.GenerationConfig.from_pretrained(tmp_path / "new")  # a file that is only copied
