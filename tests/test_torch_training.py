"""Training with masks: every step against one written by hand, refreshes on time, and what never changes a mask."""

from __future__ import annotations

import contextlib
import copy
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import naive  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402
from transmask.solvers import Enumeration, MinCostFlow  # noqa: E402


def layer_and_data(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(8, 8, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(8, 8, generator=generator, dtype=dtype))
    return (
        layer,
        torch.randn(5, 8, generator=generator, dtype=dtype),
        torch.randn(5, 8, generator=generator, dtype=dtype),
    )


def step_by_hand(weight, mask, inputs, targets, *, estimator, decay, lr):
    """One step of SGD on 0.5 * |x (S W)^T - t|^2, in numpy."""
    residual = inputs @ (weight * mask).T - targets
    gradient = residual.T @ inputs
    if estimator == "fixed":
        gradient = gradient * mask
    if estimator == "sr-ste":
        gradient = gradient + decay * (1 - mask) * weight
    return weight - lr * gradient


def train(layer, inputs, targets, controller, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (layer(inputs) - targets).square().sum()).backward()
        optimizer.step()


@pytest.mark.parametrize("estimator", ["sr-ste", "ste", "fixed"])
@pytest.mark.parametrize("transposable", [True, False])
def test_five_steps_are_those_written_by_hand(estimator, transposable):
    layer, inputs, targets = layer_and_data()
    controller = tmt.sparsify(layer, "2:4", transposable=transposable, estimator=estimator, decay=0.3, refresh_every=2)
    weight = layer.parametrizations.weight.original
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    controller.attach(optimizer)
    expected, mask = weight.detach().numpy().copy(), controller.masks()["weight"].numpy().copy()
    first = mask
    for step in range(1, 6):
        expected = step_by_hand(
            expected, mask, inputs.numpy(), targets.numpy(), estimator=estimator, decay=0.3, lr=0.01
        )
        if estimator != "fixed" and step % 2 == 0:
            mask = tm.transposable_mask(expected, "2:4") if transposable else tm.nm_mask(expected, "2:4")
        train(layer, inputs, targets, controller, optimizer)
        np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-12, atol=1e-14)
        assert np.array_equal(controller.masks()["weight"].numpy(), mask)
        assert torch.equal(layer.weight, weight.detach() * torch.from_numpy(mask))
    assert np.array_equal(first, mask) == (estimator == "fixed")


def test_the_forward_is_s_times_w_to_the_last_bit():
    layer, *_ = layer_and_data(dtype=torch.float32)
    with torch.no_grad():
        layer.weight[0, 0] = -1e-42  # a denormal, and a zero with a sign
        layer.weight[0, 1] = -0.0
        layer.weight[0, 2] = 3e38
    controller = tmt.sparsify(layer, "2:4")
    weight, mask = layer.parametrizations.weight.original, controller.masks()["weight"]
    assert torch.equal(layer.weight, weight.detach() * mask)
    controller.freeze()
    assert torch.equal(layer.weight, weight.detach() * mask)


