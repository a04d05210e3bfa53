"""Reconstruction of whole models: on data they have not seen, in every form of input, and when things go wrong."""

from __future__ import annotations

import copy
import importlib
import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # two threads that wait for each other are slow on a busy machine

import naive  # noqa: E402
from rich.console import Console  # noqa: E402
from torch import nn  # noqa: E402
from torch_networks import data, mask_only, output_error, two_layers  # noqa: E402

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402
from transmask.torch.reconstruction.gram import layer_rows  # noqa: E402


@pytest.mark.parametrize("pattern", ["2:4", "3:4", "4:8"])
@pytest.mark.parametrize("sequential", [True, False])
def test_held_out_error_falls_by_a_third_on_two_layers(pattern, sequential):
    reference = two_layers()
    model = copy.deepcopy(reference)
    report = tmt.reconstruct(model, [data(256, 32), data(256, 32, 1)], pattern, sequential=sequential, progress=False)
    held_out = data(512, 32, seed=9)
    masked = output_error(mask_only(reference, pattern), reference, held_out)
    assert output_error(model, reference, held_out) <= 0.7 * masked
    for fit in report.fits:
        assert 0 < fit.error_fitted < fit.error_masked
        weight = model.get_parameter(fit.name).detach()
        n, m = (int(number) for number in pattern.split(":"))
        assert naive.offender((weight != 0).numpy(), n, m, "exactly") is None


def test_sequential_layers_see_the_inputs_of_the_pruned_network():
    reference = two_layers()
    inputs = data(256, 32)
    model = copy.deepcopy(reference)
    report = tmt.reconstruct(model, [inputs], "1:4", progress=False)
    hidden = torch.relu(model[0](inputs)).detach().double()
    dense = reference[2].weight.detach().double(), reference[2].bias.detach().double()
    fitted = model[2].weight.detach().double(), model[2].bias.detach().double()
    outputs = hidden @ dense[0].T + dense[1]
    error = (hidden @ fitted[0].T + fitted[1] - outputs).square().sum() / outputs.square().sum()
    assert report.fits[1].error_fitted == pytest.approx(float(error), rel=1e-4)
    independent = tmt.reconstruct(copy.deepcopy(reference), [inputs], "1:4", sequential=False, progress=False)
    assert independent.fits[0] == report.fits[0]
    assert independent.fits[1] != report.fits[1]


class Backwards(nn.Module):
    """Registers its layers in an order that is not that of execution, and uses one of them twice."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(16, 8)
        self.first = nn.Linear(16, 16)

    def forward(self, x):
        return self.last(torch.relu(self.first(torch.relu(self.first(input=x)))))


def test_layers_are_treated_in_the_order_in_which_they_run():
    torch.manual_seed(0)
    model = Backwards()
    report = tmt.reconstruct(model, [data(64, 16)], "2:4", progress=False)
    assert [fit.name for fit in report.fits] == ["first.weight", "last.weight"]


@pytest.mark.parametrize("scores", ["wanda", "obs", lambda w, gram: w.double().square() / inverse_diagonal(gram)])
def test_masks_maximise_the_scores_asked_for(scores):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 2, groups=2)
    inputs = torch.randn(16, 8, 5, 5) * torch.linspace(0.1, 3, 8)[:, None, None]
    weight = layer.weight.detach().clone()
    rows = torch.cat(list(layer_rows(layer, inputs)), dim=1)[:, :, :-1].double()
    if scores == "wanda":
        value = weight.square().reshape(2, 4, -1) * rows.square().sum(dim=1)[:, None, :]
    elif scores == "obs":  # its ridge is 1 %, and the bias is refitted: its inputs are ones
        ridge = 0.01 * rows.square().sum(dim=1).mean(dim=1)[:, None] * torch.ones(rows.shape[2]).double()
        gram = torch.nn.functional.pad(rows, (0, 1), value=1.0)
        gram = gram.mT @ gram + torch.diag_embed(torch.nn.functional.pad(ridge, (0, 1)))
        value = weight.double().square().reshape(2, 4, -1) / inverse_diagonal(gram)[:, :, :-1]
    else:
        value = weight.double().square().reshape(2, 4, -1) / inverse_diagonal(rows.mT @ rows)
    tmt.reconstruct(
        layer, [inputs], "2:4", allow=("grouped",), progress=False, scores=flat(scores) if callable(scores) else scores
    )
    value = value.reshape(2, 4, 4, 2, 2).movedim((1, 2), (3, 4)).numpy()
    expected = tm.transposable_mask(value, "2:4")
    found = (layer.weight.detach() != 0).reshape(2, 4, 4, 2, 2).movedim((1, 2), (3, 4)).numpy()
    assert np.array_equal(found, expected)
    assert not np.array_equal(expected, tm.transposable_mask(weight.reshape(2, 4, 4, 2, 2), "2:4", axes=(1, 2)))


def test_plain_masks_are_the_same_for_squares():
    """Wanda's products have the order of their squares along a group, also where squares would overflow."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 8).double()
    inputs = torch.randn(64, 16).double() * torch.logspace(-3, 3, 16).double()
    layer.weight.data *= 1e155
    expected = tm.nm_mask((layer.weight * inputs.norm(dim=0)).detach().numpy(), "2:4")
    transposable = tm.transposable_mask((layer.weight / 1e155 * inputs.norm(dim=0)).detach().square().numpy(), "2:4")
    for wanted, mask in ((False, expected), (True, transposable)):
        pruned = copy.deepcopy(layer)
        tmt.reconstruct(pruned, [inputs], "2:4", scores="wanda", transposable=wanted, progress=False)
        assert np.array_equal((pruned.weight != 0).numpy(), mask)


