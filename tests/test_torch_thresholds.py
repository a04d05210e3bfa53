"""Dynamic Sparse Training: every gradient against the published formula, and what is saved, revived and refused."""

from __future__ import annotations

import copy
import io
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402

GRANULARITIES = ["layer", "row", "entry"]


def long_tail(x):
    """The derivative of the step as the paper writes it, a number at a time."""
    if -0.4 <= x <= 0.4:
        return 2 - 4 * abs(x)
    return 0.4 if abs(x) <= 1 else 0.0


def spread(threshold, granularity, shape):
    """The thresholds entry by entry; rows lie on axis 0."""
    if granularity == "row":
        return np.repeat(threshold, np.prod(shape[1:])).reshape(shape)
    return np.broadcast_to(threshold, shape)


def gathered(entries, granularity):
    """The sum over the entries that share a threshold."""
    if granularity == "row":
        return np.array([row.sum() for row in entries])
    return entries.sum() if granularity == "layer" else entries


def by_hand(weight, threshold, upstream, granularity, alpha):
    """dL/dW and dL/dt of  sum(upstream * W * S(|W| - t)) + alpha * sum exp(-t),  in numpy."""
    t = spread(threshold, granularity, weight.shape)
    distance = np.abs(weight) - t
    mask, slope = (distance >= 0).astype(float), np.vectorize(long_tail)(distance)
    for_weight = upstream * mask + upstream * weight * slope * np.sign(weight)
    for_threshold = -gathered(upstream * weight * slope, granularity) - alpha * np.exp(-threshold)
    return for_weight, for_threshold


def put_on(layer, weight, threshold, alpha, granularity, **options):
    """A controller on one layer whose weight and thresholds have the given values."""
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
    controller = tmt.sparsify_by_threshold(layer, alpha, granularity=granularity, **options)
    with torch.no_grad():
        layer.parametrizations.weight[0].threshold.copy_(torch.from_numpy(np.asarray(threshold)))
    return controller


def random_thresholds(rng, granularity, shape):
    return rng.uniform(0, 1.2, {"layer": (), "row": shape[:1], "entry": shape}[granularity])


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(5, 7), (6, 4, 3, 3)])
def test_one_step_of_sgd_is_the_written_one(granularity, shape):
    rng = np.random.default_rng(3)
    weight, upstream = rng.normal(0, 1, shape), rng.normal(0, 1, shape)
    weight.flat[:3] = [0.0, 2.5, -2.5]
    threshold = random_thresholds(rng, granularity, shape)
    layer = nn.Linear(7, 5) if len(shape) == 2 else nn.Conv2d(4, 6, 3)
    controller = put_on(layer.double(), weight, threshold, 0.7, granularity)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    controller.attach(optimizer)
    product = layer.weight
    kept = np.abs(weight) >= spread(threshold, granularity, shape)
    np.testing.assert_array_equal(product.detach().numpy(), np.where(kept, weight, 0))
    np.testing.assert_array_equal(controller.masks()["weight"].numpy(), kept)
    (product * torch.from_numpy(upstream)).sum().backward()
    optimizer.step()
    for_weight, for_threshold = by_hand(weight, threshold, upstream, granularity, 0.7)
    chain = layer.parametrizations.weight
    np.testing.assert_allclose(chain.original.detach().numpy(), weight - 0.01 * for_weight, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        chain[0].threshold.detach().numpy(), threshold - 0.01 * for_threshold, rtol=1e-12, atol=1e-14
    )


def test_the_derivative_of_the_step_at_its_corners():
    """One weight on each side of, and on, every corner of the long tail; t = 2, so that all distances occur."""
    distances = np.array([-1.5, -1, -0.75, -0.5, -0.375, -0.25, 0, 0.25, 0.375, 0.5, 0.75, 1, 1.5])
    layer = nn.Linear(len(distances), 1, bias=False).double()
    put_on(layer, (distances + 2)[None], [2.0], 0.0, "row")
    layer.weight.sum().backward()
    expected = [0, 0.4, 0.4, 0.4, 0.5, 1, 2, 1, 0.5, 0.4, 0.4, 0.4, 0]
    received = layer.parametrizations.weight.original.grad[0].numpy() - (distances >= 0)
    np.testing.assert_allclose(received, np.array(expected) * (distances + 2), rtol=1e-12)


