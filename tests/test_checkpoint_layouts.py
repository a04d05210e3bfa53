"""Checkpoints as libraries lay them out, through prune, check and load, with every row and column group counted here.

The names and shapes are those of the libraries named beside them.
"""

import json

import numpy as np
import pytest
from checkpoint_files import files_in, read_safetensors, write_safetensors
from safetensors.numpy import load_file

import transmask as tm
from transmask.checkpoint import (
    check_checkpoint,
    open_checkpoint,
    plan_check,
    plan_pruning,
    prune_checkpoint,
    read_masks,
)
from transmask.checkpoint.layouts import CONVENTIONS
from transmask.cli import main

CASES = [
    # name, shape, the metadata's format, the axes of outputs and inputs
    ("model.layers.0.self_attn.q_proj.weight", (8, 12), "pt", (0, 1)),  # torch.nn.Linear
    ("features.0.weight", (8, 12, 3, 3), None, (0, 1)),  # torch.nn.Conv2d
    ("encoder.conv.weight", (16, 8, 2, 4, 3), "pt", (0, 1)),  # torch.nn.Conv3d
    ("wav2vec2.feature_extractor.conv_layers.1.conv.weight", (16, 8, 3), "pt", (0, 1)),  # torch.nn.Conv1d
    ("conv1.weight", (16, 8, 3), None, (0, 1)),
    ("ups.0.weight", (16, 8, 7), "pt", (0, 1)),
    ("mlp.w_2.weight", (8, 16, 1), None, (0, 1)),  # FastSpeech: a Conv1d of kernel 1
    ("h.0.attn.c_attn.weight", (8, 24), "pt", (1, 0)),  # transformers.pytorch_utils.Conv1D
    ("h.0.mlp.c_proj.weight", (32, 8), "pt", (1, 0)),
    ("transformer.h.0.attn.c_attn.weight", (24, 8), "pt", (0, 1)),  # nanoGPT's Linear of the same name
    ("model.layers.0.block_sparse_moe.input_linear.weight", (8, 64, 32), "pt", (1, 2)),  # Granite
    ("model.layers.0.block_sparse_moe.output_linear.weight", (32, 40, 8), "pt", (1, 2)),
    ("model.layers.0.mlp.switch_mlp.gate_proj.weight", (4, 16, 8), "mlx", (1, 2)),  # mlx_lm
    ("layers.0.feed_forward.w1", (4, 16, 8), None, (1, 2)),  # gpt-fast
    ("moe.fc1.weight", (4, 40, 64), None, (1, 2)),
    ("model.layers.0.mlp.experts.gate_up_proj", (3, 16, 8), "pt", (1, 2)),  # Qwen, Mixtral
    ("layers.experts.w", (2, 3, 8, 16), "pt", (2, 3)),
    ("blocks.0.attn.W_Q", (4, 16, 8), "pt", (2, 1)),  # TransformerLens
    ("blocks.0.attn.W_O", (4, 8, 16), "pt", (2, 1)),
    ("transformer.layer.0.rel_attn.q", (16, 2, 8), "pt", (2, 0)),  # XLNet
    ("transformer/layer_0/attn/kv_einsum/w", (2, 3, 16, 8), None, (3, 2)),  # Gemma
    ("params/Dense_0/kernel", (8, 12), None, (1, 0)),  # flax.linen.Dense
    ("params/Conv_0/kernel", (3, 3, 8, 12), None, (3, 2)),  # flax.linen.Conv
    ("params/conv/kernel", (5, 8, 12), None, (2, 1)),
    ("params/downsample_layers_0/kernel", (2, 2, 48, 64), None, (3, 2)),
    ("params/MultiHeadDotProductAttention_0/query/kernel", (16, 2, 8), None, (2, 0)),
    ("params/MultiHeadDotProductAttention_0/out/kernel", (2, 8, 16), None, (2, 1)),
    ("layers.0.weight", (16, 3, 3, 8), "mlx", (0, 3)),  # mlx.nn.Conv2d
    ("layers.0.weight", (16, 3, 3, 8), None, (0, 3)),  # by its shape
    ("layers.0.weight", (16, 3, 3, 64), None, (0, 3)),
    ("conv1.weight", (16, 3, 8), "mlx", (0, 2)),  # mlx.nn.Conv1d
]


def test_every_row_of_the_table_has_a_case():
    cases = [case[:3] for case in CASES] + UNCLEAR
    found = {
        next((place for place, row in enumerate(CONVENTIONS) if row.covers(name, shape, form or "")), None)
        for name, shape, form in cases
    }
    assert found >= set(range(len(CONVENTIONS)))