def inverse_diagonal(gram):
    """The diagonal of the inverse, one row for every group: SparseGPT's denominator."""
    return torch.linalg.inv(gram).diagonal(dim1=1, dim2=2)[:, None, :]


def flat(scores):
    def callback(weight, gram):
        groups = len(gram)
        values = scores(weight.reshape(groups, len(weight) // groups, -1), gram[:, :-1, :-1])
        return values.reshape(weight.shape)

    return callback


def test_batch_norm_is_re_estimated_on_the_pruned_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
    batches = [torch.randn(32, 4, 6, 6) for _ in range(3)]
    model.train()
    report = tmt.reconstruct(model, batches, "2:4", progress=False)
    assert report.batch_norm_layers == 1
    outputs = [model[0](batch).detach() for batch in batches]
    torch.testing.assert_close(model[1].running_mean, sum(part.mean((0, 2, 3)) for part in outputs) / 3)
    torch.testing.assert_close(model[1].running_var, sum(part.var((0, 2, 3)) for part in outputs) / 3)
    assert model[1].momentum == 0.1
    assert all(module.training for module in model.modules())
    before = model[1].running_mean.clone()
    tmt.sparsify(model, "2:4").remove()
    dense = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8))
    assert tmt.reconstruct(dense, batches, "2:4", batch_norm=False, progress=False).batch_norm_layers == 0
    assert torch.equal(dense[1].running_mean, torch.zeros(8))
    assert torch.equal(model[1].running_mean, before)


def test_modes_are_restored_and_no_hook_is_left():
    model = two_layers()
    model[0].eval()
    tmt.reconstruct(model, [data(64, 32)], "2:4", progress=False)
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("batches", "options"),
    [
        ([data(64, 32)], {}),
        ([(data(64, 32), torch.zeros(64))], {}),
        ([[data(64, 32)]], {}),
        ([{"input": data(64, 32)}], {}),
        (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data(64, 32)), batch_size=16), {}),
        ([(0, data(64, 32))], {"forward": lambda model, batch: model(batch[1])}),
    ],
)
def test_batches_come_in_many_forms(batches, options):
    reference = two_layers()
    model, other = copy.deepcopy(reference), copy.deepcopy(reference)
    tmt.reconstruct(model, batches, "2:4", progress=False, **options)
    tmt.reconstruct(other, [data(64, 32)], "2:4", progress=False)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


