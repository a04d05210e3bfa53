"""One of the processes that train a masked model in shards: how, rank, world size, store and folder as arguments."""

import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributed import checkpoint, device_mesh
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import transmask as tm
from transmask.torch import MaskController, sparsify

STEPS, BATCH = 6, 8


def build():
    """18 rows are shared unevenly by 4 processes; of 2 rows, some processes hold nothing."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 18), nn.Tanh(), nn.Linear(18, 12), nn.Tanh(), nn.Linear(12, 2)).double()


def masked(how, estimator="sr-ste"):
    """Return the model with masks, in shards, its controller and its optimizer."""
    model = build()
    options = {"refresh_every": 2, "decay": 0.3, "estimator": estimator}
    if how == "tensor":  # masks come after the shards
        mesh = device_mesh.init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    controller = sparsify(model, "2:4", **options)
    if how == "fsdp":
        for layer in (model[0], model[2], model[4]):
            fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    controller.attach(optimizer)
    return model, controller, optimizer


def train(how, model, optimizer, controller, freeze_at=4):
    """Train, and return the losses of all processes together."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    losses = []
    for step in range(STEPS):
        inputs = torch.randn(BATCH, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        own = inputs.chunk(world)[rank] if how == "fsdp" else inputs
        optimizer.zero_grad()
        loss = model(own).square().mean()
        loss.backward()
        optimizer.step()
        whole = loss.detach().clone()
        if how == "fsdp":
            torch.distributed.all_reduce(whole, torch.distributed.ReduceOp.SUM)
            whole /= world
        losses.append(float(whole))
        if step == freeze_at:
            controller.freeze()
    return losses


def main(how, rank, world, store, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    folder = Path(folder)
    found = {}
    for estimator in ("sr-ste", "ste", "fixed"):
        model, controller, optimizer = masked(how, estimator)
        losses = train(how, model, optimizer, controller)
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        found[estimator] = {"losses": losses, "state": dict(state), "masks": controller.masks()}
        if estimator == "sr-ste" and how == "fsdp":
            found["saved by"] = world
            checkpoint.save({"model": get_model_state_dict(model)}, checkpoint_id=folder / f"dcp-{world}")
            errors = {}
            for name, call in (("remove", controller.remove), ("sparsify", lambda model=model: sparsify(model, "2:4"))):
                try:
                    call()
                except tm.InvalidArgumentError as error:
                    errors[name] = str(error)
            (folder / "errors.json").write_text(json.dumps(errors))
        if how == "tensor":
            controller.remove()
            found[estimator]["removed"] = [value.full_tensor() for value in (model[0].weight, model[2].weight)]
    torch.distributed.barrier()
    if how == "fsdp" and world == 2 and (folder / "dcp-4").exists():  # written by four processes
        model, *_ = masked(how)
        state = {"model": get_model_state_dict(model)}
        checkpoint.load(state, checkpoint_id=folder / "dcp-4")
        set_model_state_dict(model, state["model"])
        found["loaded"] = dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))
        MaskController(model)
    if rank == 0:
        torch.save(found, folder / f"{how}-{world}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
