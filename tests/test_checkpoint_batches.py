"""Small matrices that are alike are solved together; nobody can tell from what is written or told."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import files_in, write_safetensors

import transmask as tm
from transmask.checkpoint import Recipe, plan_pruning, prune_checkpoint, run
from transmask.checkpoint.run import SMALL

RNG = np.random.default_rng(0)


def alone(monkeypatch):
    monkeypatch.setattr(run.Run, "_kind", lambda self, item: None)


def model(path):
    """Write matrices of several shapes, dtypes and patterns, alike and not, side by side and apart."""
    tensors = {}
    for layer in range(12):
        for name, shape in {"a": (16, 16), "b": (16, 16), "c": (10, 6), "mlp": (16, 16), "conv": (8, 4, 3, 3)}.items():
            tensors[f"{layer}.{name}.weight"] = RNG.standard_normal(shape).astype(np.float32)
        tensors[f"{layer}.half.weight"] = RNG.standard_normal((16, 16)).astype(ml_dtypes.bfloat16)
    tensors |= {f"large.{k}.weight": RNG.standard_normal((128, 200)).astype(np.float32) for k in range(3)}
    tensors |= {f"tiny.{k}.weight": RNG.integers(-3, 3, (4, 4)).astype(np.float64) for k in range(200)}
    write_safetensors(path, tensors)
    return tensors


def prune(folder, solver="auto", masks=None, apply=True, threads=2):
    plan = plan_pruning(folder / "m.safetensors", Recipe("2:4", {"mlp": "4:8"}), solver=solver)
    output = folder / "out.safetensors" if apply else None
    outcomes = prune_checkpoint(plan, output, masks=masks, apply=apply, threads=threads)
    return [replace(outcome, seconds=0.0) for outcome in outcomes]


@pytest.mark.parametrize(("solver", "threads"), [("auto", 1), ("auto", 2), ("greedy", 2), ("min_cost_flow", 1)])
def test_batches_change_nothing(tmp_path, monkeypatch, solver, threads):
    model(tmp_path / "m.safetensors")
    masks, written, told = tmp_path / "masks.safetensors", [], []
    for step in ("together", "alone"):
        if step == "alone":
            alone(monkeypatch)
        told.append(prune(tmp_path, solver, masks, threads=threads))
        written.append(files_in(tmp_path))
    assert written[0] == written[1]
    assert told[0] == told[1]
    assert any(outcome.unproven for outcome in told[0]) == (solver == "greedy")
    for outcome in told[0]:
        assert outcome.gap == pytest.approx(1 - outcome.kept / outcome.upper_bound, abs=1e-12)
        assert (outcome.gap > 1e-12) == (outcome.unproven > 0)


def test_masks_alone(tmp_path, monkeypatch):
    model(tmp_path / "m.safetensors")
    prune(tmp_path, masks=tmp_path / "masks.safetensors", apply=False)
    together = files_in(tmp_path)
    alone(monkeypatch)
    prune(tmp_path, masks=tmp_path / "masks.safetensors", apply=False)
    assert files_in(tmp_path) == together


def test_the_solver_is_called_a_few_times(tmp_path, monkeypatch):
    sizes, solve_each = [], run.solve_each
    monkeypatch.setattr(run, "solve_each", lambda stack, *more: sizes.append(stack.size) or solve_each(stack, *more))
    monkeypatch.setattr(run, "solve_array", lambda *arguments, **options: pytest.fail("a matrix was solved alone"))
    write_safetensors(tmp_path / "m.safetensors", {f"{k}.weight": RNG.standard_normal((16, 16)) for k in range(1000)})
    plan = plan_pruning(tmp_path / "m.safetensors", "2:4")
    assert len(prune_checkpoint(plan, tmp_path / "out.safetensors")) == 1000
    assert len(sizes) == -(-1000 * 256 // SMALL)
    assert max(sizes) <= SMALL


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_weight_in_a_batch_is_named(tmp_path, value):
    tensors = {f"{k}.weight": RNG.standard_normal((8, 8)) for k in range(20)}
    tensors["7.weight"][3, 5] = tensors["9.weight"][0, 0] = value
    write_safetensors(tmp_path / "m.safetensors", tensors)
    before = files_in(tmp_path)
    plan = plan_pruning(tmp_path / "m.safetensors", "2:4")
    with pytest.raises(tm.InvalidArgumentError, match=r"tensor '7.weight': .*\(3, 5\)"):
        prune_checkpoint(plan, tmp_path / "out.safetensors")
    assert files_in(tmp_path) == before
