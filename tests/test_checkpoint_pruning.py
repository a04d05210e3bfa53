"""A pruned checkpoint holds the optimal masks and nothing else has changed; checking it says so."""

import json
from functools import partial

import numpy as np
import pytest
from checkpoint_files import CODES, FLOATING, files_in, read_safetensors, same_bits, write_safetensors, write_sharded
from naive import offender
from safetensors.numpy import load_file

import transmask as tm
from transmask.checkpoint import check_checkpoint, open_checkpoint, plan_pruning, prune_checkpoint, read_masks
from transmask.solvers.greedy import Greedy


def model(codes=("F32",)):
    """A small network in which every kind of tensor occurs; the first is the last by name."""
    rng = np.random.default_rng(0)

    def random(*shape, code=codes[0]):
        return rng.standard_normal(shape).astype(CODES[code])

    tensors = {
        "z.conv.weight": random(8, 4, 3, 3),
        "embed.weight": random(16, 8),
        "norm.weight": random(8),
        "odd.weight": random(10, 7),
        "moe.experts.w": random(3, 8, 4),
        "step": np.array(7),
    }
    return tensors | {f"{code}.weight": random(8, 8, code=code) for code in codes}


AXES = {"z.conv.weight": (0, 1), "odd.weight": (0, 1), "moe.experts.w": (1, 2)}


def assert_pruned(before, after, pattern, constraint):
    """Every matrix holds the optimal mask, and everything else is as it was."""
    assert list(after) == list(before)
    for name, old in before.items():
        axes = AXES.get(name, (0, 1))
        if name.startswith(("embed", "norm", "step")):
            assert same_bits(after[name], old), name
            continue
        mask = tm.transposable_mask(old, pattern, constraint=constraint, axes=axes)
        expected = old.copy()
        expected[~mask] = 0
        assert same_bits(after[name], expected), name
        assert 0 < np.count_nonzero(expected) < old.size


