"""Gram matrices against the layers themselves; least squares and AdaPrune against numpy and each other."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # two threads that wait for each other are slow on a busy machine

from torch import nn  # noqa: E402
from torch_networks import data, mask_only, two_layers  # noqa: E402

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402
from transmask.torch.reconstruction import conjugate_gradients, least_squares  # noqa: E402
from transmask.torch.reconstruction.gram import Gram, layer_rows  # noqa: E402

LAYERS = {
    "linear": (lambda: nn.Linear(8, 12), (6, 8)),
    "linear of sequences": (lambda: nn.Linear(8, 12, bias=False), (3, 5, 8)),
    "linear of one vector": (lambda: nn.Linear(8, 12), (8,)),
    "conv1d": (lambda: nn.Conv1d(4, 8, 3, stride=2, padding=2, dilation=2), (3, 4, 11)),
    "conv2d": (lambda: nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (3, 4, 9, 8)),
    "conv2d of one image": (lambda: nn.Conv2d(4, 8, 3), (4, 9, 8)),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=2, bias=False), (2, 8, 6, 5)),
    "same": (lambda: nn.Conv2d(4, 8, (4, 3), padding="same", padding_mode="circular"), (2, 4, 6, 5)),
    "valid": (lambda: nn.Conv2d(4, 8, 3, padding="valid"), (2, 4, 6, 5)),
    "reflect": (lambda: nn.Conv1d(4, 8, 3, padding=2, padding_mode="reflect"), (2, 4, 9)),
    "conv3d": (lambda: nn.Conv3d(4, 8, (2, 3, 1), groups=2), (2, 4, 5, 6, 4)),
}


@pytest.fixture(params=LAYERS)
def layer_and_input(request):
    make, shape = LAYERS[request.param]
    torch.manual_seed(1)
    return make().double(), torch.randn(shape, dtype=torch.float64)


def as_matrices(layer):
    """Weights with the bias as a last column, (groups, K, D)."""
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.detach().reshape(groups, layer.weight.shape[0] // groups, -1)
    if layer.bias is None:
        return weight
    return torch.cat([weight, layer.bias.detach().reshape(groups, -1, 1)], dim=2)


def outputs_as_rows(layer, inputs):
    """The layer's own outputs, (samples, K)."""
    outputs = layer(inputs).detach()
    if isinstance(layer, nn.Linear):
        return outputs.reshape(-1, layer.out_features)
    channel = outputs.ndim - len(layer.kernel_size) - 1
    return outputs.movedim(channel, -1).reshape(-1, layer.out_channels)


def test_the_rows_times_the_weights_are_the_layer(layer_and_input):
    layer, inputs = layer_and_input
    rows = torch.cat(list(layer_rows(layer, inputs)), dim=1)
    product = (rows @ as_matrices(layer).mT).movedim(0, 1).reshape(rows.shape[1], -1)
    torch.testing.assert_close(product, outputs_as_rows(layer, inputs))


def test_gram_matrices_give_the_error_of_the_outputs(layer_and_input):
    layer, inputs = layer_and_input
    gram = Gram(layer)
    for batch in (inputs, inputs * 0.5):
        gram.add(batch)
    pruned = mask_only(layer, "2:4", allow=("grouped",))
    difference = as_matrices(layer) - as_matrices(pruned)
    found = float((difference @ gram.matrix * difference).sum())
    expected = sum(
        float((outputs_as_rows(layer, batch) - outputs_as_rows(pruned, batch)).square().sum())
        for batch in (inputs, inputs * 0.5)
    )
    assert found == pytest.approx(expected, rel=1e-10)


