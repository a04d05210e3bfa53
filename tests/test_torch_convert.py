"""From unstructured zeros to N:M: the binomial rule, and models that are converted by it."""

from __future__ import annotations

import copy
from fractions import Fraction
from math import comb

import pytest

torch = pytest.importorskip("torch")

import naive  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402


def kept_by_hand(sparsity, m, confidence):
    """The rule in exact arithmetic, with the sum written out."""
    p = Fraction(sparsity)
    supported = [
        k
        for k in range(m)
        if k == 0 or sum(comb(m, i) * p**i * (1 - p) ** (m - i) for i in range(k, m + 1)) > Fraction(confidence)
    ]
    return m - max(supported)


@pytest.mark.parametrize("m", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("confidence", [0.05, 0.1, 0.5, 0.95, 0.999])
def test_the_rule_is_the_binomial_tail(m, confidence):
    for sparsity in (0.0, 0.1, 0.3, 0.5, 0.625, 0.75, 0.9, 0.97, 1.0):
        pattern = tmt.supported_pattern(sparsity, m, confidence=confidence)
        assert (pattern.n, pattern.m) == (kept_by_hand(sparsity, m, confidence), m)


def test_the_rule_means_what_it_says():
    """Of random groups with that many zeros, at least the stated share can hold the pattern without losing anything."""
    generator = torch.Generator().manual_seed(0)
    for sparsity, m in ((0.5, 4), (0.7, 8), (0.9, 16)):
        n = tmt.supported_pattern(sparsity, m, confidence=0.9).n
        kept = (torch.rand(20000, m, generator=generator) > sparsity).sum(1)
        assert (kept <= n).float().mean() > 0.89
        assert (kept <= n - 1).float().mean() < 0.91


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: tmt.supported_pattern(1.5, 4), "`sparsity` must lie between 0 and 1, got 1.5"),
        (lambda: tmt.supported_pattern(float("nan"), 4), "`sparsity` must lie between 0 and 1, got nan"),
        (lambda: tmt.supported_pattern(0.5, 4, confidence=95), "`confidence` must lie between 0 and 1, got 95"),
        (lambda: tmt.supported_pattern(0.5, 4.0), "`m` must be an integer, got 4.0"),
        (lambda: tmt.supported_pattern(0.5, 0), "`m` must be at least 1, got 0"),
        (lambda: tmt.supported_pattern("0.5", 4), "`sparsity` must be a number, got str"),
        (lambda: tmt.supported_pattern(None, 4), "`sparsity` must be a number, got NoneType"),
        (lambda: tmt.supported_pattern(torch.ones(2), 4), "`sparsity` must be a number, got Tensor"),
        (lambda: tmt.supported_pattern(0.5, 4, confidence=[1]), "`confidence` must be a number, got list"),
        (lambda: tmt.convert_unstructured(nn.Linear(8, 8), [], 4.0), "`m` must be an integer, got 4.0"),
        (lambda: tmt.convert_unstructured(nn.Linear(8, 8), [], "2:4"), "`m` must be an integer, got '2:4'"),
    ],
)
def test_bad_arguments_of_the_rule(call, text):
    with pytest.raises(tm.TransmaskError, match=text):
        call()


def sparse_model(*sparsities):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    for layer, sparsity in zip(model[::2], sparsities, strict=True):
        prune.remove(prune.l1_unstructured(layer, "weight", sparsity), "weight")
    return model


