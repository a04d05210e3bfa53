"""One of two processes that train a masked model together: rank, world size, store and output folder as arguments."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from transmask.torch import sparsify

STEPS, DECAY, LEARNING_RATE = 5, 0.3, 0.05


def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def batch(step, rank):
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(6, 8, generator=generator, dtype=torch.float64)


def main(rank, world, store, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    model = build_model()
    controller = sparsify(model, "2:4", refresh_every=2, decay=DECAY)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=LEARNING_RATE)
    controller.attach(optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        parallel(batch(step, rank)).square().mean().backward()
        optimizer.step()
    torch.save(model.state_dict(), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