def test_least_squares_are_those_of_numpy_row_by_row(layer_and_input):
    layer, inputs = layer_and_input
    batches = [inputs + 0.1 * torch.randn(inputs.shape, dtype=torch.float64) for _ in range(40)]
    dense = copy.deepcopy(layer)
    tmt.reconstruct(layer, batches, "2:4", method=tmt.LeastSquares(ridge=0.0), allow=("grouped",), progress=False)
    rows = torch.cat([torch.cat(list(layer_rows(dense, batch)), dim=1) for batch in batches], dim=1)
    for group in range(rows.shape[0]):
        design, weights, found = rows[group].numpy(), as_matrices(dense)[group].numpy(), as_matrices(layer)[group]
        for weight, answer in zip(weights, found.numpy(), strict=True):
            support = answer != 0
            expected = np.linalg.lstsq(design[:, support], design @ weight, rcond=None)[0]
            np.testing.assert_allclose(answer[support], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("exponent", [0.5, 2.0])
@pytest.mark.parametrize("chunk", [1 << 24, 96 * 5])
def test_conjugate_gradients_are_within_a_millionth_of_the_objective_of_every_row(exponent, chunk, monkeypatch):
    """Rows of all sizes, one of them zero and one fitted without an error, against numpy's solution for each."""
    monkeypatch.setattr(conjugate_gradients, "_CHUNK_ENTRIES", chunk)
    monkeypatch.setattr(least_squares, "_factorised_change", None)
    rng = np.random.default_rng(3)
    scale = np.arange(1.0, 96) ** (-exponent / 2) * np.exp(rng.standard_normal(95))
    inputs = rng.standard_normal((400, 95)) @ np.linalg.qr(rng.standard_normal((95, 95)))[0] * scale + 0.3
    design = np.concatenate([inputs, np.ones((400, 1))], axis=1)
    weight = rng.standard_t(3, (12, 96)) * 10.0 ** rng.integers(-20, 20, (12, 1))
    mask = rng.random((12, 96)) < 0.6
    mask[:, -1] = True
    weight[0], weight[1, ~mask[1]] = 0, 0
    tensors = (torch.from_numpy(array[None]) for array in (weight, mask, design.T @ design))
    iterations, addcmul = [], torch.addcmul
    monkeypatch.setattr(torch, "addcmul", lambda *args: iterations.append(args) or addcmul(*args))
    fit = tmt.LeastSquares(exact_up_to=0).fit(tmt.LayerProblem(*tensors, True), name="layer")
    assert len(iterations) < 60 * (1 + (chunk < 1 << 24) * 2)  # the zero row is done at once
    gram, excess = design.T @ design, []
    ridge = np.diag(np.append(np.full(95, 0.01 * np.square(inputs).sum(axis=0).mean()), 0.0))
    for row, kept, answer in zip(weight, mask, fit.weight[0].numpy(), strict=True):
        assert not answer[~kept].any()
        best = np.zeros(96)
        best[kept] = np.linalg.solve((gram + ridge)[kept][:, kept], (gram @ row + ridge @ row)[kept])
        error, change = row - best, best - row * kept
        least = error @ gram @ error + change @ ridge @ change
        assert (answer - best) @ (gram + ridge) @ (answer - best) <= 1e-6 * least + 1e-14 * np.square(row).sum()
        excess.append(change @ (gram + ridge) @ change / max(least, 1e-300))
    assert min(excess[2:]) > 0.01  # the masked rows are far from that


def test_wide_rows_that_conjugate_gradients_cannot_take_are_solved_exactly():
    """Between the inputs a row keeps and all inputs many samples, no ridge: only the whole Gram matrix is singular."""
    rng = np.random.default_rng(4)
    design, weight = rng.standard_normal((30, 40)), rng.standard_normal((8, 40))
    mask = np.tile(np.arange(40) % 2 == 0, (8, 1))
    tensors = [torch.from_numpy(array[None]) for array in (weight, mask, design.T @ design)]
    fit = tmt.LeastSquares(ridge=0.0, exact_up_to=0).fit(tmt.LayerProblem(*tensors, False), name="layer")
    expected = np.linalg.lstsq(design[:, ::2], design @ weight.T, rcond=None)[0]
    np.testing.assert_allclose(fit.weight[0, :, ::2], expected.T, rtol=1e-7)
    assert fit.note == "singular Gram matrix, ridge 0"


def test_the_ridge_pulls_towards_the_weights_that_were_there():
    layer = nn.Linear(8, 8).double()
    inputs = data(64, 8).double()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    mask = torch.from_numpy(tm.transposable_mask(weight, "2:4"))
    tmt.reconstruct(layer, [inputs], "2:4", method=tmt.LeastSquares(ridge=0.3), progress=False)
    design = np.concatenate([inputs.numpy(), np.ones((64, 1))], axis=1)
    penalty = 0.3 * np.square(inputs.numpy()).sum() / 8
    for row in range(8):
        support = np.append(mask[row].numpy(), True)
        old = np.append(weight[row].numpy(), bias[row].item())
        pull = np.diag(np.append(np.full(8, penalty), 0.0))[np.ix_(support, support)]
        left = design[:, support].T @ design[:, support] + pull
        right = design[:, support].T @ design @ old + pull @ old[support]
        found = np.append(layer.weight.detach()[row].numpy(), layer.bias.detach()[row].item())
        np.testing.assert_allclose(found[support], np.linalg.solve(left, right), rtol=1e-9, atol=1e-12)


def test_adaprune_reaches_what_least_squares_finds():
    reference = two_layers()
    errors = {}
    for name, method in (
        ("least squares", tmt.LeastSquares(ridge=0.0)),
        ("adaprune", "adaprune"),
        ("three steps", tmt.AdaPrune(max_iterations=3)),
    ):
        model = copy.deepcopy(reference)
        report = tmt.reconstruct(
            model, [data(256, 32)], "2:4", method=method, sequential=False, progress=False, layers="0"
        )
        (fit,) = report.fits
        errors[name] = fit.error_fitted
        masked = fit.error_masked
    assert errors["least squares"] <= errors["adaprune"] * (1 + 1e-6)
    assert errors["adaprune"] <= errors["least squares"] * 1.05
    assert errors["adaprune"] < errors["three steps"] < masked


def test_adaprune_never_returns_an_iterate_that_is_worse_than_the_start():
    """Huge rates make Adam diverge: the best iterate is the masked weight it began with."""
    model = two_layers()
    expected = mask_only(model, "2:4", layers="0")
    method = tmt.AdaPrune(max_iterations=20, learning_rate=1e3, bias_learning_rate=1e3)
    (fit,) = tmt.reconstruct(model, [data(64, 32)], "2:4", method=method, layers="0", progress=False).fits
    assert fit.error_fitted <= fit.error_masked * (1 + 1e-6)
    assert torch.equal(model[0].weight, expected[0].weight)


def test_a_singular_gram_matrix_is_met_with_a_ridge_that_is_reported():
    model = two_layers()
    dead = data(200, 32)
    dead[:, ::2] = 0  # half of the inputs never carry anything
    with pytest.warns(RuntimeWarning, match=r"the Gram matrix of 0.weight is singular with ridge 0: raised to 1e-10"):
        report = tmt.reconstruct(model, [dead], "2:4", method=tmt.LeastSquares(ridge=0.0), layers="0", progress=False)
    (fit,) = report.fits
    assert fit.note == "singular Gram matrix, ridge 1e-10"
    assert fit.error_fitted < fit.error_masked
    assert torch.isfinite(model[0].weight).all()
    (fit,) = tmt.reconstruct(two_layers(), [dead], "2:4", layers="0", progress=False).fits
    assert fit.note == "singular Gram matrix, ridge 0.01"
    (fit,) = tmt.reconstruct(two_layers(), [data(200, 32)], "2:4", layers="0", progress=False).fits
    assert fit.note == ""


def test_inputs_that_are_all_zero_leave_the_masked_weights():
    model = two_layers()
    expected = mask_only(model, "2:4", layers="0")
    (fit,) = tmt.reconstruct(model, [torch.zeros(8, 32)], "2:4", layers="0", progress=False).fits
    assert torch.equal(model[0].weight, expected[0].weight)
    assert fit.error_fitted <= fit.error_masked


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: tmt.LeastSquares(ridge=-1.0), "`ridge` must be finite and at least 0, got -1.0"),
        (lambda: tmt.AdaPrune(max_iterations=0), "`max_iterations` must be at least 1, got 0"),
        (lambda: tmt.AdaPrune(max_iterations=1.5), "`max_iterations` must be an integer, got 1.5"),
        (lambda: tmt.AdaPrune(learning_rate=0.0), "`learning_rate` must be positive and finite, got 0.0"),
        (lambda: tmt.AdaPrune(bias_learning_rate=float("nan")), "`bias_learning_rate` must be positive and finite"),
    ],
)
def test_options_of_methods_are_checked(make, text):
    with pytest.raises(tm.TransmaskError, match=text):
        make()