def test_a_row_is_an_output_unit_of_every_layer():
    """Raising one threshold closes one output and no other, whatever axis the layer keeps it on."""
    layers = {
        "linear": (nn.Linear(6, 4), torch.ones(1, 6), 4),
        "grouped": (nn.Conv2d(4, 6, 3, groups=2), torch.ones(1, 4, 3, 3), 6),
        "transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), torch.ones(1, 4, 1, 1), 6),
    }
    for layer, inputs, outputs in layers.values():
        nn.init.zeros_(layer.bias)
        nn.init.uniform_(layer.weight, 0.5, 1.0)
        tmt.sparsify_by_threshold(layer, 0.1, allow=("grouped", "transposed"))
        threshold = layer.parametrizations.weight[0].threshold
        assert threshold.shape == (outputs,)
        for unit in range(outputs):
            with torch.no_grad():
                threshold.zero_()[unit] = 9
                answer = layer(inputs).flatten(2).abs().sum(2) if layer.weight.ndim > 2 else layer(inputs)
            assert [index for index in range(outputs) if answer[0, index] == 0] == [unit]


def test_a_layer_that_prunes_itself_away_starts_again_and_the_others_go_on():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    controller = tmt.sparsify_by_threshold(model, 0.0, granularity="layer", record_every=1)
    thresholds = controller.thresholds()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    controller.attach(optimizer)
    sizes = model[0].parametrizations.weight.original.detach().abs().flatten().sort(descending=True).values
    with torch.no_grad():
        thresholds["1.weight"].fill_(0.1)
        thresholds["0.weight"].fill_(sizes[4])  # 5 of 400 stay: above 1 %
    second = controller.densities()["1.weight"]

    def take_a_step():
        model(torch.ones(1, 20)).sum().backward()
        optimizer.step()

    take_a_step()
    assert controller.densities() == {"0.weight": pytest.approx(5 / 400), "1.weight": second}
    with torch.no_grad():
        thresholds["0.weight"].fill_(sizes[3])  # 4 of 400: 1 %
    take_a_step()
    assert controller.densities() == {"0.weight": 1.0, "1.weight": second}
    assert thresholds["0.weight"].item() == 0
    assert thresholds["1.weight"].item() == pytest.approx(0.1)
    first = [record for record in controller.history if record.name == "0.weight"]
    assert [(record.step, record.kept, record.flipped, record.resets) for record in first] == [
        (1, 5, 395, 0),
        (2, 400, 395, 1),
    ]
    assert first[0].density == 5 / 400


