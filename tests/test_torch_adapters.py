"""Low-rank adapters of peft on masked models: they carry no masks, and merging them keeps those of the weights."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from naive import offender  # noqa: E402
from torch import nn  # noqa: E402

import transmask as tm  # noqa: E402
from transmask.torch import MaskController, merge_adapters, reconstruct, sparsify  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:peft")]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.v, self.conv, self.head = (
            nn.Linear(16, 16),
            nn.Linear(16, 16),
            nn.Conv1d(8, 8, 3),
            nn.Linear(14, 8),
        )

    def forward(self, x):
        return self.head(torch.relu(self.conv(torch.relu(self.q(x) + self.v(x)))))


def adapted(masked=("q", "conv", "head"), **options):
    torch.manual_seed(0)
    model = Net()
    controller = sparsify(model, "2:4", layers=list(masked))
    config = peft.LoraConfig(target_modules=["q", "v", "conv"], r=4, init_lora_weights=False, **options)
    return peft.get_peft_model(model, config), controller


def test_adapters_get_no_masks():
    model = peft.get_peft_model(Net(), peft.LoraConfig(target_modules=["q", "conv"], r=8))
    x = torch.randn(3, 8, 16)
    for report in (sparsify(copy.deepcopy(model), "2:4").report,):
        taken = {choice.name.removeprefix("base_model.model.") for choice in report.taken}
        assert taken == {"q.base_layer.weight", "v.weight", "conv.base_layer.weight", "head.weight"}
        why = {choice.reason for choice in report if "lora_" in choice.name}
        assert why == {"a low-rank adapter: merge it first"}
    fits = reconstruct(model, [x], "2:4", progress=False).fits
    assert {fit.name.removeprefix("base_model.model.") for fit in fits} == taken


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_bias": True}])
def test_what_is_merged_keeps_its_pattern(options):
    model, controller = adapted(**options)
    masks = {name.replace("base_layer.", ""): mask for name, mask in controller.masks().items()}
    layers = dict(model.base_model.model.named_children())
    expected = {}
    for name in ("q", "v", "conv"):
        a, b = (getattr(layers[name], f"lora_{which}")["default"] for which in "AB")
        added = layers[name].scaling["default"] * (
            b.weight @ a.weight if name != "conv" else torch.einsum("or,rik->oik", b.weight[..., 0], a.weight)
        )
        weight = layers[name].base_layer.weight + added
        kept = masks.get(f"{name}.weight", torch.ones_like(weight, dtype=torch.bool))
        expected[f"{name}.weight"] = (weight * kept).detach()
    bias = {n: p.detach().clone() for n, p in Net().named_parameters() if "bias" in n}
    merged = merge_adapters(model)
    assert type(merged) is Net
    assert set(bias) == {n for n, _ in merged.named_parameters() if "bias" in n}
    again = MaskController(merged)
    assert all(torch.equal(mask, masks[name]) for name, mask in again.masks().items())
    again.remove()
    assert {n for n, _ in merged.named_parameters()} == {n for n, _ in Net().named_parameters()}
    for name, weight in expected.items():
        torch.testing.assert_close(merged.get_parameter(name).detach(), weight)
    assert offender(merged.q.weight.detach().numpy() != 0, 2, 4, "exactly") is None
    for position in range(3):
        assert offender(merged.conv.weight[..., position].detach().numpy() != 0, 2, 4, "exactly") is None


def test_without_it_the_adapter_is_lost():
    """The function is worth something: peft alone does not keep what was learnt."""
    model, _ = adapted()
    x = torch.randn(3, 8, 16)
    with torch.no_grad():
        before = model(x)
        after = model.merge_and_unload()(x)
    assert not torch.allclose(before, after)


def test_what_cannot_be_merged_is_refused_and_nothing_changes():
    with pytest.raises(tm.InvalidTypeError, match=r"`model` must be a peft.PeftModel, got Net."):
        merge_adapters(Net())
    merged, _ = adapted()
    merged.merge_adapter()
    broken, _ = adapted()
    with torch.no_grad():
        broken.base_model.model.conv.lora_A["default"].weight[0] = torch.nan
    dora, _ = adapted(use_dora=True)
    for model, text in (
        (
            merged,
            r"adapters that are not merged, got default in base_model.model.q.base_layer.weight, where merging was",
        ),
        (broken, r"finite adapters, got NaN or infinity for base_model.model.conv.base_layer.weight."),
        (dora, r"plain LoRA on a masked weight, got a Linear without or with DoRA on base_model.model.q.base_layer.we"),
    ):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(tm.InvalidArgumentError, match=text):
            merge_adapters(model)
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(value, after[name]) or value.isnan().any() for name, value in before.items())
