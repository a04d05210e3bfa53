"""A pattern of its own for every weight that is named, in training."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import transmask as tm  # noqa: E402
from transmask.torch import sparsify  # noqa: E402


def build(patterns, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 16)), nn.Linear(16, 8))
    return model, sparsify(model, patterns, **options)


def holds(controller, name, pattern):
    return tm.check_mask(controller.masks()[name].numpy(), pattern).ok


def test_each_weight_gets_the_pattern_of_the_last_name_that_matches_and_keeps_it():
    model, controller = build({"*": "4:8", "1.*": "2:8", "1.1": "2:4"})
    expected = {"0.weight": "4:8", "1.0.weight": "2:8", "1.1.weight": "2:4", "2.weight": "4:8"}
    optimizer = torch.optim.SGD(model.parameters(), lr=3.0)
    controller.attach(optimizer)
    for _ in range(40):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert sum(record.flipped for record in controller.history) > 0
    for name, pattern in expected.items():
        weight = model.get_parameter(f"{name.removesuffix('.weight')}.parametrizations.weight.original")
        best = tm.transposable_mask(weight.detach().numpy(), pattern)
        assert (controller.masks()[name].numpy() == best).all(), name


def test_weights_that_no_name_matches_stay_dense():
    _, controller = build({"1.0": "2:4", "2.weight": "1:4"})
    assert {choice.name: choice.reason for choice in controller.report.taken} == {
        "1.0.weight": "2:4 on a matrix of 32 x 32",
        "2.weight": "1:4 on a matrix of 8 x 16",
    }
    reasons = {choice.name: choice.reason for choice in controller.report}
    assert reasons["0.weight"] == "not in `pattern`"
    assert list(controller.masks()) == ["1.0.weight", "2.weight"]


def test_a_state_with_other_patterns_is_refused():
    model, _ = build({"*": "2:4", "2": "4:8"})
    other, _ = build({"*": "2:4", "1.0": "4:8"})
    with pytest.raises(tm.CheckpointError, match=r"4:8"):
        other.load_state_dict(model.state_dict())
    same, _ = build({"*": "2:4", "2": "4:8"})
    same.load_state_dict(model.state_dict())


def test_plain_masks_have_patterns_of_their_own_too():
    _, controller = build({"*": "2:4", "0": "1:4"}, transposable=False)
    kept = controller.masks()["0.weight"]
    assert (kept.reshape(32, -1, 4).sum(2) == 1).all()
    assert not holds(controller, "0.weight", "1:4")


@pytest.mark.parametrize(
    ("patterns", "options", "text"),
    [
        ({}, {}, "`pattern` must name at least one weight, got an empty mapping."),
        ({"1.7": "2:4"}, {}, "`pattern` must name parameters or modules of the model, got '1.7', which matches none."),
        ({"0.bias": "2:4"}, {}, "`pattern` must name weights that can be taken, got '0.bias': 0.bias: 1 axis"),
        ({3: "2:4"}, {}, "`pattern` must hold strings, got 3."),
        ({"0": "5:4"}, {}, "`n` must be at most m = 4, got 5."),
        ({"0": "2:4"}, {"layers": "1"}, "`layers` and `skip_ends` must be left out where `pattern` names the weights."),
    ],
)
def test_bad_patterns_get_one_line_and_leave_the_model_alone(patterns, options, text):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    with pytest.raises(tm.TransmaskError) as caught:
        sparsify(model, patterns, **options)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(hasattr(module, "parametrizations") for module in model)


def test_a_step_of_density_changes_every_mask_and_training_goes_on():
    model, controller = build("3:4", refresh_every=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    controller.attach(optimizer)
    for step in range(30):
        if step == 15:
            records = controller.change_pattern("2:4")
            assert [record.name for record in records] == list(controller.masks())
            assert all(record.step == 15 and record.flipped >= record.size / 4 for record in records)
            assert controller.history[-4:] == records
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
        pattern = "3:4" if step < 15 else "2:4"
        assert all(holds(controller, name, pattern) for name in controller.masks())
    assert [record.step for record in controller.history[::4]] == [10, 15, 20, 30]
    fresh, _ = build("2:4")
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(3, 16)
    torch.testing.assert_close(fresh(x), model(x))


def test_single_weights_change_their_pattern():
    model, controller = build("3:4")
    before = controller.masks()
    records = controller.change_pattern({"1": "1:4", "1.1.weight": "2:8"})
    assert [record.name for record in records] == ["1.0.weight", "1.1.weight"]
    after = controller.masks()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert holds(controller, "1.0.weight", "1:4")
    assert holds(controller, "1.1.weight", "2:8")
    assert model[1][1].parametrizations.weight[0].pattern.tolist() == [2, 8]
    controller.refresh()
    assert all(torch.equal(mask, after[name]) for name, mask in controller.masks().items())


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("4:4", "`pattern` must keep at least 1 entry and prune at least 1, got '4:4'."),
        ({"1": "2:4", "9": "2:4"}, "`pattern` must name weights that carry masks, got '9'."),
        ({0: "2:4"}, "`pattern` must name weights that carry masks, got 0."),
        ("16:32", "`pattern` must prune every weight that it names, got '16:32', which would keep all of 2.weight"),
        ({"1.0": "2:4", "2": "1:4"}, "`2.weight` must be finite"),
    ],
)
def test_a_change_that_cannot_be_made_changes_nothing(pattern, text):
    model, controller = build("3:4")
    with torch.no_grad():
        model[2].parametrizations.weight.original[0, 0] = torch.nan
    before, state = controller.masks(), {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(tm.TransmaskError, match=r".") as caught:
        controller.change_pattern(pattern)
    assert text in str(caught.value)
    assert all(torch.equal(mask, before[name]) for name, mask in controller.masks().items())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0, equal_nan=True)
    assert controller.history == []


def test_frozen_masks_do_not_change_their_pattern():
    _, controller = build("3:4")
    controller.freeze()
    with pytest.raises(tm.InvalidArgumentError, match=r"that of 0\.weight is frozen"):
        controller.change_pattern("2:4")
