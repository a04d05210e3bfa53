"""`layouts=`: weights that no layer of torch holds, such as the experts of a mixture in one tensor."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from naive import offender  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import linear  # noqa: E402

import transmask as tm  # noqa: E402
from transmask.torch import reconstruct, sparsify  # noqa: E402

WIDTH, HIDDEN, EXPERTS = 16, 24, 3


class Separate(nn.Module):
    """A mixture of experts in linear layers; the first feature of a token chooses."""

    def __init__(self):
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(EXPERTS))
        self.down = nn.ModuleList(nn.Linear(HIDDEN, WIDTH, bias=False) for _ in range(EXPERTS))

    def forward(self, x):
        out = torch.zeros_like(x)
        for expert, rows in routed(x):
            out[rows] = self.down[expert](torch.relu(self.up[expert](x[rows])))
        return out


def routed(x):
    choice = (x[:, 0] > 0).long() + (x[:, 0] > 0.7).long()
    return [(expert, rows) for expert in range(EXPERTS) if len(rows := (choice == expert).nonzero()[:, 0])]


class Fused(nn.Module):
    """The same with all experts in one tensor, multiplied in one of the usual ways."""

    def __init__(self, separate, way):
        super().__init__()
        self.way = way
        stacks = [torch.stack([layer.weight.detach() for layer in layers]) for layers in (separate.up, separate.down)]
        if way in ("matmul", "mm", "bmm"):
            stacks = [stack.mT.contiguous() for stack in stacks]
        self.up_proj, self.down_proj = map(nn.Parameter, stacks)

    def forward(self, x):
        if self.way == "bmm":  # every expert sees every token
            chosen = torch.zeros(EXPERTS, len(x), 1)
            for expert, rows in routed(x):
                chosen[expert, rows] = 1
            hidden = torch.relu(torch.bmm(chosen * x, self.up_proj))
            return torch.bmm(hidden, self.down_proj).sum(0)
        out = torch.zeros_like(x)
        for expert, rows in routed(x):
            if self.way == "linear":
                expert = torch.tensor(expert)  # as transformers does
                out[rows] = linear(torch.relu(linear(x[rows], self.up_proj[expert])), weight=self.down_proj[expert])
            elif self.way == "matmul":
                out[rows] = torch.relu(x[rows] @ self.up_proj[expert]) @ self.down_proj[expert]
            elif self.way == "mm":
                out[rows] = torch.relu(torch.mm(x[rows], self.up_proj[expert])).mm(self.down_proj[expert])
            else:
                out[rows] = torch.einsum("ti,oi->to", x[rows], self.up_proj[expert]) @ self.down_proj[expert].mT
        return out


AXES = {"linear": (1, 2), "matmul": (2, 1), "mm": (2, 1), "bmm": (2, 1), "einsum": (1, 2)}


def models(way):
    torch.manual_seed(0)
    separate = Separate()
    return separate, Fused(separate, way), [torch.randn(60, WIDTH) for _ in range(4)]


def layouts(way, prefix=""):
    return {f"{prefix}up_proj": AXES[way], f"{prefix}down_proj": AXES[way]}


def weights_of(separate):
    return [torch.stack([layer.weight for layer in layers]) for layers in (separate.up, separate.down)]


@pytest.mark.parametrize("way", ["linear", "matmul", "mm", "bmm"])
@pytest.mark.parametrize("transposable", [True, False])
@pytest.mark.parametrize("method", ["least_squares", "alps"])
def test_each_expert_becomes_what_a_layer_of_its_own_becomes(way, transposable, method):
    separate, fused, batches = models(way)
    options = {"transposable": transposable, "method": method, "progress": False}
    report = reconstruct(fused, batches, "2:4", layouts=layouts(way), **options)
    expected = reconstruct(separate, batches, "2:4", **options)
    assert sorted(fit.name for fit in report.fits) == [f"{a}_proj[{i}]" for a in ("down", "up") for i in range(EXPERTS)]
    for mine, theirs in zip((fused.up_proj, fused.down_proj), weights_of(separate), strict=True):
        mine = mine if AXES[way] == (1, 2) else mine.mT
        assert torch.equal(mine != 0, theirs != 0)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    errors = {fit.name.replace("_proj[", ".").rstrip("]") + ".weight": fit.error_fitted for fit in report.fits}
    assert errors == pytest.approx({fit.name: fit.error_fitted for fit in expected.fits}, rel=1e-4)
    assert not any("_proj" in name for name, _ in report.left)


def test_an_expert_without_tokens_gets_its_mask_alone():
    _, fused, batches = models("linear")
    before = fused.up_proj.detach().clone()
    report = reconstruct(fused, [-batch.abs() for batch in batches], "2:4", layouts=layouts("linear"), progress=False)
    notes = {fit.name: fit.note for fit in report.fits}
    assert notes["up_proj[0]"] == ""
    assert notes["up_proj[2]"] == "mask only: no calibration row reaches it"
    assert torch.equal(fused.up_proj[2], before[2] * tm.torch.transposable_mask(before[2], "2:4"))


def test_a_product_that_is_not_watched_is_an_error():
    _, fused, batches = models("einsum")
    before = copy.deepcopy(fused.state_dict())
    with pytest.raises(tm.InvalidArgumentError) as caught:
        reconstruct(fused, batches, "2:4", layouts=layouts("einsum"), progress=False)
    assert str(caught.value) == (
        "`layouts` must name weights that linear, matmul, mm or bmm multiplies, got one for einsum. "
        "In a model of transformers call model.set_experts_implementation('eager')."
    )
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())


def test_blocks_with_experts_are_matched():
    torch.manual_seed(0)
    separate, _, batches = models("linear")
    model = nn.Sequential(Fused(separate, "linear"), Fused(Separate(), "linear"))
    dense = copy.deepcopy(model)
    report = reconstruct(
        model, batches, "2:4", layouts={"*_proj": (1, 2)}, match=["0", "1"], match_steps=30, progress=False
    )
    assert list(report.matches) == ["0", "1"]
    assert all(match.error_after < match.error_before for match in report.matches.values())
    for fit in report.fits:
        name, index = fit.name.rstrip("]").split("[")
        matrix, old = (one.get_parameter(name)[int(index)].detach() for one in (model, dense))
        assert offender(matrix.numpy() != 0, 2, 4, "exactly") is None
        assert torch.equal(matrix, old * (matrix != 0)) is bool(fit.note)
    assert sum(not fit.note for fit in report.fits) > 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_experts_of_transformers():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_local_experts": 4}
    config = transformers.MixtralConfig(vocab_size=50, **sizes, num_attention_heads=2, num_key_value_heads=1)
    model = transformers.MixtralForCausalLM(config).eval()
    batches = [torch.randint(50, (4, 12)) for _ in range(3)]
    options = {"layouts": {"*experts.*_proj": (1, 2)}, "layers": ["*experts*"], "progress": False}
    with pytest.raises(tm.InvalidArgumentError, match="set_experts_implementation"):
        reconstruct(model, batches, "2:4", forward=lambda m, x: m(x, use_cache=False), **options)
    model.set_experts_implementation("eager")
    report = reconstruct(model, batches, "2:4", forward=lambda m, x: m(x, use_cache=False), **options)
    assert len(report.fits) == 8
    assert all(fit.error_fitted < fit.error_masked for fit in report.fits if not fit.note)


@pytest.mark.parametrize("way", ["linear", "matmul"])
@pytest.mark.parametrize("transposable", [True, False])
def test_sparsify_masks_each_expert_and_trains(way, transposable):
    separate, fused, batches = models(way)
    by_hand = copy.deepcopy(separate)
    mine = sparsify(fused, "2:4", transposable=transposable, layouts=layouts(way), refresh_every=1)
    theirs = sparsify(by_hand, "2:4", transposable=transposable, refresh_every=1)
    assert "2:4 on 3 matrices of " in str(mine.report)
    for model, controller in ((fused, mine), (by_hand, theirs)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        controller.attach(optimizer)
        for batch in batches:
            optimizer.zero_grad()
            model(batch).square().sum().backward()
            optimizer.step()
    state = copy.deepcopy(fused.state_dict())
    fresh = Fused(separate, way)
    again = sparsify(fresh, "2:4", transposable=transposable, layouts=layouts(way), refresh_every=1)
    fresh.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in fresh.state_dict().items())
    for controller in (mine, theirs, again):
        controller.remove()
    for own, loaded, other in zip(fused.parameters(), fresh.parameters(), weights_of(by_hand), strict=True):
        assert torch.equal(own, loaded)
        torch.testing.assert_close(own if AXES[way] == (1, 2) else own.mT, other)
        assert 0 < float((own == 0).double().mean()) <= 0.51


@pytest.mark.parametrize(
    "call", [sparsify, lambda m, p, **o: reconstruct(m, [torch.randn(9, WIDTH)], p, progress=False, **o)]
)
@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (
            {"up_prj": (1, 2)},
            tm.InvalidArgumentError,
            "`layouts` must name parameters or modules of the model, got 'up_prj'",
        ),
        (
            {"up_proj": (0, 1, 2)},
            tm.InvalidTypeError,
            r"must map names to two axes, such as \(1, 2\), got \(0, 1, 2\) for",
        ),
        ({"up_proj": "12"}, tm.InvalidTypeError, "must map names to two axes"),
        ({"up_proj": (0, 2)}, tm.InvalidArgumentError, r"got \(0, 2\) for 'up_proj' of shape \(3, 24, 16\)"),
        ({"up_proj": (2, 3)}, tm.InvalidArgumentError, r"got \(2, 3\) for 'up_proj'"),
        ({"up_proj": (1, 1)}, tm.InvalidArgumentError, r"got \(1, 1\) for 'up_proj'"),
        (["up_proj"], tm.InvalidTypeError, r"`layouts` must be a mapping from names to axes, got \['up_proj'\]"),
    ],
)
def test_layouts_that_do_not_fit(call, given, kind, message):
    _, fused, _ = models("linear")
    before = copy.deepcopy(fused.state_dict())
    with pytest.raises(kind, match=message):
        call(fused, "2:4", layouts=given)
    assert list(fused.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in fused.state_dict().items())


def test_a_layout_of_a_layer_that_is_known_is_an_error():
    model = nn.ModuleDict({"linear": nn.Linear(8, 8), "table": nn.Embedding(8, 8), "fused": models("linear")[1]})
    with pytest.raises(tm.InvalidArgumentError) as caught:
        sparsify(model, "2:4", layouts={"linear.weight": (1, 0)})
    assert str(caught.value) == (
        "`layouts` must name weights that no layer of torch holds, got 'linear.weight': linear.weight: "
        "the layout of a Linear is known. Leave it out."
    )
    with pytest.raises(
        tm.InvalidArgumentError, match=r"got 'table\.\*': table.weight: a look-up table: its rows are pick"
    ):
        sparsify(model, "2:4", layouts={"table.*": (0, 1)})
    report = sparsify(model, "2:4", layouts={"fused*": (1, 2)}).report
    assert [choice.name for choice in report.taken] == ["linear.weight", "fused.up_proj", "fused.down_proj"]
