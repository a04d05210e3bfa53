"""Activations of batches that wait stand on the CPU, and no result changes."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # two threads that wait for each other are slow on a busy machine

from torch import nn  # noqa: E402
from torch_models import model_and_batches, reconstruct, tokens  # noqa: E402

from transmask.torch.reconstruction import offload as module  # noqa: E402


class Keeping(nn.Module):
    """Keeps a tensor of its first forward for all the others, and reads one layer's input through a view."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(16, 16) for _ in range(3))
        self.kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = torch.sin(torch.arange(16, dtype=torch.float64))
        x = x * self.kept
        view = x[:, :4]
        y = self.first(x)
        view.mul_(2)  # changes x as well
        return self.last(torch.relu(self.second(x)) + y * self.kept)


@pytest.mark.parametrize("name", ["residual", "decoder", "experts", "shared", "keeping"])
def test_offloading_changes_no_result(name, monkeypatch):
    """On the CPU, where every tensor is treated as if it were elsewhere."""
    monkeypatch.setattr(module, "is_movable", lambda value: type(value) is torch.Tensor)
    torch.manual_seed(0)
    if name == "keeping":
        model, batches = Keeping().double(), [tokens(seed, 40, 16) for seed in range(4)]
    else:
        model, batches = model_and_batches(name)
    expected, inputs = copy.deepcopy(model), copy.deepcopy(batches)
    reconstruct(expected, batches)
    emptied = []
    monkeypatch.setattr(
        module._Emptied, "empty", lambda self, empty=module._Emptied.empty: (emptied.append(self), empty(self))
    )
    reconstruct(model, batches, offload=True)
    assert len(emptied) > 20
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    if name == "keeping":
        assert torch.equal(model.kept, expected.kept)
    if name != "decoder":
        assert all(torch.equal(now, before) for now, before in zip(batches, inputs, strict=True))


def test_while_a_layer_is_fitted_no_waiting_batch_holds_memory(monkeypatch):
    monkeypatch.setattr(module, "is_movable", lambda value: type(value) is torch.Tensor)
    held = []

    def scores(weight, gram):
        held.append([x.untyped_storage().nbytes() for x in alive])
        return weight

    alive = []
    model, batches = model_and_batches("encoder")
    model.blocks[0].norm.register_forward_hook(lambda module, args, output: alive.append(output))
    model.blocks[0].norm.register_forward_hook(lambda module, args, output: alive.append(args[0]))
    reconstruct(model, batches, offload=True, scores=scores, layers=["blocks.0.up", "blocks.0.down"])
    assert held == [[0] * 10] * 2
    assert all(x.untyped_storage().nbytes() > 0 for x in alive)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offloading_on_cuda_frees_what_waiting_batches_hold():
    model, batches = model_and_batches("encoder")
    there, batches = copy.deepcopy(model).cuda(), [tokens(seed, 64, 512, 16).cuda() for seed in range(8)]
    peaks = []
    for offload in (False, True):
        one = copy.deepcopy(there)
        torch.cuda.reset_peak_memory_stats()
        reconstruct(one, batches, offload=offload)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.7 * peaks[0]