class Unreached(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(32, 8), nn.Linear(32, 8)

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize(
    ("make", "calibration", "options", "text"),
    [
        (two_layers, [], {}, "`calibration` must hold at least one batch, got none"),
        (two_layers, [torch.ones(4, 31)], {}, r"must hold batches that the model can run on, got batch 0, of shape"),
        (two_layers, [data(8, 32), torch.ones(4, 31)], {"sequential": False}, r"got batch 1, of shape \(4, 31\)"),
        (two_layers, [data(8, 32), torch.ones(4, 31)], {}, r"got batch 1, of shape \(4, 31\), on which it fails: mat1"),
        (two_layers, [{"inputs": data(8, 32)}], {}, "got batch 0, a dict, on which it fails: "),
        (two_layers, iter([data(8, 32)]), {}, "`calibration` must be iterable more than once, got a list_iterator"),
        (two_layers, data(8, 32), {}, "`calibration` must be an iterable of batches, got Tensor. Pass \\[batch\\]"),
        (
            two_layers,
            [data(8, 32) * float("inf")],
            {},
            "must give finite activations, got NaN or infinite inputs of 0",
        ),
        (Unreached, [data(8, 32)], {"layers": "unused"}, "must reach at least one layer, got no input for unused.w"),
        (two_layers, [data(8, 32)], {"forward": lambda model, batch: None}, "must reach at least one layer, got no"),
        (two_layers, [data(8, 32), data(0, 32)], {}, r"with at least one row, got batch 1, of shape \(0, 32\)"),
        (two_layers, [{"input": data(0, 32)}], {}, "with at least one row, got batch 0, a dict"),
        (two_layers, [data(8, 32)], {"row_weights": 3}, "`row_weights` must be a callable or None, got 3"),
        (
            two_layers,
            [data(8, 32)],
            {"row_weights": lambda b: 3},
            "must return a torch.Tensor or None, got int",
        ),
        (
            two_layers,
            [data(8, 32)],
            {"row_weights": lambda b: -b[:, 0].abs()},
            "must return finite numbers of at least",
        ),
        (two_layers, [data(8, 32)], {"pattern": "64:128"}, "must have a weight that can take '64:128', got none"),
        (two_layers, [data(8, 32)], {"method": "adaprun"}, "`method` must be one of .* Did you mean 'adaprune'?"),
        (two_layers, [data(8, 32)], {"method": 3}, "`method` must be a name or a ReconstructionMethod, got 3"),
        (two_layers, [data(8, 32)], {"scores": "wand"}, "`scores` must be one of .* Did you mean 'wanda'?"),
        (
            two_layers,
            [data(8, 32)],
            {"scores": 3},
            "`scores` must be one of 'magnitude', 'wanda', 'obs' or a callable, got 3",
        ),
        (two_layers, [data(8, 32)], {"scores": lambda w, g: 3}, "`scores` must return a torch.Tensor, got int for 0.w"),
        (two_layers, [data(8, 32)], {"scores": lambda w, g: w[1:]}, r"`scores` must return the shape of the weight"),
        (two_layers, [data(8, 32)], {"scores": lambda w, g: w / 0}, "`0.weight` must be finite"),
        (two_layers, [data(8, 32)], {"pattern": {}}, "`pattern` must name at least one weight, got an empty mapping"),
        (two_layers, [data(8, 32)], {"pattern": {"0.weight": "2:4"}, "skip_ends": True}, "must be left out where"),
        (two_layers, [data(8, 32)], {"pattern": {"1.weight": "2:4"}}, "`pattern` must name parameters or modules"),
        (
            lambda: nn.ConvTranspose1d(8, 8, 2),
            [data(8, 8)],
            {"allow": ("transposed",)},
            "neither a linear layer nor a convolution",
        ),
    ],
)
def test_bad_input_gets_one_error_and_leaves_the_model_as_it_was(make, calibration, options, text):
    torch.manual_seed(0)
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(tm.TransmaskError, match=text) as caught:
        tmt.reconstruct(model, calibration, **{"pattern": "2:4", "progress": False, **options})
    assert "\n" not in str(caught.value)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_interruption_leaves_the_model_as_it_was():
    model = nn.Sequential(two_layers(), nn.BatchNorm1d(16))
    before = copy.deepcopy(model.state_dict())
    calls = []

    def forward(net, batch):
        calls.append(batch)
        if len(calls) == 2:  # statistics are re-estimated: both layers have been refitted by then
            raise KeyboardInterrupt
        net(batch)

    with pytest.raises(KeyboardInterrupt):
        tmt.reconstruct(model, [data(8, 32)], "2:4", forward=forward, progress=False)
    assert len(calls) == 2
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_each_weight_may_have_its_own_pattern():
    model = nn.Sequential(two_layers(), nn.Linear(16, 8))
    report = tmt.reconstruct(model, [data(64, 32)], {"0.2.weight": "1:4", "1.weight": "2:4"}, progress=False)
    assert [(fit.name, str(fit.pattern)) for fit in report.fits] == [("0.2.weight", "1:4"), ("1.weight", "2:4")]
    assert dict(report.left)["0.0.weight"] == "not in `pattern`"
    assert (model[0][0].weight != 0).all()
    assert float((model[0][2].weight != 0).float().mean()) == 0.25


def test_the_report_prints_as_a_table():
    text = str(tmt.reconstruct(two_layers(), [data(64, 32)], "2:4", progress=False)).splitlines()
    assert [line.split()[:2] for line in text] == [
        ["+", "0.weight"],
        ["+", "2.weight"],
        ["-", "0.bias"],
        ["-", "2.bias"],
    ]
    assert " -> " in text[0]


def test_plain_patterns_and_half_precision():
    model = two_layers().to(torch.bfloat16)
    report = tmt.reconstruct(model, [data(128, 32).bfloat16()], "2:4", transposable=False, progress=False)
    assert model[0].weight.dtype == torch.bfloat16
    assert ((model[0].weight != 0).reshape(-1, 4).sum(1) == 2).all()
    assert all(fit.error_fitted < fit.error_masked for fit in report.fits)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_and_nowhere_else(terminal, monkeypatch):
    shown = io.StringIO()
    module = importlib.import_module("transmask.torch.reconstruction.reconstruct")
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=shown, force_terminal=terminal, width=120))
    (fit,) = tmt.reconstruct(two_layers(), [data(64, 32)], "2:4", layers="0").fits
    assert ("0.weight: error" in shown.getvalue()) == terminal
    assert bool(shown.getvalue()) == terminal
    assert fit.name == "0.weight"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["least_squares", "adaprune"])
def test_on_cuda_the_result_is_that_of_the_cpu(method):
    reference = two_layers()
    there, here = copy.deepcopy(reference).cuda(), copy.deepcopy(reference)
    tmt.reconstruct(there, [data(256, 32).cuda()], "2:4", method=method, progress=False)
    tmt.reconstruct(here, [data(256, 32)], "2:4", method=method, progress=False)
    for mine, theirs in zip(there.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-3, atol=1e-4)