def inputs():
    return [torch.randn(256, 32, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("transposable", [True, False])
def test_each_layer_gets_the_pattern_its_zeros_support(transposable):
    model = sparse_model(0.9, 0.1, 0.6)
    before = copy.deepcopy(model)
    report = tmt.convert_unstructured(model, inputs(), 8, transposable=transposable, progress=False)
    expected = {
        f"{index}.weight": f"{kept_by_hand((model_layer.weight == 0).float().mean().item(), 8, 0.95)}:8"
        for index, model_layer in ((0, before[0]), (4, before[4]))
    }
    assert {fit.name: str(fit.pattern) for fit in report.fits} == expected
    assert dict(report.left)["2.weight"] == "10.0% zeros support no pattern sparser than 8:8"
    assert torch.equal(model[2].weight, before[2].weight)
    for fit in report.fits:
        mask = (model.get_parameter(fit.name) != 0).numpy()
        if transposable:
            assert naive.offender(mask, fit.pattern.n, 8, "at_most") is None
        assert (mask.reshape(-1, 8).sum(1) <= fit.pattern.n).all()
        assert fit.error_fitted <= fit.error_masked < 0.2


def test_the_refit_is_towards_the_unstructured_model():
    model = sparse_model(0.8, 0.8, 0.8)
    reference, masked = copy.deepcopy(model), copy.deepcopy(model)
    tmt.convert_unstructured(model, inputs(), 8, confidence=0.1, progress=False)
    tmt.sparsify(masked, tmt.supported_pattern(0.8, 8, confidence=0.1)).remove()
    held_out = torch.randn(512, 32, generator=torch.Generator().manual_seed(2))
    errors = [float((net(held_out) - reference(held_out)).square().sum().detach()) for net in (model, masked)]
    assert errors[0] < 0.7 * errors[1]


def test_options_reach_reconstruct():
    model = sparse_model(0.9, 0.9, 0.9)
    report = tmt.convert_unstructured(
        model, inputs(), 4, method=tmt.AdaPrune(max_iterations=2), scores="wanda", batch_norm=False, progress=False
    )
    assert len(report.fits) == 3
    with pytest.raises(TypeError, match="unexpected keyword argument 'patern'"):
        tmt.convert_unstructured(sparse_model(0.9, 0.9, 0.9), inputs(), 4, patern="2:4")


@pytest.mark.parametrize(
    ("m", "text"),
    [
        (8, r"`model` must have a weight with enough zeros for N < 8, got none: 0.weight: 0.0% zeros support no"),
        (1, "`m` must be at least 2, got 1"),
    ],
)
def test_a_model_that_supports_nothing_is_left_alone(m, text):
    model = sparse_model(0.0, 0.0, 0.0)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(tm.InvalidArgumentError, match=text):
        tmt.convert_unstructured(model, inputs(), m, progress=False)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_pruning_that_is_not_permanent_yet_is_explained():
    model = nn.Sequential(prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.9))
    with pytest.raises(tm.InvalidArgumentError, match=r"make it permanent with prune.remove first"):
        tmt.convert_unstructured(model, [torch.ones(2, 8)], 4, progress=False)


def test_weights_with_a_live_mask_are_named_beside_those_with_too_few_zeros():
    model = nn.Sequential(prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.9), nn.Linear(8, 8))
    with pytest.raises(tm.InvalidArgumentError) as caught:
        tmt.convert_unstructured(model, [torch.ones(2, 8)], 4, progress=False)
    assert "0.weight_orig: pruned by torch.nn.utils.prune; make it permanent with prune.remove" in str(caught.value)
    assert "1.weight: 0.0% zeros" in str(caught.value)


class OwnAttention(nn.MultiheadAttention):
    def forward(self, inputs):
        return super().forward(inputs, inputs, inputs, need_weights=False)[0]


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = OwnAttention(32, 2)
        self.head = nn.Linear(32, 32)

    def forward(self, inputs):
        return self.head(self.attention(inputs))


def test_attention_with_a_forward_of_its_own_is_skipped_and_listed_whatever_its_zeros():
    model = Attending()
    for module, name in (
        (model.attention, "in_proj_weight"),
        (model.attention.out_proj, "weight"),
        (model.head, "weight"),
    ):
        prune.remove(prune.l1_unstructured(module, name, 0.9), name)
    before = model.attention.in_proj_weight.clone()
    report = tmt.convert_unstructured(model, inputs(), 8, progress=False)
    assert [fit.name for fit in report.fits] == ["head.weight"]
    for name in ("attention.in_proj_weight", "attention.out_proj.weight"):
        assert (
            dict(report.left)[name]
            == "inside an attention with a forward of its own, where its inputs cannot be observed"
        )
    assert torch.equal(model.attention.in_proj_weight, before)


@pytest.mark.parametrize("name", ["attention", "attention.in_proj_weight", "attention.out_proj"])
@pytest.mark.parametrize("as_mapping", [True, False])
def test_attention_that_is_asked_for_by_name_is_an_error(name, as_mapping):
    names = ["head.weight", name]
    options = {"pattern": dict.fromkeys(names, "2:4")} if as_mapping else {"pattern": "2:4", "layers": iter(names)}
    model = Attending()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(tm.InvalidArgumentError, match=r"got 'attention.*: inside an attention with a forward"):
        tmt.reconstruct(model, inputs(), progress=False, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
