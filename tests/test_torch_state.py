"""What is saved, copied and compiled comes back the same; a resumed run is the uninterrupted one, bit for bit."""

from __future__ import annotations

import copy
import io

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402


def build(seed=0, solver="auto", pattern="2:4", **options):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 4, 10)
    )
    controller = tmt.sparsify(model, pattern, refresh_every=3, decay=0.01, solver=solver, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    controller.attach(optimizer)
    return model, controller, optimizer


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


@pytest.mark.parametrize("solver", ["auto", "greedy"])
@pytest.mark.parametrize("stop", [2, 3, 7])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(solver, stop):
    straight, _, optimizer = build(solver=solver)
    run(straight, optimizer, 12)

    broken, _, optimizer = build(solver=solver)
    run(broken, optimizer, stop)
    saved = through_a_file({"model": broken.state_dict(), "optimizer": optimizer.state_dict()})
    resumed, _, optimizer = build(seed=99, solver=solver)
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    run(resumed, optimizer, 12 - stop, first=stop)
    assert_same_state(resumed.state_dict(), straight.state_dict())


def test_a_state_that_0_1_0_saved_with_its_duals_is_loaded():
    model, _, optimizer = build()
    run(model, optimizer, 4)
    state = model.state_dict()
    assert not [key for key in state if key.endswith("_extra_state")]
    key = "5.parametrizations.weight.0._extra_state"
    old = {**state, key: torch.ones(176), "0.parametrizations.weight.0._extra_state": torch.empty(0)}
    loaded, *_ = build(seed=5)
    assert not any(loaded.load_state_dict(old))
    assert_same_state(loaded.state_dict(), state)
    assert old[key].numel() == 176
    alone, *_ = build(seed=6)
    assert not any(alone[5].load_state_dict({key[2:]: value for key, value in old.items() if key.startswith("5.")}))
    assert torch.equal(alone[5].weight, model[5].weight)


def test_a_frozen_model_stays_frozen_when_loaded():
    model, controller, optimizer = build()
    run(model, optimizer, 4)
    controller.freeze()
    saved = through_a_file(model.state_dict())
    loaded, controller, optimizer = build(seed=5)
    loaded.load_state_dict(saved)
    before = controller.masks()
    run(loaded, optimizer, 7, first=4)
    assert all(torch.equal(mask, before[name]) for name, mask in controller.masks().items())
    assert controller.history == []
    pruned = ~before["5.weight"]
    weight = loaded[5].parametrizations.weight.original
    assert (weight.grad[pruned] == 0).all()


def test_the_state_holds_masks_as_bool_and_survives_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    model, _, optimizer = build(solver="greedy")
    run(model, optimizer, 4)
    state = model.state_dict()
    assert state["5.parametrizations.weight.0.mask"].dtype == torch.bool
    assert state["5.parametrizations.weight.0.step"] == 4
    assert state["5.parametrizations.weight.0.pattern"].tolist() == [2, 4]
    save_file(state, tmp_path / "model.safetensors")
    loaded, *_ = build(seed=7, solver="greedy")
    loaded.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert_same_state(loaded.state_dict(), state)


def test_a_deep_copy_is_independent_and_trains_on():
    model, controller, optimizer = build()
    run(model, optimizer, 2)
    twin = copy.deepcopy(model)
    assert_same_state(twin.state_dict(), model.state_dict())
    before = controller.masks()
    twin_controller = tmt.MaskController(twin)
    twin_optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
    twin_controller.attach(twin_optimizer)
    run(twin, twin_optimizer, 4)
    assert [record.step for record in twin_controller.history] == [3, 3, 6, 6]
    assert any(not torch.equal(mask, before[name]) for name, mask in twin_controller.masks().items())
    assert all(torch.equal(mask, before[name]) for name, mask in controller.masks().items())
    assert str(twin_controller.report).splitlines()[0] == "- 0.bias    without a mask"
    assert [choice.name for choice in twin_controller.report.taken] == ["0.weight", "5.weight"]
    twin_controller.remove()
    assert type(twin[5]) is nn.Linear


def test_model_and_controller_are_copied_together():
    model, controller, optimizer = build()
    run(model, optimizer, 3)
    twin, twin_controller = copy.deepcopy((model, controller))
    assert twin_controller.model is twin
    assert twin_controller.history == controller.history
    assert twin_controller.report.taken[0].module is twin[0]
    twin_optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin_controller.attach(twin_optimizer)
    run(twin, twin_optimizer, 3)
    assert [len(each.history) for each in (controller, twin_controller)] == [2, 4]
    twin_controller.remove()
    assert type(twin[5]) is nn.Linear
    assert nn.utils.parametrize.is_parametrized(model[5])


def test_an_averaged_model_follows_masks_and_can_be_finished():
    model, controller, optimizer = build()
    average = torch.optim.swa_utils.AveragedModel(model)
    run(model, optimizer, 6)
    average.update_parameters(model)
    averaged = tmt.MaskController(average.module)
    average.module.load_state_dict({**average.module.state_dict(), **masks_of(model)})
    averaged.remove()
    for name, mask in controller.masks().items():
        assert (average.module.get_parameter(name)[~mask] == 0).all()


def masks_of(model):
    return {key: value for key, value in model.state_dict().items() if key.endswith(".mask")}


def test_a_whole_model_is_saved_once_the_masks_are_removed():
    model, controller, optimizer = build()
    run(model, optimizer, 3)
    controller.remove()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert_same_state(loaded.state_dict(), model.state_dict())
    assert tm.check_mask(loaded[5].weight != 0, "2:4").ok


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated")  # torch's own
def test_torch_compile_follows_refreshes_and_freezing():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    controller = tmt.sparsify(model, "2:4", refresh_every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    controller.attach(optimizer)
    twin, twin_controller = copy.deepcopy((model, controller))
    twin_optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    twin_controller.attach(twin_optimizer)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for step in range(8):
        if step == 5:
            controller.freeze()
            twin_controller.freeze()
        inputs = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
        for net, attached in ((model, optimizer), (compiled, twin_optimizer)):
            attached.zero_grad()
            net(inputs).square().sum().backward()
            attached.step()
    assert len(twin_controller.history) == 4
    assert any(record.flipped for record in twin_controller.history)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[key], value)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"pattern": "1:4"}, "`state_dict` must hold masks of 2:4, got 1:4 for 0.weight. Sparsify the model with"),
        ({"constraint": "at_most"}, "must hold masks that are transposable 2:4 'exactly', got another for 5.weight: "),
        ({"transposable": False}, "must hold masks that are transposable 2:4 'exactly', got another for 0.weight: "),
    ],
)
def test_masks_of_another_kind_are_refused_and_the_model_is_unchanged(other, text):
    source, *_ = build(seed=1, **other)
    if other.get("constraint") == "at_most":
        mask = source[5].parametrizations.weight[0].mask
        mask[0] = False  # at most, but not exactly
    model, *_ = build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(tm.CheckpointError, match=text):
        model.load_state_dict(source.state_dict())
    assert_same_state(model.state_dict(), before)