def groups_kept(array, axes, m):
    """Count, over all matrices, what each group of M along rows and along columns keeps; the last may be shorter."""
    matrices = np.moveaxis(array != 0, axes, (-2, -1)).reshape(-1, *(array.shape[axis] for axis in axes))
    counts = []
    for matrix in matrices:
        for lines in (matrix, matrix.T):
            for line in lines:
                counts += [int(line[start : start + m].sum()) for start in range(0, len(line) // m * m, m)]
    return counts


@pytest.mark.parametrize(("name", "shape", "form", "axes"), CASES)
def test_a_layout_is_pruned_along_its_matrix(tmp_path, name, shape, form, axes):
    weights = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    path, output = tmp_path / "m.safetensors", tmp_path / "new.safetensors"
    write_safetensors(path, {name: weights}, form and {"format": form})
    prune_checkpoint(plan_pruning(path, "2:4"), output, masks=tmp_path / "masks.safetensors")
    pruned = load_file(output)[name]
    if all(shape[axis] % 4 == 0 for axis in axes):
        assert set(groups_kept(pruned, axes, 4)) == {2}
    expected = tm.transposable_mask(np.moveaxis(weights, axes, (-2, -1)), "2:4")
    kept = np.abs(np.moveaxis(weights, axes, (-2, -1))[expected]).sum()
    assert np.abs(pruned).sum() == pytest.approx(kept, rel=1e-6)
    assert np.array_equal(pruned[pruned != 0], weights[pruned != 0])
    for file in (output, tmp_path / "masks.safetensors"):
        [found] = check_checkpoint(file, "2:4", constraint="exactly")
        assert found.report.ok
        assert found.axes == axes
    write_safetensors(path, {name: pruned}, form and {"format": form})  # without the record: a file of somebody else
    [found] = check_checkpoint(path, "2:4", constraint="exactly")
    assert found.report.ok
    assert found.axes == axes


def test_experts_masked_across_experts_do_not_pass(tmp_path):
    weights = np.random.default_rng(0).standard_normal((8, 64, 32)).astype(np.float32)
    weights[~tm.transposable_mask(weights, "2:4", axes=(0, 1))] = 0
    write_safetensors(tmp_path / "m.safetensors", {"moe.input_linear.weight": weights})
    [found] = check_checkpoint(tmp_path / "m.safetensors", "2:4")
    rows = sum(
        int((line[start : start + 4] != 0).sum()) > 2 for line in weights.reshape(-1, 32) for start in range(0, 32, 4)
    )
    assert found.report.row_violations == rows > 1000


UNCLEAR = [
    ("rotations", (8, 64, 64), None),
    ("bilinear.weight", (32, 64, 16), "pt"),  # torch.nn.Bilinear is (out, in, in)
    ("layers.mlp.fc1.weight", (16, 8, 4), None),  # a Conv1d called like a linear layer, or stacked linear layers
    ("conv.weight", (64, 8, 32), None),  # torch of kernel 32, or MLX of kernel 8
    ("layers.weight", (64, 8, 32), "mlx"),
    ("layers.weight", (4, 8, 64, 32), "pt"),
    ("weight", (4, 4, 4, 4), None),
    ("params/layers/query/kernel", (8, 16, 4, 8), None),
    ("params/layers/kernel", (8, 16, 32), None),
    ("six", (4, 4, 4, 4, 4, 4), None),
]


@pytest.mark.parametrize(("name", "shape", "form"), UNCLEAR)
def test_what_cannot_be_told_is_skipped_until_somebody_says_it(tmp_path, name, shape, form):
    path, output = tmp_path / "m.safetensors", tmp_path / "new.safetensors"
    weights = np.random.default_rng(0).standard_normal(shape)
    write_safetensors(path, {name: weights, "fc.weight": np.eye(8)}, form and {"format": form})
    skipped, taken = plan_pruning(path, "2:4").selections
    assert (skipped.axes, taken.axes) == (None, (0, 1))
    assert skipped.reason.startswith("which axes form its matrix is unclear: --axes 'NAME_RE=")
    plan = plan_pruning(path, "2:4", axes={f"^{name}$": (-2, -1)})
    n = len(shape)
    assert plan.axes == {name: (n - 2, n - 1), "fc.weight": (0, 1)}
    prune_checkpoint(plan, output)
    assert set(groups_kept(load_file(output)[name], (n - 2, n - 1), 4)) == {2}
    assert open_checkpoint(output).record.axes[name] == (n - 2, n - 1)
    assert {found.name: found.report.ok for found in check_checkpoint(output, "2:4")} == {name: True, "fc.weight": True}


def test_check_takes_axes_over_those_of_the_record(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"experts.w": np.random.default_rng(0).standard_normal((4, 8, 8))})
    prune_checkpoint(
        plan_pruning(tmp_path / "m.safetensors", "2:4"),
        tmp_path / "new.safetensors",
        masks=tmp_path / "masks.safetensors",
    )
    for file in ("new.safetensors", "masks.safetensors"):
        assert plan_check(tmp_path / file, "2:4").axes == {"experts.w": (1, 2)}
        [found] = check_checkpoint(tmp_path / file, "2:4", axes={"w$": (0, 1)})
        assert found.axes == (0, 1)
        assert not found.report.ok
    assert read_masks(tmp_path / "masks.safetensors").axes == {"experts.w": (1, 2)}


WRONG_AXES = [
    ({"fc": (0, 2)}, "`axes` must name two different axes of 'fc.weight', whose shape is (8, 8), got 0,2 for 'fc'."),
    ({"fc": (0, -2)}, "`axes` must name two different axes of 'fc.weight', whose shape is (8, 8), got 0,-2 for 'fc'."),
    (
        {"fc": (0, 0)},
        "`axes` must name two different axes, got (0, 0) for an array with 64 axes. It was given for 'fc'.",
    ),
    ({"fc": 3}, "`axes` must be a pair of integers, got 3. It was given for 'fc'."),
    (
        {"f": (0, 1), "c": (0, 1)},
        "`axes` must have one rule for a tensor, got 'f' and 'c', which both match 'fc.weight'. "
        "Make one of them narrower.",
    ),
    (
        {"zz": (0, 1)},
        "`axes` must match a tensor that can be pruned, got 'zz', which matches none. "
        "`transmask prune --dry-run` lists them.",
    ),
    ({"(": (0, 1)}, "`axes` must be a regular expression, got '(': missing ), unterminated subpattern at position 0. "),
    ([1], "`axes` must be a mapping from regular expressions to two axes, got list. Such as {'experts': (1, 2)}."),
]


@pytest.mark.parametrize(("axes", "message"), WRONG_AXES)
def test_wrong_axes_get_one_line(tmp_path, axes, message):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, {"fc.weight": np.eye(8)})
    for function in (plan_pruning, plan_check):
        with pytest.raises(tm.TransmaskError) as caught:
            function(path, "2:4", axes=axes)
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["fc", "fc=", "=0,1", "fc=0", "fc=0,1,2", "fc=a,b", "fc=0;1", "fc=99999999999,1"])
def test_the_command_line_says_how_axes_are_written(tmp_path, capsys, option):
    write_safetensors(tmp_path / "m.safetensors", {"fc.weight": np.eye(8)})
    before = files_in(tmp_path)
    arguments = [str(tmp_path / "m.safetensors"), "-p", "2:4", "--axes", option]
    for command in (["prune", *arguments, "-o", str(tmp_path / "new.safetensors")], ["check", *arguments]):
        assert main(command) == 2
        assert "`--axes` must be a regular expression, = and two axes" in capsys.readouterr().err
    assert files_in(tmp_path) == before


