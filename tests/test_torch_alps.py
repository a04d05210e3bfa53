"""ALPS against all masks of tiny problems, numpy on its support, one pass on larger ones, and on hostile inputs."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # two threads that wait for each other are slow on a busy machine

import naive  # noqa: E402
from torch import nn  # noqa: E402
from torch_networks import data, two_layers  # noqa: E402

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402

LINES = [line for line in itertools.product((False, True), repeat=4) if sum(line) == 2]
MASKS = [mask for mask in map(np.array, itertools.product(LINES, repeat=4)) if (mask.sum(axis=0) == 2).all()]


def problem(weight, gram, pattern, *, has_bias=False, transposable=True):
    """A layer problem of one group from numpy arrays, with the mask of squared Wanda scores."""
    inputs = len(gram) - has_bias

    def find_mask(scores):
        if transposable:
            return torch.from_numpy(tm.transposable_mask(scores.numpy(), pattern))
        return torch.from_numpy(tm.nm_mask(scores.numpy(), pattern))

    mask = np.ones((1, *weight.shape), bool)
    mask[:, :, :inputs] = find_mask(torch.from_numpy(weight[None, :, :inputs] ** 2 * gram.diagonal()[:inputs])).numpy()
    tensors = (torch.from_numpy(array) for array in (weight[None], mask, gram[None]))
    return tmt.LayerProblem(*tensors, has_bias, find_mask)


def spectral(rng, size, exponent):
    """A Gram matrix with eigenvalues i^-exponent and inputs of different sizes."""
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    scale = np.exp(0.5 * rng.standard_normal(size))
    return (basis * np.arange(1.0, size + 1) ** -exponent) @ basis.T * scale * scale[:, None]


def least_error(design, weight, mask):
    """The error of the best weights on a mask, row by row; numpy's, from the inputs themselves."""
    total = 0.0
    for row, kept in zip(weight, mask, strict=True):
        outputs = design @ row
        answer = np.linalg.lstsq(design[:, kept], outputs, rcond=None)[0]
        total += np.square(outputs - design[:, kept] @ answer).sum()
    return total


def test_on_tiny_problems_the_error_is_close_to_that_of_the_best_of_all_masks():
    assert len(MASKS) == 90
    rng = np.random.default_rng(0)
    best, found, one_pass = [], [], []
    for _ in range(25):
        design = rng.standard_normal((20, 4)) @ rng.standard_normal((4, 4))
        weight = rng.standard_normal((4, 4))
        layer = problem(weight, design.T @ design, "2:4")
        fit = tmt.ALPS(ridge=1e-6).fit(layer, name="tiny")
        scale = np.square(design @ weight.T).sum()
        best.append(min(least_error(design, weight, mask) for mask in MASKS) / scale)
        found.append(least_error(design, weight, fit.mask[0].numpy()) / scale)
        one_pass.append(least_error(design, weight, layer.mask[0].numpy()) / scale)
        assert layer.error(fit.weight) == pytest.approx(found[-1], rel=1e-3)
        assert torch.equal(fit.weight != 0, fit.mask)
    assert min(np.subtract(found, best)) > -1e-12
    assert sum(found) < 1.4 * sum(best) < 0.9 * sum(one_pass)


@pytest.mark.parametrize(("pattern", "transposable"), [("2:4", True), ("8:16", True), ("2:4", False)])
def test_it_is_better_than_one_pass_on_every_problem(pattern, transposable):
    rng = np.random.default_rng(1)
    for exponent in (0.5, 1.5):
        layer = problem(rng.standard_t(5, (64, 64)), spectral(rng, 64, exponent), pattern, transposable=transposable)
        fit = tmt.ALPS().fit(layer, name="layer")
        one_pass = tmt.LeastSquares().fit(layer, name="layer")
        assert layer.error(fit.weight) < 0.97 * layer.error(one_pass.weight)


@pytest.mark.parametrize("bias", [True, False])
def test_a_model_gets_valid_masks_and_the_weights_of_numpy_on_them(bias):
    torch.manual_seed(0)
    reference = nn.Sequential(
        nn.Conv2d(8, 16, 2, groups=2, bias=bias), nn.Flatten(), nn.Linear(64, 8, bias=bias)
    ).double()
    model = copy.deepcopy(reference)
    inputs = data(300, 72).double().reshape(300, 8, 3, 3) + 1
    report = tmt.reconstruct(
        model, [inputs], "2:4", method=tmt.ALPS(ridge=1e-9), sequential=False, allow=("grouped",), progress=False
    )
    convolution = (model[0].weight.detach() != 0).reshape(2, 8, 4, 2, 2).movedim((1, 2), (3, 4)).numpy()
    for mask in [*convolution.reshape(-1, 8, 4), (model[2].weight.detach() != 0).numpy()]:
        assert naive.offender(mask, 2, 4, "exactly") is None
    design = reference[:2](inputs).detach().numpy()
    design = np.concatenate([design, np.ones((300, 1))], axis=1) if bias else design
    old, new = (as_rows(network[2]) for network in (reference, model))
    error = least_error(design, old, new != 0)
    assert report.fits[1].error_fitted == pytest.approx(error / np.square(design @ old.T).sum(), rel=1e-5)
    masked = np.square(design @ (old * (new != 0) - old).T).sum() / np.square(design @ old.T).sum()
    assert report.fits[1].error_masked == pytest.approx(masked, rel=1e-5)