def test_damaged_states_are_refused_and_the_model_is_unchanged():
    model, *_ = build()
    before = copy.deepcopy(model.state_dict())
    key = "5.parametrizations.weight.0."
    for damage, text in (
        ({f"{key}mask": torch.full((10, 32), 2.0)}, "masks of 0 and 1, got another for 5.weight"),
        ({f"{key}mask": torch.ones(3, 3, dtype=torch.bool)}, r"a mask of shape \(10, 32\) for 5.weight, got \(3, 3\)"),
    ):
        with pytest.raises(tm.CheckpointError, match=text):
            model.load_state_dict({**before, **damage})
        assert_same_state(model.state_dict(), before)


def test_a_wider_constraint_takes_a_narrower_mask():
    source, *_ = build(seed=1)
    model, *_ = build(constraint="at_most")
    model.load_state_dict(source.state_dict())
    assert_same_state(model.state_dict(), source.state_dict())


def test_a_model_inside_another_checks_its_masks_too():
    inner, *_ = build()
    outer = nn.ModuleDict({"net": inner})
    wrong, *_ = build(seed=1, pattern="1:4")
    with pytest.raises(tm.CheckpointError, match=r"must hold masks of 2:4, got 1:4 for 0\.weight"):
        outer.load_state_dict({f"net.{key}": value for key, value in wrong.state_dict().items()})
    right, *_ = build(seed=2)
    outer.load_state_dict({f"net.{key}": value for key, value in right.state_dict().items()})
    assert_same_state(inner.state_dict(), right.state_dict())