def test_the_command_line_prunes_and_checks_along_axes(tmp_path, capsys):
    path, output = tmp_path / "m.safetensors", tmp_path / "new.safetensors"
    write_safetensors(path, {"a=b": np.random.default_rng(0).standard_normal((8, 3, 8, 4)), "fc": np.eye(8)})
    rules = ["--axes", "a=b=0,2", "--axes", "fc = 1,0".replace(" ", "")]
    assert main(["prune", str(path), "-p", "2:4", "-o", str(output), *rules]) == 0
    assert main(["check", str(output), "-p", "2:4"]) == 0
    assert set(groups_kept(read_safetensors(output)[1]["a=b"], (0, 2), 4)) == {2}
    assert open_checkpoint(output).record.axes == {"a=b": (0, 2), "fc": (1, 0)}
    capsys.readouterr()
    assert main(["compare", str(path), "-p", "2:4", "--solver", "greedy", "--json", *rules]) == 0
    assert json.loads(capsys.readouterr().out)["blocks_in_file"] == 3 * 4 * 4 + 4
    assert main(["check", str(output), "-p", "2:4", "--axes", "a=0,3"]) == 1
    assert main(["prune", str(path), "-p", "2:4", "-o", str(output), "--axes", "a=0,1", "--axes", "a=0,2"]) == 2
    assert "`--axes` must have one rule for a tensor, got two for 'a'." in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["GraniteMoe", "GPT2"])
def test_models_of_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    if kind == "GPT2":
        config = transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=4)
        model, axes = transformers.GPT2LMHeadModel(config), {"c_attn": (1, 0), "mlp": (1, 0), "attn.c_proj": (0, 1)}
    else:
        sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        config = transformers.GraniteMoeConfig(**sizes, num_attention_heads=4, num_key_value_heads=4)
        model, axes = transformers.GraniteMoeForCausalLM(config), {"put_linear": (1, 2), "": (0, 1)}
    model.save_pretrained(tmp_path / "old")
    plan = plan_pruning(tmp_path / "old" / "model.safetensors", "2:4")
    for name, pair in plan.axes.items():
        assert pair == next(expected for part, expected in axes.items() if part in name)
    assert not [name for name in plan.axes if "router" in name or "embed" in name or "wte" in name]
    model.config.save_pretrained(tmp_path / "new")
    prune_checkpoint(plan, tmp_path / "new" / "model.safetensors")
    type(model).from_pretrained(tmp_path / "new").save_pretrained(tmp_path / "again")
    loaded = load_file(tmp_path / "again" / "model.safetensors")  # under the names of the file: a model has others
    for name, pair in plan.axes.items():
        assert set(groups_kept(loaded[name], pair, 4)) == {2}
    assert all(found.report.ok for found in check_checkpoint(tmp_path / "new" / "model.safetensors", "2:4"))
