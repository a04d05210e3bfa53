"""The method for torch.nn.utils.prune, and the exchange of states with sparsified models."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import naive  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 10))


def pruned_network(seed=0, n=2, m=4, **options):
    model = network(seed)
    for index in (0, 3):
        assert tmt.transposable(model[index], "weight", n, m, **options) is model[index]
    return model


def test_the_mask_is_the_optimal_one_and_the_product_is_used():
    dense = network()
    model = pruned_network()
    for index, axes in ((0, (0, 1)), (3, (-2, -1))):
        mask = tm.transposable_mask(dense[index].weight, "2:4", axes=axes)
        assert np.array_equal(model[index].weight_mask.numpy() == 1, mask)
        assert torch.equal(model[index].weight_orig, dense[index].weight)
        assert torch.equal(model[index].weight, dense[index].weight * torch.from_numpy(mask))
    inputs = torch.randn(2, 4, 4, 4)
    model(inputs).sum().backward()
    pruned = model[3].weight_mask == 0
    assert (model[3].weight_orig.grad[pruned] == 0).all()


def test_remove_makes_it_permanent():
    model = pruned_network()
    mask = model[3].weight_mask.bool()
    prune.remove(model[3], "weight")
    assert torch.equal(model[3].weight != 0, mask)
    assert not prune.is_pruned(model[3])


def test_importance_scores_replace_the_weight():
    scores = torch.rand(10, 32)
    layer = tmt.transposable(nn.Linear(32, 10), "weight", 1, 4, importance_scores=scores, constraint="at_most")
    expected = tm.transposable_mask(scores, "1:4", constraint="at_most")
    assert np.array_equal(layer.weight_mask.numpy() == 1, expected)


@pytest.mark.parametrize("before", ["l1_unstructured", "transposable"])
@pytest.mark.parametrize("scores", [None, torch.rand(16, 16, generator=torch.Generator().manual_seed(1)) + 1])
def test_pruning_again_is_optimal_within_what_is_left(before, scores):
    """Scores that know nothing of the first pruning must not spend the second on entries that are gone."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    if before == "transposable":
        tmt.transposable(layer, "weight", 2, 4)
    else:
        prune.l1_unstructured(layer, "weight", 0.4)
    first = layer.weight_mask.bool()
    tmt.transposable(layer, "weight", 1, 4, importance_scores=scores)
    again = layer.weight_mask.bool()
    assert not (again & ~first).any()
    assert tm.check_mask(again, "1:4").ok
    left = (layer.weight_orig.detach().abs() if scores is None else scores) * first
    values = left.double().numpy()
    assert naive.kept_value(values, again.numpy()) == naive.matrix_value(values, 1, 4, "exactly")


def test_a_container_of_methods_is_what_torch_makes_of_two():
    layer = tmt.transposable(tmt.transposable(nn.Linear(8, 8), "weight", 3, 4), "weight", 2, 4)
    (hook,) = layer._forward_pre_hooks.values()
    assert isinstance(hook, prune.PruningContainer)
    assert [type(method) for method in hook] == [tmt.TransposablePruning] * 2


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda layer: tmt.transposable(layer, "wieght", 2, 4), ValueError, "`name` must be a parameter of the module"),
        (lambda layer: tmt.transposable(layer, "bias", 2, 4), ValueError, "got 'bias': 1 axis: not a matrix"),
        (lambda layer: tmt.transposable(layer, "weight", 4, 2), ValueError, "`n` must be at most m = 2, got 4"),
        (lambda layer: tmt.transposable(layer, "weight", 4, 4), ValueError, "prune at least 1, got '4:4'"),
        (
            lambda layer: tmt.transposable(layer, "weight", 2, 4, importance_scores=torch.ones(2, 2)),
            ValueError,
            r"`importance_scores` must have the shape of the weight, \(8, 8\), got \(2, 2\)",
        ),
        (
            lambda layer: tmt.transposable(layer, "weight", 2, 4, importance_scores=torch.full((8, 8), torch.inf)),
            ValueError,
            "`weight` must be finite",
        ),
        (
            lambda layer: tmt.transposable(layer, "weight", 3, 6, solver="enumeration"),
            ValueError,
            "'enumeration' must be given",
        ),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_bad_input_leaves_the_module_alone(call, error, text, again):
    layer = nn.Linear(8, 8)
    if again:
        tmt.transposable(layer, "weight", 2, 4)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    hooks = list(layer._forward_pre_hooks.values())
    with pytest.raises(error, match=text) as caught:
        call(layer)
    assert isinstance(caught.value, tm.TransmaskError)
    assert list(layer.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert list(layer._forward_pre_hooks.values()) == hooks


def test_a_sparsified_model_loads_a_pruned_one():
    source = pruned_network(seed=1)
    model = network()
    controller = tmt.sparsify(model, "2:4", refresh_every=7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    controller.attach(optimizer)
    optimizer.step()
    saved = source.state_dict()
    kept = dict(saved)
    assert str(model.load_state_dict(saved)) == "<All keys matched successfully>"
    assert saved.keys() == kept.keys()  # the caller's own dictionary is not touched
    inputs = torch.randn(3, 4, 4, 4)
    assert torch.equal(model(inputs), source(inputs))
    for name, mask in controller.masks().items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, source.get_buffer(f"{name}_mask").bool())
    assert model[3].parametrizations.weight[0].step == 1  # prune knows no steps: the count goes on


def test_a_pruned_model_loads_a_sparsified_one():
    source = network(seed=1)
    controller = tmt.sparsify(source, "2:4")
    model = pruned_network()
    assert str(model.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
    inputs = torch.randn(3, 4, 4, 4)
    assert torch.equal(model(inputs), source(inputs))
    for name, mask in controller.masks().items():
        loaded = model.get_buffer(f"{name}_mask")
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded.bool(), mask)


def test_and_back_again_inside_a_larger_model():
    source = nn.ModuleDict({"net": pruned_network(seed=1)})
    middle = nn.ModuleDict({"net": network()})
    tmt.sparsify(middle, "2:4")
    middle.load_state_dict(source.state_dict())
    target = nn.ModuleDict({"net": pruned_network(seed=2)})
    target.load_state_dict(middle.state_dict())
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


@pytest.mark.parametrize("make", [lambda: sparsified("1:4"), lambda: pruned_network(n=1)])
def test_neither_loads_masks_of_another_pattern(make):
    for target in (pruned_network(), sparsified("2:4")):
        before = copy.deepcopy(dict(target.state_dict()))
        with pytest.raises(tm.CheckpointError, match="`state_dict` must hold masks"):
            target.load_state_dict(make().state_dict())
        assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def sparsified(pattern):
    model = network(seed=3)
    tmt.sparsify(model, pattern)
    return model


def test_masks_of_a_weight_pruned_twice_are_loaded_where_that_was_done():
    source, target = pruned_network(), pruned_network(seed=1)
    for model in (source, target):
        for index in (0, 3):
            tmt.transposable(model[index], "weight", 1, 4)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target[3].weight_mask, source[3].weight_mask)