def three_layers(layers, seed=0, **options):
    torch.manual_seed(seed)
    model = nn.Sequential()
    model.add_module("first", nn.Linear(8, 8))
    model.add_module("fc1", nn.Linear(8, 8))
    model.add_module("fc2", nn.Linear(8, 2, bias=False))
    tmt.sparsify(model, "2:4", layers=layers, **options)
    return model


def pruned_fc1():
    model = three_layers("fc2", seed=1)
    nn.utils.parametrize.remove_parametrizations(model.fc2, "weight")
    tmt.transposable(model.fc1, "weight", 2, 4)
    return model


SAME_LAYERS = r"Call sparsify\(layers=...\) as in the run that saved it\."


@pytest.mark.parametrize(
    ("source", "target", "text"),
    [
        (
            lambda: three_layers("fc1", seed=1),
            lambda: three_layers("fc2"),
            "got dense weights for fc2.weight and masks for fc1.weight. " + SAME_LAYERS,
        ),
        (
            lambda: three_layers(["fc1", "fc2"], seed=1),
            lambda: three_layers("fc1"),
            "for the weights that the model masks, got masks for fc2.weight. " + SAME_LAYERS,
        ),
        (
            lambda: three_layers("fc1", seed=1),
            lambda: three_layers(["fc1", "fc2"]),
            "for the weights that the model masks, got dense weights for fc2.weight. " + SAME_LAYERS,
        ),
        (
            lambda: three_layers("*", seed=1),
            lambda: three_layers("fc1", transposable=False),
            "for the weights that the model masks, got masks for fc2.weight, first.weight. " + SAME_LAYERS,
        ),
        (
            pruned_fc1,
            lambda: three_layers("fc2"),
            "got dense weights for fc2.weight and masks for fc1.weight. " + SAME_LAYERS,
        ),
    ],
)
def test_masks_on_other_weights_are_refused_before_anything_is_loaded(source, target, text):
    model = target()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(tm.CheckpointError, match=text) as caught:
        model.load_state_dict(source().state_dict())
    assert "\n" not in str(caught.value)
    assert_same_state(model.state_dict(), before)


def test_a_dense_state_is_refused_before_anything_is_loaded():
    model, *_ = build()
    before = copy.deepcopy(model.state_dict())
    source, controller, _ = build(seed=1)
    controller.remove()
    with pytest.raises(tm.CheckpointError, match=r"got dense weights for 0.weight, 5.weight. Load it before sparsify"):
        model.load_state_dict(source.state_dict())
    assert_same_state(model.state_dict(), before)


def test_a_weight_of_another_shape_is_refused_before_anything_is_loaded():
    model, *_ = build()
    before = copy.deepcopy(model.state_dict())
    state = {**build(seed=1)[0].state_dict(), "5.parametrizations.weight.original": torch.ones(3, 3)}
    with pytest.raises(tm.CheckpointError, match=r"must hold a weight of shape \(10, 32\) for 5.weight, got \(3, 3\)"):
        model.load_state_dict(state)
    assert_same_state(model.state_dict(), before)


def test_a_part_of_a_state_is_loaded_where_that_is_asked_for():
    model, source = three_layers(["fc1", "fc2"]), three_layers(["fc1", "fc2"], seed=1)
    mask = model.fc2.parametrizations.weight[0].mask.clone()
    part = {key: value for key, value in source.state_dict().items() if not key.startswith("fc2")}
    part["head.parametrizations.weight.0.mask"] = torch.ones(4, 4, dtype=torch.bool)
    missing, unexpected = model.load_state_dict(part, strict=False)
    assert "fc2.parametrizations.weight.0.mask" in missing
    assert unexpected == ["head.parametrizations.weight.0.mask"]
    assert torch.equal(model.fc2.parametrizations.weight[0].mask, mask)
    assert torch.equal(model.fc1.weight, source.fc1.weight)


class SomeMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(8, 8))

    def forward(self, weight):
        return weight * self.mask


def test_masks_of_other_kinds_in_the_model_are_no_reason_to_refuse():
    model, source = three_layers("fc2"), three_layers("fc2", seed=1)
    for each in (model, source):
        nn.utils.parametrize.register_parametrization(each.first, "weight", SomeMask())
        nn.utils.prune.l1_unstructured(each.fc1, "weight", 0.5)
    model.load_state_dict(source.state_dict())
    assert_same_state(model.state_dict(), source.state_dict())
