"""Checkpoints in training as torch writes them: folded, they load into a plain model and give the same outputs."""

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import transmask as tm  # noqa: E402
from transmask.checkpoint import apply_masks, check_checkpoint, plan_applying, plan_pruning  # noqa: E402
from transmask.torch import sparsify, transposable  # noqa: E402


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Linear(8, 16, bias=False))


def with_hooks(model):
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.l1_unstructured(model[0], "bias", amount=2)
    transposable(model[3], "weight", n=2, m=4)


def with_transmask(model):
    sparsify(model, "2:4")


@pytest.mark.parametrize("mask", [with_hooks, with_transmask])
def test_folded_masks_give_the_same_outputs_in_a_plain_model(tmp_path, mask):
    model = network()
    mask(model)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(tm.InvalidArgumentError, match="Fold its masks in first: transmask apply"):
        plan_pruning(tmp_path / "m.safetensors", "2:4")
    before = {one.name: one.report for one in check_checkpoint(tmp_path / "m.safetensors", "2:4")}
    apply_masks(plan_applying(tmp_path / "m.safetensors"), tmp_path / "new.safetensors")
    plain = network()
    plain.load_state_dict(load_file(tmp_path / "new.safetensors"), strict=True)
    after = {one.name: one.report for one in check_checkpoint(tmp_path / "new.safetensors", "2:4")}
    assert before == after
    assert set(after) == {"0.weight", "2.weight", "3.weight"}
    for layer, shape in ((0, (2, 16)), (2, (1, 4, 5, 5)), (3, (2, 8))):
        inputs = torch.randn(shape)
        assert torch.equal(model[layer](inputs), plain[layer](inputs)), layer
    assert any(torch.count_nonzero(plain[layer].weight) < plain[layer].weight.numel() for layer in (0, 3))
