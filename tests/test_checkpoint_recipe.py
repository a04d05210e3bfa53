"""A pattern for each tensor: each is pruned to its own, the file says which, and `check` reads it back."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from checkpoint_files import read_safetensors, write_safetensors, write_sharded
from naive import offender

import transmask as tm
from transmask.checkpoint import Recipe, check_checkpoint, plan_pruning, prune_checkpoint, read_masks, sample_blocks

NAMES = ("attn.q.weight", "attn.k.weight", "mlp.up.weight", "mlp.down.weight")
OPTIONS = ["-p", "2:4", "-p", r"mlp\..*=4:8", "-p", r"attn\.k=1:2"]
EXPECTED = {"attn.q.weight": (2, 4), "attn.k.weight": (1, 2), "mlp.up.weight": (4, 8), "mlp.down.weight": (4, 8)}
RECIPE = """pattern = "2:4"

[patterns]
'mlp\\..*' = "4:8"
'attn\\.k' = "1:2"
"""


def transmask(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "transmask", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture(params=["file", "shards"])
def model(request, tmp_path):
    """A checkpoint, its outputs' suffix, and a function that reads the tensors of an output."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal((16, 24), np.float32) for name in NAMES} | {"mlp.up.bias": np.ones(16)}
    if request.param == "file":
        write_safetensors(tmp_path / "m.safetensors", tensors)
        return "m.safetensors", ".safetensors", lambda path: read_safetensors(path)[1]
    shards = [{name: tensors[name] for name in list(tensors)[i::2]} for i in range(2)]
    write_sharded(tmp_path / "m", {f"{i}.safetensors": shard for i, shard in enumerate(shards)})
    return (
        "m",
        "",
        lambda path: {k: v for i in range(2) for k, v in read_safetensors(path / f"{i}.safetensors")[1].items()},
    )


def holds(array, n, m):
    return offender(array != 0, n, m, "exactly") is None and offender(array.T != 0, n, m, "exactly") is None


@pytest.mark.surface
@pytest.mark.parametrize("given", ["options", "file"])
def test_each_tensor_is_pruned_and_checked_by_its_own_pattern(model, tmp_path, given):
    path, suffix, tensors_of = model
    (tmp_path / "recipe.toml").write_text(RECIPE)
    patterns = OPTIONS if given == "options" else ["--recipe", "recipe.toml"]
    arguments = ["-o", f"new{suffix}", "--masks", "masks.safetensors", "--json", *patterns]
    done = transmask("prune", path, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    texts = {name: f"{n}:{m}" for name, (n, m) in EXPECTED.items()}
    assert report["pattern"] is None
    assert {row["name"]: row["pattern"] for row in report["pruned"]} == texts
    before, after = tensors_of(tmp_path / path), tensors_of(tmp_path / f"new{suffix}")
    masks = read_masks(tmp_path / "masks.safetensors")
    for name, (n, m) in EXPECTED.items():
        assert holds(after[name], n, m), name
        np.testing.assert_array_equal(after[name] != 0, tm.transposable_mask(before[name], (n, m)))
        np.testing.assert_array_equal(after[name] != 0, masks[name])
    np.testing.assert_array_equal(after["mlp.up.bias"], before["mlp.up.bias"])
    for file in (f"new{suffix}", "masks.safetensors"):
        done = transmask("check", file, "--json", cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (0, 4), done.stderr
        assert {row["name"]: row["pattern"] for row in json.loads(done.stdout)["tensors"]} == texts
    found = {c.name: c.report.ok for c in check_checkpoint(tmp_path / f"new{suffix}", "2:4", constraint="exactly")}
    assert not found["mlp.up.weight"], "an explicit pattern is meant for every tensor"


def test_a_second_run_may_add_another_pattern(model, tmp_path):
    path, suffix, _ = model
    first, second = tmp_path / f"1{suffix}", tmp_path / f"2{suffix}"
    prune_checkpoint(plan_pruning(tmp_path / path, "2:4", include="attn"), first)
    prune_checkpoint(plan_pruning(first, "4:8", include="mlp"), second)
    found = list(check_checkpoint(second, constraint="exactly"))
    assert all(one.report.ok for one in found)
    assert {one.name: str(one.pattern) for one in found} == {
        name: "2:4" if name.startswith("attn") else "4:8" for name in NAMES
    }
    shards = [tmp_path / "2.safetensors"] if suffix else sorted(second.glob("*.safetensors"))
    assert all(json.loads(read_safetensors(shard)[0]["transmask"])["version"] in (1, 2) for shard in shards)


def test_one_pattern_is_noted_as_before(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"w": np.eye(8), "v": np.eye(8)})
    prune_checkpoint(plan_pruning(tmp_path / "m.safetensors", Recipe("2:4", {"v": "2:4"})), tmp_path / "n.safetensors")
    noted = json.loads(read_safetensors(tmp_path / "n.safetensors")[0]["transmask"])
    assert (noted["version"], noted["pattern"], "patterns" in noted) == (1, "2:4", False)


def test_without_a_default_the_other_tensors_stay(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"mlp.weight": np.ones((8, 8)), "q.weight": np.ones((8, 8))})
    plan = plan_pruning(tmp_path / "m.safetensors", Recipe(rules={"mlp": "2:4"}))
    assert [(s.tensor.name, s.reason) for s in plan.selections if s.axes is None] == [
        ("q.weight", "no pattern is given for it")
    ]
    prune_checkpoint(plan, tmp_path / "n.safetensors")
    assert [one.name for one in check_checkpoint(tmp_path / "n.safetensors", Recipe(rules={"mlp": "2:4"}))] == [
        "mlp.weight"
    ]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"mlp": "4:8", r"up\.": "2:4"},
            r"must have one rule for each tensor, got 'mlp' = 4:8 and 'up\\.' = 2:4 for 'mlp.up.weight'",
        ),
        ({"mpl": "4:8"}, "must name a tensor, got 'mpl' = 4:8, which names none that can be pruned. No name matches."),
        ({"bias": "4:8"}, "Skipped: mlp.up.bias: 1-d, not a matrix."),
        ({"mlp": "40:80"}, "Skipped: mlp.up.weight: 16 x 24 is smaller than M = 80."),
    ],
)
def test_a_rule_that_does_nothing_or_too_much_is_refused(tmp_path, rules, message):
    tensors = {name: np.ones((16, 24)) for name in NAMES} | {"mlp.up.bias": np.ones(16)}
    write_safetensors(tmp_path / "m.safetensors", tensors)
    with pytest.raises(tm.InvalidArgumentError) as caught:
        plan_pruning(tmp_path / "m.safetensors", Recipe("2:4", rules))
    assert message in str(caught.value)


