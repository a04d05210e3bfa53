"""FSDP2 and tensor parallelism: what several processes train is what one process trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

import torch_shards_worker as worker  # noqa: E402
from naive import offender  # noqa: E402

from transmask.torch import MaskController, sparsify  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.surface]

WORKER = Path(worker.__file__)
RUNS = [("fsdp", 4), ("fsdp", 2), ("tensor", 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the processes of every run have left what they found."""
    folder = tmp_path_factory.mktemp("shards")
    for how, world in RUNS:
        store = folder / f"store-{how}-{world}"
        started = [
            subprocess.Popen(
                [sys.executable, WORKER, how, str(rank), str(world), store, folder],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world)
        ]
        printed = [process.communicate(timeout=240)[0] for process in started]
        assert [process.returncode for process in started] == [0] * world, "\n".join(printed)
    return folder


def alone(estimator):
    """What one process does, without anything distributed."""
    model, controller, optimizer = worker.build(), None, None
    controller = sparsify(model, "2:4", refresh_every=2, decay=0.3, estimator=estimator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    controller.attach(optimizer)
    losses = []
    for step in range(worker.STEPS):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(worker.BATCH, 8, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if step == 4:
            controller.freeze()
    return model, controller, losses


@pytest.mark.parametrize("estimator", ["sr-ste", "ste", "fixed"])
@pytest.mark.parametrize(("how", "world"), RUNS)
def test_masks_losses_and_weights_are_those_of_one_process(folder, how, world, estimator):
    found = torch.load(folder / f"{how}-{world}.pt")[estimator]
    model, controller, losses = alone(estimator)
    assert found["losses"] == pytest.approx(losses, rel=1e-9)
    masks = controller.masks()
    assert list(found["masks"]) == list(masks)
    for name, mask in masks.items():
        assert torch.equal(found["masks"][name], mask), name
        assert offender(mask.numpy(), 2, 4, "exactly") is None
    state = model.state_dict()
    assert set(found["state"]) == set(state)
    for key, value in state.items():
        torch.testing.assert_close(
            found["state"][key], value, rtol=1e-9, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}"
        )
    if how == "tensor":
        controller.remove()
        for mine, theirs in zip(found["removed"], (model[0].weight, model[2].weight), strict=True):
            torch.testing.assert_close(mine, theirs.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_of_four_processes_is_loaded_by_two_and_by_one(folder):
    saved = torch.load(folder / "fsdp-4.pt")["sr-ste"]["state"]
    loaded = torch.load(folder / "fsdp-2.pt")["loaded"]
    assert list(loaded) == list(saved)
    assert all(torch.equal(value, saved[key]) for key, value in loaded.items())
    model = worker.build()
    sparsify(model, "2:4")
    state = {"model": model.state_dict()}
    torch.distributed.checkpoint.load(state, checkpoint_id=folder / "dcp-4", no_dist=True)
    model.load_state_dict(state["model"])
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    controller = MaskController(model)
    controller.remove()
    assert offender(model[0].weight.detach().numpy() != 0, 2, 4, "exactly") is None


def test_what_a_sharded_model_cannot_do_is_said(folder):
    assert json.loads((folder / "errors.json").read_text()) == {
        "remove": "`model` must be whole to lose its masks, got a FSDPSequential under fully_shard. Save its full "
        "state_dict, and load it after sparsify in one process, or fold it with `transmask apply`.",
        "sparsify": "`model` must get its masks before it is sharded, got a FSDPSequential under fully_shard. Call "
        "sparsify first, then fully_shard, and make the optimizer last.",
    }
