"""Averages of masked models: weights are averaged, masks are not, and what is no mask is never written out."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from naive import offender  # noqa: E402
from torch import nn  # noqa: E402
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_avg_fn  # noqa: E402

import transmask as tm  # noqa: E402
from transmask.torch import MaskController, sparsify  # noqa: E402

KINDS = {
    "ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "ema, one by one": {"avg_fn": get_ema_avg_fn(0.9)},
    "swa": {},
    "swa, one by one": {"avg_fn": get_swa_avg_fn()},
}


def trained(average_of, steps=8):
    """Train a masked model, and average it after every step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 8))
    controller = sparsify(model, "2:4", refresh_every=2)
    average = average_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    controller.attach(optimizer)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(32, 16)).square().sum().backward()
        optimizer.step()
        average.update_parameters(model)
        seen.append(model[0].parametrizations.weight.original.detach().clone())
    return model, average, seen


@pytest.mark.parametrize("kind", KINDS)
def test_an_average_has_the_masks_of_the_last_model_until_they_are_refreshed(kind):
    model, average, seen = trained(lambda model: AveragedModel(model, **KINDS[kind]))
    controller = MaskController(average.module)
    weight = average.module[0].parametrizations.weight.original.detach()
    if kind.startswith("swa"):
        torch.testing.assert_close(weight, torch.stack(seen).mean(0))
    assert torch.equal(controller.masks()["0.weight"], MaskController(model).masks()["0.weight"])
    assert average.module[0].parametrizations.weight[0].steps == 8
    assert len(controller.refresh()) == 2
    assert torch.equal(controller.masks()["0.weight"], tm.torch.transposable_mask(weight, "2:4"))
    controller.remove()
    assert offender(average.module[0].weight.detach().numpy() != 0, 2, 4, "exactly") is None


@pytest.mark.parametrize("kind", ["ema", "ema, one by one"])
def test_masks_that_were_averaged_are_never_written_out(kind):
    _, average, _ = trained(lambda model: AveragedModel(model, use_buffers=True, **KINDS[kind]))
    module = average.module
    before = copy.deepcopy(module.state_dict())
    text = (
        r"a mask that is not transposable 2:4 'exactly', for 0.weight: (row|column).*\. Averages of models must not "
        r"average masks \(use_buffers=False\). Call refresh\(\) to find masks for the weights as they are.$"
    )
    with pytest.warns(RuntimeWarning, match=f"^the model carries {text}") as caught:
        controller = MaskController(module)
    assert caught[0].filename == __file__
    for write in (controller.masks, controller.remove):
        with pytest.raises(tm.InvalidArgumentError, match=f"^`model` must carry masks that hold .*, got {text}"):
            write()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    controller.refresh()
    assert set(controller.masks()) == {"0.weight", "2.weight"}
    controller.remove()
    assert offender(module[0].weight.detach().numpy() != 0, 2, 4, "exactly") is None


def test_torch_refuses_an_average_made_before_the_masks():
    model = nn.Linear(16, 8, bias=False)
    average = AveragedModel(model)
    sparsify(model, "2:4")
    with pytest.raises((ValueError, RuntimeError)):
        average.update_parameters(model)


@pytest.mark.parametrize(("transposable", "constraint"), [(True, "exactly"), (True, "at_most"), (False, "exactly")])
def test_a_mask_is_judged_by_its_own_rule(transposable, constraint):
    layer = nn.Linear(16, 8, bias=False)
    controller = sparsify(layer, "2:4", transposable=transposable, constraint=constraint)
    mask = layer.parametrizations.weight[0].mask
    good = mask.clone()
    mask[3, :4] = ~mask[3, :4]  # its row holds, the columns do not
    if transposable:
        with pytest.raises(tm.InvalidArgumentError, match="for weight: column"):
            controller.masks()
    else:
        assert set(controller.masks()) == {"weight"}
    mask.copy_(good)
    mask[3] = True
    kind = "transposable" if transposable else "plain"
    with pytest.raises(
        tm.InvalidArgumentError, match=f"a mask that is not {kind} 2:4 '{constraint}', for weight: row 3"
    ):
        controller.remove()
    assert "parametrizations" in dict(layer.named_modules())
