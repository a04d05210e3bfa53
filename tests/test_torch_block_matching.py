"""Blocks trained on the outputs of the dense block: errors fall on the batch held out, masks and types stay."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # two threads that wait for each other are slow on a busy machine

from torch import nn  # noqa: E402

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402
from transmask.torch.reconstruction.block_matching import find_blocks, match_block  # noqa: E402


class Block(nn.Module):
    """A residual block that scales its input in place, and answers a tuple, as blocks of language models do."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, hidden, *, scale=1.0):
        hidden.mul_(scale)
        return hidden + self.down(torch.relu(self.up(self.norm(hidden)))), "cache"


def pruned_block(dtype=torch.float32, batches=4):
    """A block after one pass of masks, its calls, what the dense block answered, and its masks."""
    torch.manual_seed(0)
    dense = Block().to(dtype)
    inputs = [torch.randn(40, 5, 16).to(dtype) for _ in range(batches)]
    calls = [((value,), {"scale": torch.tensor(2.0, dtype=dtype)}) for value in inputs]
    with torch.no_grad():
        outputs = [dense(value.clone(), scale=2.0) for value in inputs]
    block = copy.deepcopy(dense)
    tmt.sparsify(block, "2:4").remove()
    masks = {name: block.get_parameter(name) != 0 for name in ("up.weight", "down.weight")}
    return block, calls, outputs, masks


def error(block, calls, outputs):
    with torch.no_grad():
        found = [block(args[0].clone(), **kwargs)[0] for args, kwargs in calls]
    squares = [((a - b).square().sum(), b.square().sum()) for a, (b, _) in zip(found, outputs, strict=True)]
    return float(sum(difference for difference, _ in squares) / sum(scale for _, scale in squares))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_error_falls_on_the_batch_held_out_and_masks_stay(dtype):
    block, calls, outputs, masks = pruned_block(dtype)
    block.train()
    inputs = [args[0].clone() for args, _ in calls]
    before = error(block, calls[-1:], outputs[-1:])
    match = match_block(block, calls, outputs, masks, steps=100)
    after = error(block, calls[-1:], outputs[-1:])
    assert match.error_before == pytest.approx(before, rel=2e-2 if dtype == torch.bfloat16 else 1e-4)
    assert match.error_after == pytest.approx(after, rel=2e-2 if dtype == torch.bfloat16 else 1e-4)
    assert after < 0.85 * before
    assert 0 < match.step <= 100
    for name, mask in masks.items():
        assert not block.get_parameter(name)[~mask].any()
        assert block.get_parameter(name)[mask].all()
    assert not torch.equal(block.norm.weight, torch.ones_like(block.norm.weight))
    assert all(parameter.dtype == dtype and parameter.grad is None for parameter in block.parameters())
    assert block.training
    for (args, _), original in zip(calls, inputs, strict=True):  # the block scales its input in place
        assert torch.equal(args[0], original)


def test_rows_without_weight_do_not_count():
    block, calls, outputs, masks = pruned_block()
    kept = torch.zeros(40, 5)
    kept[:, :3] = 1
    damaged = [(output.masked_fill(kept[..., None] == 0, 1e3), text) for output, text in outputs]
    other = copy.deepcopy(block)
    match = match_block(block, calls, damaged, masks, steps=20, row_weights=[kept] * 4)
    assert match == match_block(other, calls, outputs, masks, steps=20, row_weights=[kept] * 4)
    assert match.error_after < match.error_before
    assert torch.equal(block.up.weight, other.up.weight)


def test_a_block_that_cannot_get_better_stays_as_it_was():
    """The dense outputs of the batch held out are the block's own; those of the others are far away."""
    block, calls, outputs, masks = pruned_block()
    state = copy.deepcopy(block.state_dict())
    with torch.no_grad():
        own = block(calls[-1][0][0].clone(), scale=2.0)
    match = match_block(block, calls, [(output * 50, text) for output, text in outputs[:-1]] + [own], masks, steps=10)
    assert (match.error_before, match.error_after, match.step) == (0.0, 0.0, 0)
    assert all(torch.equal(value, state[name]) for name, value in block.state_dict().items())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda calls, outputs: (calls[:0], outputs[:0]), "`calls` must hold at least one call, got none"),
        (lambda calls, outputs: (calls, ["cache"] * 4), "`outputs` must hold a tensor, got str without one"),
        (
            lambda calls, outputs: (calls, [output[0][:3] for output in outputs]),
            r"shape .*\(40, 5, 16\), got \(3, 5, 16\)",
        ),
        (
            lambda calls, outputs: ([((args[0] / 0,), {}) for args, _ in calls], outputs),
            "`block` must give finite outputs",
        ),
    ],
)
def test_bad_input_gets_one_error_and_leaves_the_block_as_it_was(change, text):
    block, calls, outputs, masks = pruned_block()
    state = copy.deepcopy(block.state_dict())
    with pytest.raises(tm.TransmaskError, match=text):
        match_block(block, *change(calls, outputs), masks, steps=3)
    assert all(torch.equal(value, state[name]) for name, value in block.state_dict().items())
    assert block.training


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (
            lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2, enable_nested_tensor=False),
            ["layers.0", "layers.1"],
        ),
        (lambda: nn.Sequential(nn.Linear(4, 4), Block(), nn.Sequential(Block(), Block())), ["1", "2.0", "2.1"]),
        (lambda: nn.ModuleDict({"body": nn.ModuleList([Experts(), Experts()])}), ["body.0", "body.1"]),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), []),
        (lambda: Block(), []),
    ],
)
def test_blocks_are_the_outermost_modules_that_repeat(make, names):
    model = make()
    blocks = find_blocks(model)
    assert list(blocks) == names
    assert all(model.get_submodule(name) is module for name, module in blocks.items())


def test_a_matrix_without_a_mask_stays_as_it_is():
    """Its zeros may be the mask of an earlier run."""
    block, calls, outputs, masks = pruned_block()
    down = block.down.weight.detach().clone()
    match = match_block(block, calls, outputs, {"up.weight": masks["up.weight"]}, steps=20)
    assert match.step > 0
    assert torch.equal(block.down.weight, down)