@pytest.mark.parametrize("constraint", ["exactly", "at_most"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:2"])
def test_every_matrix_gets_its_optimal_mask(tmp_path, pattern, constraint):
    before = model(FLOATING)
    write_safetensors(tmp_path / "m.safetensors", before, {"format": "pt"})
    plan = plan_pruning(tmp_path / "m.safetensors", pattern, constraint=constraint)
    outcomes = prune_checkpoint(plan, tmp_path / "new.safetensors")
    metadata, after = read_safetensors(tmp_path / "new.safetensors")
    assert_pruned(before, after, pattern, constraint)
    assert [outcome.tensor.name for outcome in outcomes] == list(plan.axes)
    for outcome in outcomes:
        name = outcome.tensor.name
        result = tm.solve(before[name], pattern, constraint=constraint, axes=AXES.get(name, (0, 1)))
        assert (outcome.kept, outcome.total, outcome.n_blocks) == (result.kept, result.total, result.n_blocks)
        assert outcome.gap <= 1e-12
    assert metadata["format"] == "pt"
    assert json.loads(metadata["transmask"]) == {
        "version": 1,
        "pattern": pattern,
        "constraint": constraint,
        "solver": tm.choose_solver(pattern, constraint),
        "axes": {name: list(axes) for name, axes in plan.axes.items()},
    }


def test_a_file_without_metadata_stays_one_that_transformers_loads(tmp_path):
    for name, metadata, expected in (
        ("none", None, "pt"),
        ("mlx", {"format": "mlx"}, "mlx"),
        ("own", {"a": "b"}, None),
    ):
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": np.eye(4)}, metadata)
        prune_checkpoint(plan_pruning(tmp_path / f"{name}.safetensors", "2:4"), tmp_path / "new.safetensors")
        found, _ = read_safetensors(tmp_path / "new.safetensors")
        assert found.pop("transmask")
        assert found.get("format") == expected
        assert found.items() >= (metadata or {}).items()


def test_what_a_solver_says_comes_with_the_name_of_the_tensor(tmp_path):
    class Stops(Greedy):
        def solve_blocks(self, *arguments, **options):
            raise tm.SolverError("it stopped")

    write_safetensors(tmp_path / "m.safetensors", {"layer.w": np.eye(4)})
    plan = plan_pruning(tmp_path / "m.safetensors", "2:4", solver=Stops())
    with pytest.raises(tm.SolverError, match=r"tensor 'layer\.w': it stopped"):
        prune_checkpoint(plan, tmp_path / "new.safetensors")
    assert list(files_in(tmp_path)) == ["m.safetensors"]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", "sharded"])
def test_the_formats_agree(tmp_path, suffix):
    before = model(("F32", "F16"))
    names = list(before)
    if suffix == "sharded":
        shards = {
            "1.safetensors": {n: before[n] for n in names[:3]},
            "2.safetensors": {n: before[n] for n in names[3:]},
        }
        path, output = write_sharded(tmp_path / "m", shards), tmp_path / "new"
    else:
        path, output = tmp_path / f"m{suffix}", tmp_path / f"new{suffix}"
        write_safetensors(path, before) if suffix == ".safetensors" else np.savez(path, **before)
    prune_checkpoint(plan_pruning(path, "2:4"), output)
    if suffix == "sharded":
        after = load_file(output / "1.safetensors") | load_file(output / "2.safetensors")
        assert_pruned(before, {name: after[name] for name in before}, "2:4", "exactly")
        for shard, tensors in shards.items():
            record = json.loads(read_safetensors(output / shard)[0]["transmask"])
            assert list(record["axes"]) == [name for name in tensors if name in plan_pruning(path, "2:4").axes]
    elif suffix == ".npz":
        with np.load(output) as after:
            assert_pruned(before, dict(after), "2:4", "exactly")
    else:
        assert_pruned(before, read_safetensors(output)[1], "2:4", "exactly")
    assert all(found.report.ok for found in check_checkpoint(output, "2:4"))
    assert not all(found.report.ok for found in check_checkpoint(path, "2:4"))


def test_npy(tmp_path):
    weights = np.random.default_rng(0).standard_normal((9, 8))
    np.save(tmp_path / "w.npy", weights)
    (outcome,) = prune_checkpoint(plan_pruning(tmp_path / "w.npy", "2:4"), tmp_path / "new.npy")
    assert outcome.tensor.name == "w"
    expected = np.where(tm.transposable_mask(weights, "2:4"), weights, 0)
    assert same_bits(np.load(tmp_path / "new.npy"), expected)


def test_solver_include_and_exclude_are_obeyed(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", model())
    plan = plan_pruning(tmp_path / "m.safetensors", "2:4", solver="min_cost_flow", include="weight", exclude="conv|odd")
    assert list(plan.axes) == ["embed.weight", "F32.weight"]
    prune_checkpoint(plan, tmp_path / "new.safetensors")
    metadata, after = read_safetensors(tmp_path / "new.safetensors")
    assert json.loads(metadata["transmask"])["solver"] == "min_cost_flow"
    assert same_bits(after["odd.weight"], model()["odd.weight"])
    assert offender(after["embed.weight"] != 0, 2, 4, "exactly") is None
    assert [found.name for found in check_checkpoint(tmp_path / "new.safetensors", "2:4")] == list(plan.axes)


def test_masks_alone_leave_no_other_file(tmp_path):
    before = model()
    write_safetensors(tmp_path / "m.safetensors", before)
    plan = plan_pruning(tmp_path / "m.safetensors", "2:4")
    prune_checkpoint(plan, None, masks=tmp_path / "masks.safetensors", apply=False)
    assert sorted(files_in(tmp_path)) == ["m.safetensors", "masks.safetensors"]
    masks = read_masks(tmp_path / "masks.safetensors")
    assert list(masks) == list(plan.axes)
    for name, mask in masks.items():
        assert same_bits(mask, tm.transposable_mask(before[name], "2:4", axes=AXES.get(name, (0, 1))))


def test_without_apply_the_output_is_a_copy(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", model(), {"format": "pt"})
    plan = plan_pruning(tmp_path / "m.safetensors", "2:4")
    prune_checkpoint(plan, tmp_path / "copy.safetensors", masks=tmp_path / "masks.safetensors", apply=False)
    metadata, after = read_safetensors(tmp_path / "copy.safetensors")
    assert metadata == {"format": "pt"}
    assert all(same_bits(after[name], array) for name, array in model().items())
    assert len(read_masks(tmp_path / "masks.safetensors")) == len(plan.axes)


def test_progress_is_called_before_and_after_each_tensor(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", model())
    plan = plan_pruning(tmp_path / "m.safetensors", "2:4")
    calls = []
    outcomes = prune_checkpoint(
        plan, tmp_path / "new.safetensors", progress=lambda tensor, outcome: calls.append((tensor.name, outcome))
    )
    assert calls == [(o.tensor.name, done) for o in outcomes for done in (None, o)]


def test_the_output_does_not_depend_on_the_threads(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"w": np.random.default_rng(0).standard_normal((256, 256))})
    plan = plan_pruning(tmp_path / "m.safetensors", "2:4")
    for threads in (1, 2):
        prune_checkpoint(plan, tmp_path / f"{threads}.safetensors", threads=threads)
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_pruning_again_replaces_the_record(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", model())
    prune_checkpoint(plan_pruning(tmp_path / "m.safetensors", "2:4"), tmp_path / "1.safetensors")
    prune_checkpoint(plan_pruning(tmp_path / "1.safetensors", "1:4"), tmp_path / "2.safetensors")
    assert str(open_checkpoint(tmp_path / "2.safetensors").record.pattern) == "1:4"
    assert all(found.report.ok for found in check_checkpoint(tmp_path / "2.safetensors", "1:4"))


def test_check_finds_one_weight_too_many(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", model())
    prune_checkpoint(plan_pruning(tmp_path / "m.safetensors", "2:4"), tmp_path / "new.safetensors")
    metadata, tensors = read_safetensors(tmp_path / "new.safetensors")
    broken = {name: array.copy() for name, array in tensors.items()}
    column = int(np.argmax(broken["F32.weight"][5, 4:] == 0)) + 4
    broken["F32.weight"][5, column] = 1
    write_safetensors(tmp_path / "new.safetensors", broken, metadata)
    found = {checked.name: checked.report for checked in check_checkpoint(tmp_path / "new.safetensors", "2:4")}
    assert [name for name, report in found.items() if not report.ok] == ["F32.weight"]
    assert found["F32.weight"].row_violations == found["F32.weight"].column_violations == 1
    assert found["F32.weight"].first_offender == "row 5, columns 4 to 7 keeps 3, more than 2 of 4"


def test_check_reads_masks_files_and_tells_zero_weights_from_pruned_ones(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", {"w": np.zeros((8, 8), np.float32)})
    plan = plan_pruning(tmp_path / "m.safetensors", "2:4")
    prune_checkpoint(plan, tmp_path / "new.safetensors", masks=tmp_path / "masks.safetensors")
    (weights,) = check_checkpoint(tmp_path / "new.safetensors", "2:4", constraint="exactly")
    (masks,) = check_checkpoint(tmp_path / "masks.safetensors", "2:4", constraint="exactly")
    assert not weights.report.ok
    assert masks.report.ok
    assert masks.name == "w"


def test_check_counts_a_nan_as_kept(tmp_path):
    weights = np.zeros((4, 4), CODES["BF16"])
    weights[0, :3] = np.array([0x7F81] * 3, np.uint16).view(CODES["BF16"])
    write_safetensors(tmp_path / "m.safetensors", {"w": weights})
    (found,) = check_checkpoint(tmp_path / "m.safetensors", "2:4")
    assert found.report.first_offender == "row 0, columns 0 to 3 keeps 3, more than 2 of 4"


@pytest.fixture(params=["file", "shards"])
def two(request, tmp_path):
    """A checkpoint of the tensors a and b, and a function that names its outputs."""
    tensors = {name: np.random.default_rng(seed).standard_normal((8, 8)) for seed, name in enumerate("ab")}
    if request.param == "file":
        write_safetensors(tmp_path / "two.safetensors", tensors)
        return tmp_path / "two.safetensors", lambda name: tmp_path / f"{name}.safetensors"
    shards = {f"{name}.safetensors": {name: array} for name, array in tensors.items()}
    return write_sharded(tmp_path / "two", shards), lambda name: tmp_path / name


def test_a_second_run_keeps_what_the_first_noted(two):
    model, output = two
    prune_checkpoint(
        plan_pruning(model, "2:4", include="^a"), output("one"), masks=output("one").parent / "1.safetensors"
    )
    masks = output("one").parent / "2.safetensors"
    prune_checkpoint(plan_pruning(output("one"), "2:4", include="^b", solver="greedy"), output("both"), masks=masks)
    assert {found.name: found.report.ok for found in check_checkpoint(output("both"), "2:4")} == {"a": True, "b": True}
    assert open_checkpoint(output("both")).record.solver == ""
    assert list(read_masks(masks)) == list(read_masks(masks).axes) == ["b"]
    prune_checkpoint(plan_pruning(output("both"), "1:4"), output("again"))
    assert open_checkpoint(output("again")).record.pattern == tm.Pattern(1, 4)
    assert sorted(open_checkpoint(output("again")).record.axes) == ["a", "b"]


@pytest.mark.parametrize("pattern", ["1:4", "2:4"])
def test_a_second_run_must_not_mix_constraints(two, pattern):
    model, output = two
    prune_checkpoint(plan_pruning(model, "2:4", include="^a"), output("one"))
    before = files_in(output("one").parent)
    plan = plan_pruning(output("one"), pattern, constraint="at_most", include="^b")
    for function in (plan.check_outputs, partial(prune_checkpoint, plan)):
        with pytest.raises(tm.InvalidArgumentError) as caught:
            function(output("both"))
        assert str(caught.value) == (
            "`constraint` must be 'exactly', which 'a' was pruned with before, got 'at_most'. "
            "One file holds one constraint: prune that tensor again too."
        )
        assert files_in(output("one").parent) == before
    masks = output("one").parent / "masks.safetensors"
    plan.check_outputs(None, masks=masks, apply=False)
    prune_checkpoint(plan, None, masks=masks, apply=False)
    assert list(read_masks(masks)) == ["b"]
