"""Plan, work and finish in different processes write the bytes that one process writes."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from checkpoint_files import CODES, files_in, write_safetensors, write_sharded

import transmask as tm
from transmask.checkpoint import (
    Recipe,
    SolvedTensor,
    finish_pruning,
    plan_pruning,
    prune_checkpoint,
    read_masks,
    solve_tensors,
)

RNG = np.random.default_rng(0)
SHARDS = {
    "1.safetensors": {
        "a.weight": RNG.standard_normal((13, 20)).astype(CODES["BF16"]),
        "a.bias": np.ones(13),
        "v.weight_g": RNG.uniform(1, 2, (8, 1)),
        "v.weight_v": RNG.standard_normal((8, 16)),
    },
    "2.safetensors": {
        "q.weight": RNG.integers(-127, 128, (16, 24)).astype(np.int8),
        "q.weight_scale": RNG.uniform(0.01, 1, (16, 1)).astype(np.float32),
        "b.experts": RNG.standard_normal((3, 8, 12)).astype(np.float32),
    },
}
RECIPE = Recipe("2:4", {"^b": "1:4"})

WORKER = """
import pathlib, pickle, sys
from transmask.checkpoint import solve_tensors
plan = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
for number, names in enumerate(plan.shards.values()):
    solved = solve_tensors(plan, names, threads=2)
    pathlib.Path(f"{sys.argv[1]}.{number}").write_bytes(pickle.dumps(solved))
"""


@pytest.fixture
def plan(tmp_path):
    write_sharded(tmp_path / "m", SHARDS, {"format": "pt"})
    return plan_pruning(tmp_path / "m", RECIPE, axes={"experts": (1, 2)})


@pytest.mark.surface
def test_another_process_solves_each_shard(plan, tmp_path):
    assert [(path.name, names) for path, names in plan.shards.items()] == [
        ("1.safetensors", ["a.weight", "v.weight_v"]),
        ("2.safetensors", ["q.weight", "b.experts"]),
    ]
    outcomes = prune_checkpoint(plan, tmp_path / "one", masks=tmp_path / "one.safetensors")
    (tmp_path / "plan").write_bytes(pickle.dumps(plan))
    subprocess.run([sys.executable, "-c", WORKER, tmp_path / "plan"], check=True)
    results = (one for number in range(2) for one in pickle.loads((tmp_path / f"plan.{number}").read_bytes()))
    told = []
    found = finish_pruning(
        plan,
        results,
        tmp_path / "many",
        masks=tmp_path / "many.safetensors",
        progress=lambda tensor, outcome: told.append((tensor.name, outcome is None)),
    )
    assert files_in(tmp_path / "many") == files_in(tmp_path / "one")
    assert (tmp_path / "many.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()
    for mine, theirs in zip(found, outcomes, strict=True):
        for field in ("tensor", "pattern", "axes", "kept", "total", "upper_bound", "gap", "unproven", "n_blocks"):
            assert getattr(mine, field) == getattr(theirs, field)
    assert told == [(outcome.tensor.name, is_begin) for outcome in outcomes for is_begin in (True, False)]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_tensors_one_by_one_and_in_any_order(tmp_path, suffix):
    tensors = {f"{i}.weight": RNG.standard_normal((8, 12)) for i in range(4)}
    path = tmp_path / f"m{suffix}"
    if suffix == ".npz":
        np.savez(path, **tensors)
    else:
        write_safetensors(path, tensors)
    plan = pickle.loads(pickle.dumps(plan_pruning(path, "2:4")))
    solved = {name: solve_tensors(plan, [name], threads=1)[0] for name in reversed(plan.axes)}
    for name, weights in tensors.items():
        np.testing.assert_array_equal(solved[name].mask, tm.transposable_mask(weights, "2:4"))
    assert [one.outcome.tensor.name for one in solve_tensors(plan, reversed(plan.axes))] == list(plan.axes)
    prune_checkpoint(plan, tmp_path / f"one{suffix}")
    finish_pruning(plan, [solved[name] for name in plan.axes], tmp_path / f"many{suffix}")
    assert (tmp_path / f"many{suffix}").read_bytes() == (tmp_path / f"one{suffix}").read_bytes()
    finish_pruning(plan, map(solved.get, plan.axes), None, masks=tmp_path / "masks.safetensors", apply=False)
    masks = read_masks(tmp_path / "masks.safetensors")
    assert all(np.array_equal(masks[name], solved[name].mask) for name in tensors)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda solved: solved[:-1], "`solved` must have the mask of 'b.experts' next, got no more."),
        (lambda solved: solved[::-1], "`solved` must have the mask of 'a.weight' next, got that of 'b.experts'."),
        (
            lambda solved: [*solved, solved[0]],
            "`solved` must have one mask for each tensor, got another for 'a.weight'.",
        ),
        (
            lambda solved: [SolvedTensor(solved[0].outcome, b"\xff" * 33), *solved[1:]],
            "2:4 exactly for 'a.weight', got one where row 0, columns 0 to 3 keeps 4, more than 2 of 4.",
        ),
        (lambda solved: [SolvedTensor(solved[0].outcome, b""), *solved[1:]], "got one where 0 bytes are packed."),
    ],
)
def test_masks_that_are_not_those_of_the_plan_write_nothing(plan, tmp_path, spoil, message):
    solved = solve_tensors(plan, plan.axes, threads=1)
    with pytest.raises(tm.InvalidArgumentError) as caught:
        finish_pruning(plan, spoil(solved), tmp_path / "new")
    assert message in str(caught.value)
    assert os.listdir(tmp_path) == ["m"]


def test_names_that_the_plan_does_not_have(plan):
    with pytest.raises(tm.InvalidArgumentError, match=r"`names` must be tensors that the plan prunes, got 'a\.bias'"):
        solve_tensors(plan, ["a.weight", "a.bias"])
    with pytest.raises(tm.InvalidTypeError, match=r"`names` must be several names, got 'a\.weight'"):
        solve_tensors(plan, "a.weight")