def build(seed=0, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
    controller = tmt.sparsify_by_threshold(model, 0.05, record_every=3, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    return model, controller.attach(optimizer), optimizer


def run(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        torch.manual_seed(1000 + step)
        optimizer.zero_grad()
        model(torch.randn(8, 4, 4, 4)).square().mean().backward()
        optimizer.step()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same_state(first, second):
    assert list(first) == list(second)
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(granularity):
    straight, whole, optimizer = build(granularity=granularity)
    run(straight, optimizer, 40)
    assert min(whole.densities().values()) < 0.9
    assert granularity == "entry" or sum(record.resets for record in whole.history) > 0

    broken, _, optimizer = build(granularity=granularity)
    run(broken, optimizer, 16)
    saved = through_a_file({"model": broken.state_dict(), "optimizer": optimizer.state_dict()})
    resumed, controller, optimizer = build(seed=99, granularity=granularity)
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    run(resumed, optimizer, 24, first=16)
    assert_same_state(resumed.state_dict(), straight.state_dict())
    assert controller.history == [record for record in whole.history if record.step > 16]


def test_frozen_masks_stay_through_training_saving_and_copying():
    model, controller, optimizer = build()
    run(model, optimizer, 4)
    before = controller.masks()
    controller.freeze()
    loaded, other, optimizer = build(seed=5)
    loaded.load_state_dict(through_a_file(model.state_dict()))
    run(loaded, optimizer, 5, first=4)
    twin = copy.deepcopy(other)
    for each in (controller, other, twin, tmt.ThresholdController(loaded)):
        assert all(torch.equal(mask, before[name]) for name, mask in each.masks().items())
    assert twin.model is not loaded
    assert twin.history == other.history == []
    assert other.record() == []
    pruned = ~before["4.weight"]
    assert pruned.any()
    assert (loaded[4].parametrizations.weight.original.grad[pruned] == 0).all()
    other.remove()
    assert type(loaded[4]) is nn.Linear
    assert torch.equal(loaded[4].weight != 0, before["4.weight"])
    assert "4.weight" in loaded.state_dict()


def test_what_was_learnt_becomes_n_m_plain_and_transposable():
    torch.manual_seed(0)
    teacher = nn.Linear(32, 32)
    inputs = torch.randn(128, 32)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    controller = tmt.sparsify_by_threshold(model, 0.02)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    controller.attach(optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        (model(inputs) - teacher(inputs).detach()).square().mean().backward()
        optimizer.step()
    assert max(controller.densities().values()) < 0.6
    controller.remove()
    for transposable in (True, False):
        converted = copy.deepcopy(model)
        report = tmt.convert_unstructured(converted, [inputs], 8, transposable=transposable, progress=False)
        assert [fit.name for fit in report.fits] == ["0.weight", "2.weight"]
        for fit in report.fits:
            mask = converted.get_parameter(fit.name).detach().numpy() != 0
            held = [mask.reshape(-1, 8), mask.T.reshape(-1, 8)] if transposable else [mask.reshape(-1, 8)]
            for lines in held:
                assert lines.sum(-1).max() <= fit.pattern.n < 8


def test_the_regulariser_is_added_once_whatever_computes_the_gradient():
    """Two micro-batches, and a maximising optimizer, move the thresholds by lr * alpha * exp(-t), t = 0, up."""
    for maximise in (False, True):
        layer = nn.Linear(8, 4)
        controller = tmt.sparsify_by_threshold(layer, 0.5)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.25, maximize=maximise)
        controller.attach(optimizer)
        for _ in range(2):
            (0 * layer(torch.ones(1, 8)).sum()).backward()
        optimizer.step()
        assert controller.thresholds()["weight"].tolist() == [0.125] * 4


def refused(error, message, call):
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert isinstance(caught.value, tm.TransmaskError)
    assert len(str(caught.value).splitlines()) == 1


def test_arguments_that_cannot_be_used_leave_the_model_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    before = copy.deepcopy(model.state_dict())
    call = tmt.sparsify_by_threshold
    refused(ValueError, "`granularity` must be", lambda: call(model, 0.1, granularity="column"))
    refused(ValueError, "`alpha` must be finite and at least 0, got -1.0.", lambda: call(model, -1))
    refused(ValueError, "`alpha` must be finite and at least 0, got nan.", lambda: call(model, float("nan")))
    refused(TypeError, "`alpha` must be a number", lambda: call(model, "2:4"))
    refused(ValueError, "`record_every` must be at least 1", lambda: call(model, 0.1, record_every=0))
    refused(ValueError, "`layers` must name", lambda: call(model, 0.1, layers="2"))
    refused(TypeError, "`model` must be a torch.nn.Module", lambda: call(None, 0.1))
    message = "`model` must have a weight that can take a mask, got none: weight: a look-up table"
    refused(ValueError, message, lambda: call(nn.Embedding(4, 4), 0.1))
    assert_same_state(model.state_dict(), before)
    with torch.no_grad():
        model[1].weight[2, 3] = float("nan")
    refused(ValueError, "`1.weight` must be finite", lambda: call(model, 0.1))
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]
    refused(ValueError, "`model` must carry thresholds, got a Sequential", lambda: tmt.ThresholdController(model))


def test_an_optimizer_without_the_thresholds_is_refused():
    model = nn.Linear(8, 8)
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = tmt.sparsify_by_threshold(model, 0.1)
    message = "`optimizer` must hold a threshold of this model, got none. Make it from model.parameters(), after"
    refused(ValueError, message, lambda: controller.attach(early))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"4.parametrizations.weight.0.threshold": torch.zeros(())},
            "`state_dict` must hold thresholds of shape (10,) for 4.weight, got (). "
            "Call sparsify_by_threshold with the granularity of the checkpoint.",
        ),
        ({"4.parametrizations.weight.0.mask": torch.ones(3, 3).bool()}, "must hold a mask of shape (10, 32)"),
        ({"4.parametrizations.weight.original": torch.ones(3, 3)}, "must hold a weight of shape (10, 32)"),
        ({"4.parametrizations.weight.0.threshold": torch.full((10,), torch.nan)}, "finite thresholds for 4.weight"),
        ({"4.parametrizations.weight.0.threshold": torch.ones(10, device="meta")}, "tensors on the meta device"),
        ({"4.parametrizations.weight.0.threshold": None}, "must hold thresholds for 4.weight, got a mask without any"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    model, _, optimizer = build()
    run(model, optimizer, 2)
    before = copy.deepcopy(model.state_dict())
    state = {key: value for key, value in (build(seed=1)[0].state_dict() | change).items() if value is not None}
    refused(tm.CheckpointError, message, lambda: model.load_state_dict(state))
    assert_same_state(model.state_dict(), before)


def test_n_m_masks_and_thresholds_in_one_model_inside_a_larger_one():
    def larger(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        tmt.sparsify(model, "2:4", layers="0")
        controller = tmt.sparsify_by_threshold(model, 0.1, layers="2", granularity="layer")
        assert "- 0.parametrizations.weight.original  already parametrised" in str(controller.report)
        with torch.no_grad():
            controller.thresholds()["2.weight"].fill_(0.1 * seed)
        return nn.ModuleDict({"inner": model})

    first, second = larger(1), larger(2)
    first.load_state_dict(through_a_file(second.state_dict()))
    assert_same_state(first.state_dict(), second.state_dict())
    inputs = torch.ones(1, 8)
    assert torch.equal(first["inner"](inputs), second["inner"](inputs))
    state = second.state_dict()
    state["inner.2.parametrizations.weight.0.threshold"] = torch.zeros(8)
    refused(tm.CheckpointError, "of shape () for 2.weight, got (8,)", lambda: first.load_state_dict(state))


def test_dense_and_n_m_states_are_told_from_thresholds():
    def dense():
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    model, masked = dense(), dense()
    tmt.sparsify_by_threshold(model, 0.1)
    tmt.sparsify(masked, "2:4")
    message = "got dense weights for 0.weight, 1.weight. Load it before sparsify_by_threshold."
    refused(tm.CheckpointError, message, lambda: model.load_state_dict(dense().state_dict()))
    message = "must hold thresholds for 0.weight, got a mask without any. Load it into a model under sparsify."
    refused(tm.CheckpointError, message, lambda: model.load_state_dict(masked.state_dict()))
    refused(tm.CheckpointError, "`state_dict` must hold masks", lambda: masked.load_state_dict(model.state_dict()))
    partial = dense()
    tmt.sparsify_by_threshold(partial, 0.1, layers="0")
    message = "got masks for 1.weight. Call sparsify_by_threshold(layers=...) as in the run that saved it."
    refused(tm.CheckpointError, message, lambda: partial.load_state_dict(model.state_dict()))
