"""Schedules of masked training: a decay and refreshes that depend on the step, and a dense tail."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import transmask as tm  # noqa: E402
from transmask.torch import sparsify  # noqa: E402


def nothing(layer):
    """A loss that leaves a gradient of zero on every weight."""
    return (layer(torch.ones(2, 8)) * 0).sum()


def step(layer, optimizer, loss=nothing):
    optimizer.zero_grad()
    loss(layer).backward()
    optimizer.step()


def build(**options):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8, bias=False)
    controller = sparsify(layer, "2:4", **options)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    controller.attach(optimizer)
    return layer, controller, optimizer


def test_a_decay_that_depends_on_the_step():
    ramp = {0: 0.0, 1: 0.125, 2: 0.25}
    layer, controller, optimizer = build(decay=ramp.get)
    weight, pruned = layer.parametrizations.weight.original, ~controller.masks()["weight"]
    expected = weight.detach().clone()
    for decay in ramp.values():
        step(layer, optimizer)
        expected[pruned] *= 1 - 0.5 * decay
        torch.testing.assert_close(weight.detach(), expected)


def test_refreshes_that_follow_a_schedule():
    seen = []

    def due(steps):
        seen.append(steps)
        return steps in (1, 2, 5)

    layer, controller, optimizer = build(refresh_every=due)
    for _ in range(6):
        step(layer, optimizer)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert [record.step for record in controller.history] == [1, 2, 5]
    controller.freeze()
    step(layer, optimizer)
    assert len(controller.history) == 3


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        (
            {"decay": lambda steps: -1.0},
            tm.InvalidArgumentError,
            "`decay` must be finite and at least 0, got -1.0 after 0 s",
        ),
        ({"decay": lambda steps: "x"}, tm.InvalidTypeError, "`decay` must be"),
        ({"decay": lambda steps: float("nan")}, tm.InvalidArgumentError, "got nan after 0 steps"),
    ],
)
def test_a_schedule_that_gives_no_decay_is_an_error(options, kind, text):
    layer, _, optimizer = build(**options)
    before = layer.parametrizations.weight.original.detach().clone()
    with pytest.raises(kind, match=text):
        step(layer, optimizer)
    assert torch.equal(layer.parametrizations.weight.original, before)


def test_a_dense_tail_goes_on_with_the_dense_weights_and_the_optimizers_state():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    controller = sparsify(model, "2:4", refresh_every=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    controller.attach(optimizer)

    def loss(net):
        return (net(torch.linspace(-1, 1, 24).reshape(3, 8)) - 1).square().mean()

    for _ in range(3):
        step(model, optimizer, loss)
    original = model[0].parametrizations.weight.original
    before = original.detach().clone()
    controller.dense()
    assert model[0].weight is original
    assert torch.equal(model[0].weight, before)
    assert (model[0].weight != 0).all()
    twin = copy.deepcopy(model)
    other = torch.optim.AdamW(twin.parameters(), lr=0.01)
    names = {id(p): n for n, p in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        other.state[twin.get_parameter(names[id(parameter)])] = copy.deepcopy(state)
    for _ in range(3):
        step(model, optimizer, loss)
        step(twin, other, loss)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), parameter)
    assert len(controller.history) == 6
    model.load_state_dict(model.state_dict())
    with pytest.raises(tm.InvalidArgumentError, match="must carry masks, got a Sequential without any"):
        tm.torch.MaskController(model)