def as_rows(layer):
    """Weights, with the bias as a last column, as numpy."""
    weight = layer.weight.detach()
    return (weight if layer.bias is None else torch.cat([weight, layer.bias.detach()[:, None]], dim=1)).numpy()


def rescaled(gram, scale):
    """The Gram matrix with the inputs multiplied by `scale`."""
    return gram * scale * scale[:, None]


HOSTILE = {
    "no sample": lambda gram: 0 * gram,
    "rank one": lambda gram: np.outer(gram[0], gram[0]),
    "inputs that are always zero": lambda gram: rescaled(gram, np.arange(16) % 3 > 0),
    "equal inputs": lambda gram: np.kron(gram[::2, ::2], np.ones((2, 2))),
    "huge": lambda gram: gram * 1e150,
    "tiny": lambda gram: gram * 1e-150,
    "one huge input": lambda gram: rescaled(gram, np.where(np.arange(16) == 3, 1e9, 1.0)),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("method", [tmt.ALPS(), tmt.LeastSquares(exact_up_to=0), tmt.LeastSquares()])
def test_hostile_inputs_get_valid_masks_and_finite_weights_that_are_no_worse_than_the_mask(kind, method):
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((16, 17)) * np.repeat([1e-30, 1, 1e12, 0], 4)[:, None]
    gram = HOSTILE[kind](spectral(rng, 16, 1.0))
    # A last input of ones over 100 samples, of mean zero in every other input.
    gram = np.pad(gram, (0, 1))
    gram[16, 16] = 0 if kind == "no sample" else 100
    layer = problem(weight, gram, "2:4", has_bias=True)
    fit = method.fit(layer, name="layer")
    mask = layer.mask if fit.mask is None else fit.mask
    assert naive.offender(mask[0, :, :16].numpy(), 2, 4, "exactly") is None
    assert mask[0, :, 16].all()
    assert torch.isfinite(fit.weight).all()
    assert not fit.weight[~mask].any()
    fitted = (layer.weight - fit.weight)[0].numpy()
    masked = (layer.weight * ~mask)[0].numpy()
    for new, old in zip(fitted, masked, strict=True):  # every row, not only the large ones
        assert new @ gram @ new <= old @ gram @ old * (1 + 1e-6)


@pytest.mark.parametrize("method", [tmt.LeastSquares(exact_up_to=0), tmt.LeastSquares()])
@pytest.mark.parametrize("gram", [np.full((8, 8), np.nan), np.eye(8) + 1e9 * np.eye(8)[::-1]])
def test_a_gram_matrix_that_cannot_be_ends_in_an_error(gram, method):
    layer = problem(np.eye(8), np.eye(8), "2:4")
    layer = tmt.LayerProblem(layer.weight, layer.mask, torch.from_numpy(gram[None]), False)
    with pytest.raises(tm.TransmaskError, match=r"`problem` must be finite .* got one for layer that no ridge makes"):
        method.fit(layer, name="layer")


def test_without_a_search_for_masks_it_says_so():
    layer = problem(np.eye(4), np.eye(4), "2:4")
    layer = tmt.LayerProblem(layer.weight, layer.mask, layer.gram, False)
    with pytest.raises(tm.TransmaskError, match=r"`problem` must have a `find_mask` for ALPS, got None for layer"):
        tmt.ALPS().fit(layer, name="layer")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: tmt.ALPS(ridge=0.0), "`ridge` must be finite and at least 1e-10, got 0.0"),
        (lambda: tmt.ALPS(ridge=float("nan")), "`ridge` must be finite and at least 1e-10, got nan"),
        (lambda: tmt.ALPS(max_iterations=0), "`max_iterations` must be at least 1, got 0"),
        (lambda: tmt.LeastSquares(exact_up_to=-1), "`exact_up_to` must be at least 0, got -1"),
    ],
)
def test_options_are_checked(make, text):
    with pytest.raises(tm.TransmaskError, match=text):
        make()


def test_the_name_stands_for_the_method():
    reference = two_layers()
    by_name, by_instance = copy.deepcopy(reference), copy.deepcopy(reference)
    tmt.reconstruct(by_name, [data(256, 32)], "2:4", method="alps", progress=False)
    tmt.reconstruct(by_instance, [data(256, 32)], "2:4", method=tmt.ALPS(), scores="wanda", progress=False)
    assert torch.equal(by_name[2].weight, by_instance[2].weight)
    assert not torch.equal(by_name[2].weight, reference[2].weight)
