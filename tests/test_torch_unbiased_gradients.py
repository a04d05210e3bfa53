"""Sparse gradients without bias: the expectation, the variance, the pattern, and what a layer does with them."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import scipy.optimize

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import transmask as tm  # noqa: E402
from transmask.torch import draw_unbiased, prune_gradients, sparsify  # noqa: E402

DRAWS = 20_000


def drawn_often(values, pattern, seed=0):
    """Draw a group often: (DRAWS, M)."""
    generator = torch.Generator().manual_seed(seed)
    return draw_unbiased(values.expand(DRAWS, -1).contiguous(), pattern, generator=generator)


def least_variance(sizes, n):
    """The least sum of variances, from a solver that knows nothing of thresholds: minimise sum y^2 (1 / p - 1)."""
    sizes = sizes[sizes > 0]
    if len(sizes) <= n:
        return 0.0
    found = scipy.optimize.minimize(
        lambda p: (sizes**2 * (1 / p - 1)).sum(),
        np.full(len(sizes), n / len(sizes)),
        bounds=[(1e-6, 1.0)] * len(sizes),
        constraints={"type": "eq", "fun": lambda p: p.sum() - n},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    return found.fun


GROUPS = [
    ("2:4", [1.0, -2.0, 3.0, 0.5]),
    ("2:4", [100.0, 1.0, -1.0, 2.0]),
    ("2:4", [50.0, -100.0, 1.0, 2.0]),
    ("2:4", [0.0, 0.0, 1.0, -1.0]),
    ("2:4", [0.0, 0.0, 0.0, -7.0]),
    ("2:4", [0.0, 0.0, 0.0, 0.0]),
    ("2:4", [1.0, 1.0, 1.0, 1.0]),
    ("1:2", [3.0, -1.0]),
    ("1:4", [1e-3, 2e-3, -4e-3, 1e-3]),
    ("4:8", [9.0, -8.0, 1.0, 1.0, 0.1, 0.2, -0.3, 0.4]),
    ("3:4", [5.0, 4.0, 3.0, 2.0]),
]


@pytest.mark.parametrize(("pattern", "group"), GROUPS)
def test_the_expectation_is_right_and_no_estimate_has_less_variance(pattern, group):
    values = torch.tensor(group, dtype=torch.float64)
    drawn = drawn_often(values, pattern)
    n = tm.Pattern.of(pattern).n
    assert int((drawn != 0).sum(1).max()) <= n
    deviation = drawn.var(0, correction=0).sqrt()
    assert (abs(drawn.mean(0) - values) <= 5 * deviation / DRAWS**0.5 + 1e-9).all()
    least = least_variance(values.abs().numpy(), n)
    assert float(deviation.square().sum()) == pytest.approx(least, rel=0.06, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_group_of_any_axis_holds_the_pattern(dtype):
    torch.manual_seed(1)
    for shape, dim in [((3, 10, 6), 1), ((9,), 0), ((4, 4), -1), ((0, 4), 0), ((4, 0), 0)]:
        values = torch.randn(shape, dtype=dtype)
        drawn = draw_unbiased(values, "2:4", dim=dim)
        assert (drawn.shape, drawn.dtype) == (values.shape, dtype)
        for group in drawn.movedim(dim, -1).split(4, -1):
            assert ((group != 0).sum(-1) <= 2).all()
        assert ((drawn == 0) | (drawn.sign() == values.sign())).all()


def test_what_is_not_finite_stays():
    values = torch.tensor([1.0, torch.inf, 2.0, 3.0, 1.0, 2.0, 3.0, torch.nan])
    assert torch.equal(draw_unbiased(values, "2:4").isfinite(), values.isfinite())


@pytest.mark.parametrize("size", [3e38, 1e-40])
def test_huge_and_tiny_values_are_drawn_alike(size):
    shares = torch.tensor([0.3, 0.1, 0.2, 0.2]).expand(DRAWS, 4)
    drawn = draw_unbiased(shares * size, "2:4")
    assert int((drawn != 0).sum(1).max()) == 2
    torch.testing.assert_close((drawn / size).mean(0), shares[0], rtol=0.05, atol=0)


@pytest.mark.parametrize("start", [0.0, 1e-7, 0.5, 1 - 2**-24])
def test_rounding_never_draws_one_too_many(monkeypatch, start):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, start))
    drawn = draw_unbiased(torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0)), "8:16")
    assert int((drawn != 0).sum(1).max()) == 8


def gradients(model, inputs):
    model.zero_grad()
    inputs = inputs.clone().requires_grad_()
    model(inputs).square().sum().backward()
    return [inputs.grad, *(parameter.grad.clone() for parameter in model.parameters())]


def test_only_the_gradients_of_weights_are_drawn_and_their_mean_is_the_gradient():
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double(), torch.randn(3, 7, 6).double()
    exact = gradients(model, inputs)
    with prune_gradients(model, "2:4") as pruned:
        assert pruned.names == ("0", "2")
        draws = [gradients(model, inputs) for _ in range(600)]
    for index, truth in enumerate(exact):
        found = torch.stack([draw[index] for draw in draws])
        if truth.ndim == 2:
            assert found.std(0).max() > 0
            assert (abs(found.mean(0) - truth) <= 5 * found.std(0) / len(draws) ** 0.5 + 1e-12).all()
        else:
            torch.testing.assert_close(found, truth.expand_as(found))
    for mine, theirs in itertools.zip_longest(gradients(model, inputs), exact):
        torch.testing.assert_close(mine, theirs)


def test_the_gradient_of_a_weight_is_a_product_with_two_of_four_tokens():
    layer = nn.Linear(16, 8, bias=False)
    prune_gradients(layer)
    layer(torch.eye(16)).sum().backward()  # the gradient of the weight is the drawn gradient of the output, transposed
    assert ((layer.weight.grad.reshape(8, 4, 4) != 0).sum(2) == 2).all()
    assert ((layer.weight.grad == 0) | (layer.weight.grad == 2)).all()


@pytest.mark.parametrize("frozen", [False, True])
def test_with_masks_training_goes_on_and_patterns_hold(frozen):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    controller = sparsify(model, "2:4", refresh_every=5)
    if frozen:
        controller.freeze()
    prune_gradients(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    controller.attach(optimizer)
    inputs, targets, losses = torch.randn(64, 16), torch.randn(64, 8), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert all(tm.check_mask(mask.numpy(), "2:4").ok for mask in controller.masks().values())


def test_a_copy_has_the_option_and_no_layer_is_changed_by_it():
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    prune_gradients(layer)
    twin, inputs = copy.deepcopy(layer), torch.randn(8, 8)
    torch.manual_seed(1)
    first = gradients(layer, inputs)
    torch.manual_seed(1)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(gradients(twin, inputs), first, strict=True))
    assert torch.equal(layer(inputs), nn.functional.linear(inputs, layer.weight, layer.bias))
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_under_autocast_checkpoints_and_frozen_parameters():
    torch.manual_seed(0)
    layer, inputs = nn.Linear(16, 16), torch.randn(32, 16, requires_grad=True)
    prune_gradients(layer)
    with torch.autocast("cpu", torch.bfloat16):
        checkpoint(layer, inputs, use_reentrant=False).float().square().sum().backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == inputs.grad.dtype == torch.float32
    layer.weight.requires_grad_(False)
    layer.zero_grad()
    layer(inputs).sum().backward()
    assert layer.weight.grad is None
    with torch.no_grad():
        assert not layer(inputs).requires_grad


def test_hooks_that_were_there_before_keep_their_gradients():
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 8), torch.randn(4, 8)
    layer.register_forward_hook(lambda module, args, output: 2 * output)
    exact = gradients(layer, inputs)
    prune_gradients(layer)
    of_inputs, _, of_bias = gradients(layer, inputs)
    torch.testing.assert_close((of_inputs, of_bias), (exact[0], exact[2]))


def test_attention_is_left_alone():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    assert prune_gradients(model).names == ("linear1", "linear2")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: prune_gradients(nn.Conv1d(4, 4, 1)), "`model` must have a linear layer, got a Conv1d"),
        (lambda: prune_gradients(3), "`model` must be a torch.nn.Module, got int."),
        (lambda: prune_gradients(nn.Linear(4, 4), "0:4"), "`pattern` must keep at least 1 entry, got '0:4'."),
        (lambda: draw_unbiased(torch.ones(4), "0:4"), "`pattern` must keep at least 1 entry, got '0:4'."),
        (lambda: draw_unbiased(torch.ones(4, dtype=torch.int64), "2:4"), "`values` must be a tensor of floats, got"),
        (lambda: draw_unbiased([1.0], "2:4"), "`values` must be a tensor of floats, got list."),
        (lambda: draw_unbiased(torch.ones(4), "2:4", dim=1), "`dim` must be an axis of `values`, got 1"),
    ],
)
def test_bad_input_gets_one_line(call, text):
    with pytest.raises(tm.TransmaskError) as caught:
        call()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
