"""The decay of SR-STE is what it was set to: under loss scaling, accumulation, closures and several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch_ddp_worker as worker  # noqa: E402
from torch import nn  # noqa: E402

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402

DECAY, LEARNING_RATE, SCALE = 0.125, 0.5, 2.0**16
"""Powers of two, so that the expected weights are exact."""

PLAIN, FUSED = {}, {"fused": True}


def setting(decay=DECAY, optimizer=torch.optim.SGD, **options):
    """A layer whose loss has gradient zero, with masks that are not refreshed while a test looks."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 8, bias=False)
    controller = tmt.sparsify(layer, "2:4", decay=decay)
    attached = optimizer(layer.parameters(), lr=LEARNING_RATE, **options)
    controller.attach(attached)
    weight = layer.parametrizations.weight.original
    return layer, weight, weight.detach().clone(), ~controller.masks()["weight"], attached


def nothing(layer, generator=None):
    """A loss that leaves a gradient of zero on every weight."""
    return (layer(torch.ones(2, 8)) * 0).sum()


def effective_decay(weight, before, pruned):
    """What the step took off the pruned weights, relative to them and to the learning rate; kept ones must stay."""
    assert torch.equal(weight[~pruned], before[~pruned])
    return ((before - weight.detach()) / (LEARNING_RATE * before))[pruned]


def assert_decay(found, expected=DECAY):
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-5, atol=0)


def test_the_helper_notices_a_wrong_decay():
    layer, weight, before, pruned, optimizer = setting(decay=0.0)
    nothing(layer).backward()
    optimizer.step()
    with pytest.raises(AssertionError):
        assert_decay(effective_decay(weight, before, pruned))


@pytest.mark.parametrize("options", [PLAIN, FUSED])
@pytest.mark.parametrize("unscale", [True, False])
def test_under_gradscaler(options, unscale):
    layer, weight, before, pruned, optimizer = setting(**options)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    scaler.scale(nothing(layer)).backward()
    if unscale:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert_decay(effective_decay(weight, before, pruned))


@pytest.mark.parametrize("options", [PLAIN, FUSED])
def test_a_step_that_gradscaler_skips_does_not_count(options):
    layer, weight, before, _, optimizer = setting(**options)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    for gradient in (float("inf"), 0.0, float("nan")):
        optimizer.zero_grad()
        scaler.scale(nothing(layer)).backward()
        weight.grad[0, 0] += gradient
        scaler.step(optimizer)
        scaler.update()
        state = layer.state_dict()["parametrizations.weight.0.step"]
        if gradient == float("inf"):
            assert state == 0
            assert torch.equal(weight, before)
    assert state == 1


@pytest.mark.parametrize("micro_batches", [1, 3, 8])
def test_under_gradient_accumulation(micro_batches):
    layer, weight, before, pruned, optimizer = setting()
    for _ in range(micro_batches):
        (nothing(layer) / micro_batches).backward()
    optimizer.step()
    assert_decay(effective_decay(weight, before, pruned))
    assert layer.state_dict()["parametrizations.weight.0.step"] == 1


def test_under_autocast_with_a_scaler_and_accumulation():
    layer, weight, before, pruned, optimizer = setting()
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nothing(layer)
        scaler.scale(loss / 3).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_decay(effective_decay(weight, before, pruned))


@pytest.mark.parametrize("keyword", [True, False])
def test_with_a_closure(keyword):
    """The closure clears the gradients and computes them inside the step: a decay added before it would be lost."""
    layer, weight, before, pruned, optimizer = setting()

    def closure():
        optimizer.zero_grad()
        loss = nothing(layer)
        loss.backward()
        return loss

    loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert loss.item() == 0
    assert_decay(effective_decay(weight, before, pruned))


def test_when_the_optimizer_maximises():
    """The gradient is climbed; pruned weights must still shrink."""
    layer, weight, before, pruned, optimizer = setting(maximize=True)
    nothing(layer).backward()
    optimizer.step()
    assert_decay(effective_decay(weight, before, pruned))


def test_the_decay_goes_through_adam_as_a_gradient():
    """Zhou et al.'s term is part of the gradient, so Adam normalises it: the first step is lr * sign(W)."""
    layer, weight, before, pruned, optimizer = setting(optimizer=torch.optim.Adam, eps=1e-12)
    nothing(layer).backward()
    optimizer.step()
    expected = torch.where(pruned, before - LEARNING_RATE * before.sign(), before)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def ddp_states(tmp_path_factory):
    """What two gloo processes hold after training together."""
    folder = tmp_path_factory.mktemp("ddp")
    processes = [
        subprocess.Popen(
            [sys.executable, worker.__file__, str(rank), "2", str(folder / "store"), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=Path(worker.__file__).parent,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_under_ddp_every_process_holds_the_same(ddp_states):
    first, second = ddp_states
    assert list(first) == list(second)
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_under_ddp_the_run_is_that_of_one_process_with_the_whole_batch(ddp_states):
    """Written by hand on dense weights: masks from transmask, gradients from autograd, the decay as a formula."""
    model = worker.build_model()
    names = ["0.weight", "2.weight"]
    masks = {name: torch.from_numpy(tm.transposable_mask(model.get_parameter(name), "2:4")) for name in names}
    for step in range(worker.STEPS):
        inputs = torch.cat([worker.batch(step, rank) for rank in range(2)])
        values = {
            name: (parameter.detach() * masks.get(name, 1)).requires_grad_()
            for name, parameter in model.named_parameters()
        }
        torch.func.functional_call(model, values, inputs).square().mean().backward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                gradient = values[name].grad
                if name in masks:
                    gradient = gradient + worker.DECAY * parameter.masked_fill(masks[name], 0)
                parameter -= worker.LEARNING_RATE * gradient
        if (step + 1) % 2 == 0:
            masks = {name: torch.from_numpy(tm.transposable_mask(model.get_parameter(name), "2:4")) for name in names}
    for name, parameter in model.named_parameters():
        path, _, attribute = name.rpartition(".")
        key = f"{path}.parametrizations.{attribute}.original" if name in masks else name
        torch.testing.assert_close(ddp_states[0][key], parameter.detach(), rtol=1e-12, atol=1e-13)
    for name in names:
        path = name.removesuffix("weight")
        assert torch.equal(ddp_states[0][f"{path}parametrizations.weight.0.mask"], masks[name])
        assert ddp_states[0][f"{path}parametrizations.weight.0.step"] == worker.STEPS