def test_a_rule_for_what_the_caller_left_out_is_no_mistake(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {name: np.ones((16, 24)) for name in NAMES})
    plan = plan_pruning(tmp_path / "m.safetensors", Recipe("2:4", {"mlp": "4:8"}), exclude="mlp")
    assert list(plan.axes) == ["attn.q.weight", "attn.k.weight"]
    with pytest.raises(tm.InvalidArgumentError, match="`plan` must have one pattern, got several"):
        sample_blocks(plan_pruning(tmp_path / "m.safetensors", Recipe("2:4", {"mlp": "4:8"})), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pattern = 2:4", "`recipe` must be TOML, got "),
        ("pattern = '2:4'\nlayers = 3", "must have the keys 'pattern' and 'patterns' only, got 'layers' in "),
        ("patterns = '2:4'", "must have the keys 'pattern' and 'patterns' only, got 'patterns' that is no table"),
        ("[patterns]\nmlp = 24", "`pattern` must be a Pattern, a string such as '2:4'"),
        ("[patterns]\n'(' = '2:4'", "`pattern` must have regular expressions as rules, got '('"),
        ("[patterns]\nmlp = '2:4'\nmlp = '4:8'", "`recipe` must be TOML, got "),
        ("", "`pattern` must be given, got no pattern and no rule."),
        ("pattern = '4:2'", "did you mean '2:4'?"),
        (b"\xff\xfe", "`recipe` must be TOML, got "),
        ("x = " + "[" * 100_000, "`recipe` must be TOML, got "),
    ],
)
def test_a_recipe_that_is_none(tmp_path, text, message):
    (tmp_path / "r.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((tm.InvalidArgumentError, tm.InvalidTypeError), match=re.escape(message)) as caught:
        Recipe.read(tmp_path / "r.toml")
    assert "r.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["2:4", "4:8"], "`pattern` must be given once for all tensors, got '2:4' and '4:8'."),
        (["a=2:4", "a=4:8"], "`pattern` must name 'a' once, got it twice."),
        (["a="], "`pattern` must read 'N:M'"),
        ([], "`pattern` must be given"),
    ],
)
def test_patterns_that_cannot_be_meant(texts, message):
    with pytest.raises(tm.InvalidArgumentError, match=re.escape(message)):
        Recipe.parse(texts)


def test_check_needs_a_pattern_where_the_file_says_none(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"w": np.ones((8, 8))})
    with pytest.raises(tm.InvalidArgumentError, match=r"does not say what it was pruned to\. For example '2:4'\."):
        next(check_checkpoint(tmp_path / "m.safetensors"))


def test_twins_with_two_patterns_are_skipped(tmp_path):
    weights = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    write_safetensors(tmp_path / "m.safetensors", {"a": weights, "b": weights.copy(), "c": weights + 1})
    plan = plan_pruning(tmp_path / "m.safetensors", Recipe("2:4", {"b": "4:8"}))
    assert plan.patterns == {"c": tm.Pattern(2, 4)}
    reasons = {chosen.tensor.name: chosen.reason for chosen in plan.selections}
    assert reasons["a"] == "the same entries as 'b', which is pruned to 4:8"
    assert reasons["b"] == "the same entries as 'a', which is pruned to 2:4"
    alike = plan_pruning(tmp_path / "m.safetensors", Recipe("2:4", {"c": "4:8"}))
    assert set(alike.patterns) == {"a", "b", "c"}
