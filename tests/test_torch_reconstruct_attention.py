"""`reconstruct` of `nn.MultiheadAttention`: what it does to attention that is written out in linear layers."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from torch import nn  # noqa: E402
from torch.nn.functional import softmax  # noqa: E402

import transmask as tm  # noqa: E402
from transmask.torch import convert_unstructured, reconstruct  # noqa: E402

WIDTH, HEADS = 16, 4


class WrittenOut(nn.Module):
    """Attention in linear layers, from the formula."""

    def __init__(self, attention):
        super().__init__()
        weights, biases = projections(attention)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            setattr(self, name, linear(weight, bias))
        self.out = linear(attention.out_proj.weight, attention.out_proj.bias)
        self.batch_first = attention.batch_first

    def forward(self, query, key, value, padding=None):
        """Map (B, T, ...), or (T, B, ...), to (B, T, WIDTH) or (T, B, WIDTH)."""
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if padding is not None:
            scores = scores.masked_fill(padding[:, None, None, :], -torch.inf)
        mixed = self.out((softmax(scores, -1) @ v).transpose(1, 2).flatten(2))
        return mixed if self.batch_first else mixed.transpose(0, 1)


def linear(weight, bias):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def projections(attention):
    if attention.in_proj_weight is None:
        weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
    else:
        weights = attention.in_proj_weight.chunk(3)
    biases = [None] * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    return weights, biases


def attention_of(**options):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, HEADS, **({"batch_first": True} | options))
    for name, parameter in attention.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return attention.eval()


SELF = {"queries": (3, 7, WIDTH)}
CASES = {
    "self": ({}, SELF),
    "without bias": ({"bias": False}, SELF),
    "time first": ({"batch_first": False}, SELF),
    "longer memory": ({}, {"queries": (3, 5, WIDTH), "memory": (3, 9, WIDTH)}),
    "shorter memory": ({"batch_first": False}, {"queries": (9, 3, WIDTH), "memory": (2, 3, WIDTH)}),
    "three": ({}, {"queries": (3, 5, WIDTH), "memory": (3, 4, WIDTH), "values": (3, 4, WIDTH)}),
    "other widths": ({"kdim": 12, "vdim": 8}, {"queries": (3, 5, WIDTH), "memory": (3, 4, 12), "values": (3, 4, 8)}),
    "other widths without bias": (
        {"kdim": 12, "vdim": 8, "bias": False},
        {"queries": (3, 5, WIDTH), "memory": (3, 4, 12), "values": (3, 4, 8)},
    ),
}


def inputs(queries, memory=None, values=None):
    """Return batches of (query, key, value)."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(6):
        query = torch.randn(queries, generator=generator)
        key = query if memory is None else torch.randn(memory, generator=generator)
        batches.append((query, key, key if values is None else torch.randn(values, generator=generator)))
    return batches


def call(module, batch):
    return module(*batch)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("method", ["least_squares", "alps"])
