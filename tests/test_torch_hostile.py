"""What torch hands over that cannot be used: one clear line, and nothing has changed."""

import copy
import pickle
import re

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import transmask as tm  # noqa: E402
import transmask.torch as tt  # noqa: E402

META = torch.empty(8, 8, device="meta")
FLOAT8 = torch.linspace(-3, 3, 64).reshape(8, 8).to(torch.float8_e4m3fn)
BATCHES = [torch.ones(2, 8)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


def in_inference_mode():
    with torch.inference_mode():
        return network()


def in_float8():
    model = network()
    for index in (0, 2):
        model[index].weight = nn.Parameter(FLOAT8.clone(), requires_grad=False)
    return model


def refused(error, message, call):
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert isinstance(caught.value, tm.TransmaskError)
    assert len(str(caught.value).splitlines()) == 1


CALLS = {
    "transposable": lambda model: tt.transposable(model, "weight", 2, 4),
    "MaskController": tt.MaskController,
    "sparsify": lambda model: tt.sparsify(model, "2:4"),
    "sparsify_by_threshold": lambda model: tt.sparsify_by_threshold(model, 0.1),
    "reconstruct": lambda model: tt.reconstruct(model, BATCHES, "2:4"),
    "convert_unstructured": lambda model: tt.convert_unstructured(model, BATCHES, 4),
    "to_sparse_semi_structured": tt.to_sparse_semi_structured,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("value", [None, "model", META, nn.Linear, [nn.Linear(8, 8)]], ids=lambda v: type(v).__name__)
def test_what_is_no_module(call, value):
    message = f"` must be a torch.nn.Module, got {type(value).__name__}."
    refused(TypeError, message, lambda: CALLS[call](value))


@pytest.mark.parametrize("value", [None, [[1.0]], "w", nn.Linear(2, 2)])
def test_what_is_no_tensor(value):
    refused(TypeError, "`weights` must be a torch.Tensor, got", lambda: tt.transposable_mask(value, "2:4"))
    layer = nn.Linear(8, 8)
    if value is not None:
        message = f"`importance_scores` must be a torch.Tensor or None, got {type(value).__name__}."
        refused(TypeError, message, lambda: tt.transposable(layer, "weight", 2, 4, importance_scores=value))
    refused(ValueError, "`name` must be a parameter of the module", lambda: tt.transposable(layer, value, 2, 4))
    assert sorted(layer.state_dict()) == ["bias", "weight"]


NO_VALUES = " must have values, got a tensor on the meta device. Load them onto another device first."


def test_tensors_on_the_meta_device_have_no_values():
    for function in (tt.transposable_mask, tm.transposable_mask, tm.solve):
        refused(ValueError, f"`weights`{NO_VALUES}", lambda function=function: function(META, "2:4"))
    layer = nn.Linear(8, 8)
    call = lambda: tt.transposable(layer, "weight", 2, 4, importance_scores=META)  # noqa: E731
    refused(ValueError, NO_VALUES, call)
    refused(ValueError, NO_VALUES, lambda: tt.transposable(nn.Linear(8, 8, device="meta"), "weight", 2, 4))
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    for function in (CALLS["sparsify"], CALLS["reconstruct"]):
        refused(ValueError, "on the meta device, without values", lambda f=function: f(network().to("meta")))


def test_a_model_that_was_moved_to_the_meta_device():
    model = network()
    controller = tt.sparsify(model, "2:4")
    state = model.state_dict()
    model.to("meta")
    refused(ValueError, f"`0.weight`{NO_VALUES}", controller.refresh)
    assert controller.history == []
    pruned = tt.transposable(nn.Linear(8, 8), "weight", 2, 4).to("meta")
    names = sorted(pruned.state_dict())
    refused(ValueError, NO_VALUES, lambda: tt.transposable(pruned, "weight", 2, 4))
    assert sorted(pruned.state_dict()) == names
    other = network()
    tt.sparsify(other, "2:4")
    before = {key: value.clone() for key, value in other.state_dict().items()}
    message = "`state_dict` must have values, got tensors on the meta device for 0.weight."
    meta = {key: value.to("meta") for key, value in state.items()}
    refused(ValueError, message, lambda: other.load_state_dict(meta))
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


@pytest.mark.parametrize("call", ["sparsify", "sparsify_by_threshold", "reconstruct", "convert_unstructured"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            in_float8,
            "0.weight: of torch.float8_e4m3fn, in which torch cannot compute; convert it with .to(torch.bfloat16)",
        ),
        (in_inference_mode, "0.weight: made under torch.inference_mode; make the model outside of it"),
    ],
)
def test_weights_that_torch_cannot_change_are_skipped_with_the_reason(call, make, reason):
    model = make()
    before = [parameter.detach().clone().view(torch.uint8) for parameter in model.parameters()]
    refused(ValueError, reason, lambda: CALLS[call](model))
    after = [parameter.detach().view(torch.uint8) for parameter in model.parameters()]
    assert all(map(torch.equal, before, after))
    assert not any(hasattr(module, "parametrizations") for module in model.modules())


def test_float8_weights_and_scores_get_their_mask():
    mask = tt.transposable_mask(FLOAT8.float(), "2:4")
    assert torch.equal(tt.transposable_mask(FLOAT8, "2:4"), mask)
    scored = tt.transposable(nn.Linear(8, 8), "weight", 2, 4, importance_scores=FLOAT8)
    assert torch.equal(scored.weight_mask.bool(), mask)
    assert torch.equal(tt.transposable(in_float8()[0], "weight", 2, 4).weight_mask.float().bool(), mask)


@pytest.mark.parametrize("call", [pickle.dumps, copy.copy])
def test_a_controller_is_not_pickled(call):
    model = network()
    controller = tt.sparsify(model, "2:4")
    refused(TypeError, "`MaskController` must stay in its process", lambda: call(controller))
    assert copy.deepcopy(controller).masks().keys() == controller.masks().keys()