@pytest.mark.parametrize("estimator", ["sr-ste", "ste", "fixed"])
def test_gradients_of_a_deep_network(estimator):
    """Against autograd on an explicit product, with the mask's gradient put in or left out by hand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).double()
    reference = copy.deepcopy(model)
    controller = tmt.sparsify(model, "2:4", estimator=estimator)
    inputs = torch.randn(3, 4, 4, 4, dtype=torch.float64)
    model(inputs).square().sum().backward()
    masks = controller.masks()
    masked = {name: parameter.detach().clone().requires_grad_() for name, parameter in reference.named_parameters()}
    values = {name: value.detach() * masks.get(name, 1) for name, value in masked.items()}
    for value in values.values():
        value.requires_grad_()
    torch.func.functional_call(reference, values, inputs).square().sum().backward()
    for name, mask in masks.items():
        expected = values[name].grad * mask if estimator == "fixed" else values[name].grad
        path, _, attribute = name.rpartition(".")
        found = model.get_submodule(path).parametrizations[attribute].original.grad
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_masks_are_refreshed_every_k_optimizer_steps_and_never_by_a_forward():
    layer, inputs, targets = layer_and_data()
    controller = tmt.sparsify(layer, "2:4", refresh_every=3, decay=0.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    controller.attach(optimizer)
    masks = [controller.masks()["weight"]]
    for _ in range(7):
        for _ in range(4):
            layer(inputs)
        train(layer, inputs, targets, controller, optimizer)
        masks.append(controller.masks()["weight"])
    changed = [not torch.equal(before, after) for before, after in itertools.pairwise(masks)]
    assert [step + 1 for step, change in enumerate(changed) if change] == [3, 6]
    assert [record.step for record in controller.history] == [3, 6]
    for record, before, after in zip(controller.history, (masks[0], masks[3]), (masks[3], masks[6]), strict=True):
        assert record.name == "weight"
        assert record.flipped == int((before != after).sum()) > 0
        assert record.flip_rate == record.flipped / 64
        assert record.size == 64
        assert record.seconds > 0


def test_evaluation_never_changes_a_mask():
    layer, inputs, _ = layer_and_data()
    controller = tmt.sparsify(layer, "2:4", refresh_every=1)
    controller.attach(torch.optim.SGD(layer.parameters(), lr=0.05))
    before = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(torch.randn(8, 8, dtype=torch.float64))
    layer.eval()
    for _ in range(10):
        layer(inputs).sum().backward()
    layer.train()
    for _ in range(10):
        layer(inputs)
    after = layer.state_dict()
    for key in before:
        assert torch.equal(before[key], after[key]) == (not key.endswith("original"))


def test_the_decay_alone():
    """With a loss of zero only the decay moves the weights: exactly lr * decay * W of the pruned ones."""
    layer, inputs, _ = layer_and_data()
    controller = tmt.sparsify(layer, "2:4", decay=0.5)
    weight, mask = layer.parametrizations.weight.original, controller.masks()["weight"]
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)
    controller.attach(optimizer)
    (layer(inputs) * 0).sum().backward()
    optimizer.step()
    torch.testing.assert_close(
        weight.detach(), torch.where(mask, before, before * (1 - 0.25 * 0.5)), rtol=1e-15, atol=0
    )


def test_weights_without_a_gradient_stay():
    layer, *_ = layer_and_data()
    controller = tmt.sparsify(layer, "2:4", decay=0.5)
    before = layer.parametrizations.weight.original.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)
    controller.attach(optimizer)
    optimizer.step()
    assert torch.equal(layer.parametrizations.weight.original, before)


def test_freeze_fixes_masks_and_stops_gradient_and_decay():
    layer, inputs, targets = layer_and_data()
    controller = tmt.sparsify(layer, "2:4", refresh_every=1, decay=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    controller.attach(optimizer)
    train(layer, inputs, targets, controller, optimizer)
    controller.freeze()
    mask, weight = controller.masks()["weight"], layer.parametrizations.weight.original
    before, refreshes = weight.detach().clone(), len(controller.history)
    train(layer, inputs, targets, controller, optimizer, steps=3)
    assert torch.equal(controller.masks()["weight"], mask)
    assert torch.equal(weight[~mask], before[~mask])
    assert not torch.equal(weight[mask], before[mask])
    assert len(controller.history) == refreshes
    assert controller.refresh() == []


def test_remove_bakes_the_zeros_and_leaves_an_ordinary_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2))
    names = [name for name, _ in model.named_parameters()]
    identities = {id(parameter) for parameter in model.parameters()}
    controller = tmt.sparsify(model, "2:4")
    masks, expected = controller.masks(), model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller.attach(optimizer)
    controller.remove()
    assert type(model[0]) is nn.Linear
    assert sorted(name for name, _ in model.named_parameters()) == sorted(names)
    assert {id(parameter) for parameter in model.parameters()} == identities
    assert torch.equal(model[0].weight, expected)
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)
    before = copy.deepcopy(model.state_dict())
    model[0](torch.ones(1, 8)).sum().backward()
    optimizer.step()  # the hooks are gone: the gradient alone moves the weights
    assert torch.allclose(model[0].weight, before["0.weight"] - 0.1 * model[0].weight.grad, atol=1e-7)
    controller.remove()


def test_assigning_a_weight_sets_the_dense_one():
    layer, *_ = layer_and_data(dtype=torch.float32)
    controller = tmt.sparsify(layer, "2:4")
    layer.weight = torch.ones(8, 8)
    assert torch.equal(layer.parametrizations.weight.original, torch.ones(8, 8))
    assert torch.equal(layer.weight, controller.masks()["weight"].float())


def test_refresh_now_and_a_weight_that_became_nan():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    controller = tmt.sparsify(model, "2:4")
    with torch.no_grad():
        for layer in model:
            layer.parametrizations.weight.original.copy_(torch.randn(8, 8))
        model[1].parametrizations.weight.original[3, 4] = float("nan")
    before = controller.masks()
    with pytest.raises(tm.InvalidArgumentError, match=r"`1.weight` must be finite, got 1 of 64"):
        controller.refresh()
    assert all(torch.equal(mask, before[name]) for name, mask in controller.masks().items())
    assert controller.history == []
    with torch.no_grad():
        model[1].parametrizations.weight.original[3, 4] = 0
    records = controller.refresh()
    assert [record.name for record in records] == ["0.weight", "1.weight"]
    weight = model[0].parametrizations.weight.original.detach().numpy()
    assert np.array_equal(controller.masks()["0.weight"].numpy(), tm.transposable_mask(weight, "2:4"))


@pytest.mark.parametrize("solver", ["greedy", "two_approximation", "min_cost_flow", MinCostFlow()])
def test_any_solver_refreshes(solver):
    layer, inputs, targets = layer_and_data()
    controller = tmt.sparsify(layer, "2:8", solver=solver, refresh_every=1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    controller.attach(optimizer)
    train(layer, inputs, targets, controller, optimizer)
    weight = layer.parametrizations.weight.original.detach()
    mask = controller.masks()["weight"].numpy()
    assert np.array_equal(mask, tm.transposable_mask(weight, "2:8", solver=solver))
    assert naive.offender(mask, 2, 8, "exactly") is None


def test_the_masked_forward_is_the_product_and_the_gradient_passes_straight_through():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8, bias=False)
    controller = tmt.sparsify(layer, "2:4")
    weight, mask = layer.parametrizations.weight.original, controller.masks()["weight"]
    assert torch.equal(layer.weight, torch.where(mask, weight, 0))
    x = torch.randn(5, 8)
    layer(x).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(8, 8))
    # Functional transforms go through it, as a gradient for each sample does.
    params = {"parametrizations.weight.original": weight.detach()}
    buffers = dict(layer.named_buffers())
    loss = lambda p, row: torch.func.functional_call(layer, (p, buffers), (row,)).sum()  # noqa: E731
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)["parametrizations.weight.original"]
    torch.testing.assert_close(each, x[:, None].expand(5, 8, 8))


class Remembering(Enumeration):
    """A solver with a warm start that notes how it was started."""

    warm_startable = True

    def __init__(self):
        super().__init__()
        self.seen = []

    def solve_blocks(self, blocks, pattern, *, threads, warm):
        self.seen.append(warm)
        super().solve_blocks(blocks, pattern, threads=threads, warm=warm)


def test_masks_are_found_from_nothing():
    solver = Remembering()
    controller = tmt.sparsify(nn.Conv2d(8, 12, 3), "2:4", solver=solver)
    controller.refresh()
    assert solver.seen
    assert not any(solver.seen)


def test_two_optimizers_each_serve_their_own_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    controller = tmt.sparsify(model, "2:4", refresh_every=2)
    fast, slow = (torch.optim.SGD(layer.parameters(), lr=0.1) for layer in model)
    assert controller.attach(fast).attach(slow) is controller
    for step in range(4):
        model(torch.randn(3, 8)).square().sum().backward()
        fast.step()
        if step % 2:
            slow.step()
    assert [(record.name, record.step) for record in controller.history] == [
        ("0.weight", 2),
        ("0.weight", 4),
        ("1.weight", 2),
    ]


def test_attach_refuses_what_it_cannot_serve():
    layer, *_ = layer_and_data()
    controller = tmt.sparsify(layer, "2:4")
    with pytest.raises(tm.InvalidTypeError, match=r"`optimizer` must be a torch.optim.Optimizer, got float"):
        controller.attach(0.1)
    with pytest.raises(tm.InvalidArgumentError, match="`optimizer` must hold a masked weight of this model, got none"):
        controller.attach(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    controller.attach(optimizer)
    with pytest.raises(tm.InvalidArgumentError, match="`optimizer` must not be attached yet, got it twice"):
        controller.attach(optimizer)
    with pytest.raises(tm.InvalidArgumentError, match="`model` must carry masks, got a Linear without any"):
        tmt.MaskController(nn.Linear(2, 2))


def test_what_is_printed():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    assert repr(tmt.sparsify(model, "2:4", estimator="ste")) == "MaskController(Sequential: 2 masks, 96 weights)"
    assert "(0): MaskedWeight(2:4 transposable, ste, step 0)" in repr(model)


def test_a_transformer_trains_and_evaluates_with_masks():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    controller = tmt.sparsify(model, "2:4", refresh_every=2)
    assert sorted(controller.masks()) == [
        "linear1.weight",
        "linear2.weight",
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    controller.attach(optimizer)
    inputs = torch.randn(4, 6, 16)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(inputs) - inputs.flip(1)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    with torch.no_grad():
        expected = model(inputs)
        controller.remove()
        torch.testing.assert_close(model(inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_masks_are_those_of_the_same_weights_on_the_cpu():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16)).cuda()
    controller = tmt.sparsify(model, "2:4", refresh_every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    controller.attach(optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 4, 4, 4, device="cuda")).square().mean().backward()
        optimizer.step()
    weight = model[3].parametrizations.weight.original.detach()
    assert controller.masks()["3.weight"].is_cuda
    assert np.array_equal(controller.masks()["3.weight"].cpu().numpy(), tm.transposable_mask(weight.cpu(), "2:4"))
    assert len(controller.history) == 4
    model.load_state_dict({key: value.cpu() for key, value in model.state_dict().items()})


@pytest.mark.parametrize("frozen", [False, True])
def test_a_cached_masked_weight_serves_a_whole_accumulation_window(frozen):
    def accumulate(window):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        controller = tmt.sparsify(model, "2:4")
        if frozen:
            controller.freeze()
        products = []
        for layer in model:
            layer.parametrizations.weight[0].register_forward_hook(lambda *call: products.append(call))
        with window:
            for _ in range(3):
                model(torch.randn(4, 16)).square().sum().backward()
        return [parameter.grad for parameter in model.parameters()], len(products)

    plain, products = accumulate(contextlib.nullcontext())
    cached, fewer = accumulate(parametrize.cached())
    assert (products, fewer) == (6, 2)
    for mine, theirs in zip(cached, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