def test_it_is_what_linear_layers_get(case, fast, method, monkeypatch):
    options, shapes = CASES[case]
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        attention = attention_of(**options)
        by_hand, batches = WrittenOut(attention), inputs(**shapes)
        report = reconstruct(attention, batches, "2:4", method=method, forward=call, progress=False)
        expected = reconstruct(by_hand, batches, "2:4", method=method, forward=call, progress=False)
        out = attention(*batches[0])[0]
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert len(report.fits) == (2 if attention.in_proj_weight is not None else 4)
    weights, biases = projections(attention)
    for name, weight, bias in zip("qkv", weights, biases, strict=True):
        torch.testing.assert_close(weight, getattr(by_hand, name).weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(bias, getattr(by_hand, name).bias, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention.out_proj.weight, by_hand.out.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, by_hand(*batches[0]), rtol=1e-4, atol=1e-5)
    assert report.fits[-1].error_fitted == pytest.approx(expected.fits[-1].error_fitted, rel=1e-4)
    assert "forward" not in vars(attention)
    assert type(attention.out_proj) is not nn.Linear


@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_does_not_count(batch_first):
    attention = attention_of(batch_first=batch_first)
    by_hand = WrittenOut(attention)
    lengths = torch.tensor([7, 3, 5])
    padding = torch.arange(7) >= lengths[:, None]
    batches = inputs((3, 7, WIDTH) if batch_first else (7, 3, WIDTH))

    def shorter(module, batch):
        for row, length in enumerate(lengths):
            x = batch[0][row : row + 1, :length] if batch_first else batch[0][:length, row : row + 1]
            module(x, x, x)

    reconstruct(
        attention,
        batches,
        "2:4",
        forward=lambda module, batch: module(*batch, key_padding_mask=padding),
        row_weights=lambda batch: ~padding if batch_first else None,
        progress=False,
    )
    reconstruct(by_hand, batches, "2:4", forward=shorter, progress=False)
    close = torch.allclose(attention.in_proj_weight[:WIDTH], by_hand.q.weight, rtol=1e-3, atol=1e-4)
    assert close is batch_first
    if batch_first:
        torch.testing.assert_close(attention.out_proj.weight, by_hand.out.weight, rtol=1e-3, atol=1e-4)


def test_rows_of_time_first_inputs_are_counted_by_sequence():
    attention, batches = attention_of(batch_first=False), inputs((7, 3, WIDTH))
    other = copy.deepcopy(attention)
    other.batch_first = True
    weights = torch.rand(3, 7)
    transposed = [(batch[0].transpose(0, 1),) * 3 for batch in batches]
    reconstruct(
        attention, batches, "2:4", forward=call, row_weights=lambda _: weights, layers="in_proj_weight", progress=False
    )
    reconstruct(
        other, transposed, "2:4", forward=call, row_weights=lambda _: weights, layers="in_proj_weight", progress=False
    )
    torch.testing.assert_close(attention.in_proj_weight, other.in_proj_weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("match", ["blocks", None])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_answers_more_like_before(nested, match):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()
    padding = torch.arange(7) >= torch.tensor([7, 3, 5])[:, None]
    batches = [torch.randn(3, 7, WIDTH) for _ in range(20)]
    masked, dense = copy.deepcopy(encoder), copy.deepcopy(encoder)
    for name, parameter in masked.named_parameters():
        if parameter.ndim == 2:
            parts = parameter.detach().chunk(3) if "in_proj" in name else [parameter.detach()]
            mask = torch.cat([tm.torch.transposable_mask(part, "2:4") for part in parts])
            parameter.data *= mask
    options = {} if match is None or nested else {"match": "blocks", "match_steps": 40}
    report = reconstruct(
        encoder,
        batches,
        "2:4",
        forward=lambda model, x: model(x, src_key_padding_mask=padding),
        row_weights=lambda _: ~padding,
        progress=False,
        **options,
    )
    assert len(report.fits) == 8

    def error(model):
        with torch.no_grad():
            return sum(
                float(
                    ((model(x, src_key_padding_mask=padding) - dense(x, src_key_padding_mask=padding))[~padding[:, :7]])
                    .square()
                    .sum()
                )
                for x in batches
            )

    assert error(encoder) < 0.85 * error(masked)


def test_unbatched_inputs():
    attention = attention_of()
    by_hand, batches = WrittenOut(attention), inputs((40, WIDTH))
    reconstruct(attention, batches, "2:4", forward=call, progress=False)
    reconstruct(by_hand, batches, "2:4", forward=lambda m, b: m(*(x[None] for x in b)), progress=False)
    torch.testing.assert_close(attention.out_proj.weight, by_hand.out.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention.in_proj_weight[WIDTH:-WIDTH], by_hand.k.weight, rtol=1e-4, atol=1e-5)


def test_a_call_with_one_tensor_and_a_call_with_three():
    attention = attention_of()
    by_hand = WrittenOut(attention)
    batches = inputs((3, 7, WIDTH))[:3] + inputs((3, 5, WIDTH), (3, 9, WIDTH))[3:]
    for order in (batches, batches[::-1]):
        mine, theirs = copy.deepcopy(attention), copy.deepcopy(by_hand)
        reconstruct(mine, order, "2:4", forward=call, progress=False)
        reconstruct(theirs, order, "2:4", forward=call, progress=False)
        torch.testing.assert_close(mine.in_proj_weight[-WIDTH:], theirs.v.weight, rtol=1e-4, atol=1e-5)


def test_after_an_error_it_is_as_it_was():
    attention, batches = attention_of(), inputs(**SELF)
    before = {name: value.clone() for name, value in attention.state_dict().items()}
    modules = list(attention.modules())
    batches[2] = tuple(torch.full((3, 7, WIDTH), torch.nan) for _ in range(3))
    with pytest.raises(tm.InvalidArgumentError, match="NaN or infinite inputs of in_proj_weight"):
        reconstruct(attention, batches, "2:4", forward=call, progress=False)
    batches[2] = (torch.ones(3, 7, 5),) * 3
    with pytest.raises(tm.InvalidArgumentError, match=r"got batch 2, of shape .3, 7, 5., on which it fails"):
        reconstruct(attention, batches, "2:4", forward=call, progress=False)
    assert list(attention.modules()) == modules
    assert "forward" not in vars(attention)
    assert all(torch.equal(value, before[name]) for name, value in attention.state_dict().items())


def test_an_attention_that_computes_otherwise_is_left():
    class Other(nn.MultiheadAttention):
        def forward(self, query, key, value):
            return super().forward(query, key, 2 * value)

    model = nn.ModuleDict({"attention": Other(WIDTH, HEADS), "linear": nn.Linear(WIDTH, 8)})
    report = reconstruct(
        model, inputs(**SELF), "2:4", forward=lambda m, b: m["linear"](m["attention"](*b)[0]), progress=False
    )
    reason = "inside an attention with a forward of its own, where its inputs cannot be observed"
    assert {name: why for name, why in report.left if "attention" in name and "weight" in name} == {
        "attention.in_proj_weight": reason,
        "attention.out_proj.weight": reason,
    }


def test_unstructured_zeros_are_converted():
    attention, batches = attention_of(), inputs(**SELF)
    nn.utils.prune.remove(nn.utils.prune.l1_unstructured(attention, "in_proj_weight", 0.9), "in_proj_weight")
    report = convert_unstructured(attention, batches, 8, forward=call, progress=False)
    assert [(fit.name, str(fit.pattern)) for fit in report.fits] == [("in_proj_weight", "2:8")]


@pytest.mark.parametrize(("layers", "replaced"), [("out_proj", True), ("in_proj_weight", True), ("linear", False)])
def test_an_attention_that_is_not_treated_computes_as_it_did(layers, replaced):
    model = nn.ModuleDict({"attention": attention_of(), "linear": nn.Linear(WIDTH, 8)})
    seen = []

    def run(model, batch):
        seen.append("forward" in vars(model["attention"]))
        model["linear"](model["attention"](*batch)[0])

    reconstruct(model, inputs(**SELF), "2:4", layers=f"*{layers}*", forward=run, progress=False)
    assert set(seen) == {replaced}
