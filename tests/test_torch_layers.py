"""Which parameters carry masks, along which axes, and the words for the others."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import naive  # noqa: E402
from torch import nn  # noqa: E402

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402


class Odd(nn.Module):
    """A module of an unknown type, with parameters of every kind that is refused."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 8))
        self.number = nn.Parameter(torch.tensor(1.0))
        self.counts = nn.Parameter(torch.ones(8, 8, dtype=torch.int32), requires_grad=False)

    def forward(self, x):
        return x


def block_masks(mask, layout):
    """Every (R, C) matrix of a mask that is (parts * R, C, ...), with loops."""
    rows = mask.shape[0] // layout
    for part in range(layout):
        for position in np.ndindex(*mask.shape[2:]):
            yield mask[(slice(part * rows, (part + 1) * rows), slice(None), *position)]


@pytest.mark.parametrize(
    ("make", "name", "parts", "allow"),
    [
        (lambda: nn.Linear(10, 12), "weight", 1, ()),
        (lambda: nn.Conv1d(8, 12, 3), "weight", 1, ()),
        (lambda: nn.Conv2d(8, 12, (3, 1)), "weight", 1, ()),
        (lambda: nn.Conv3d(8, 4, (1, 2, 2)), "weight", 1, ()),
        (lambda: nn.Conv2d(16, 24, 2, groups=2), "weight", 2, ("grouped",)),
        (lambda: nn.ConvTranspose2d(16, 8, 2), "weight", 1, ("transposed",)),
        (lambda: nn.ConvTranspose1d(16, 8, 2, groups=4), "weight", 4, ("transposed", "grouped")),
        (lambda: nn.MultiheadAttention(10, 2), "in_proj_weight", 3, ()),
        (lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4), "k_proj_weight", 1, ()),
    ],
)
@pytest.mark.parametrize("constraint", ["exactly", "at_most"])
def test_masks_lie_along_the_right_axes_and_are_optimal(make, name, parts, allow, constraint):
    torch.manual_seed(1)
    layer = make()
    weight = getattr(layer, name).detach().clone()
    controller = tmt.sparsify(layer, "2:4", allow=allow, constraint=constraint)
    mask = controller.masks()[name].numpy()
    kept = 0
    for matrix in block_masks(mask, parts):
        assert naive.offender(matrix, 2, 4, constraint) is None
    scores = np.abs(weight.double().numpy())
    kept = sum(naive.matrix_value(block, 2, 4, constraint) for block in block_masks(scores, parts))
    assert naive.kept_value(scores, mask) == kept


def test_a_packed_projection_is_three_matrices_whose_blocks_do_not_straddle():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(10, 2)  # 10 is no multiple of 4: blocks over 30 rows would straddle
    mask = tmt.sparsify(attention, "2:4").masks()["in_proj_weight"].numpy()
    straddling = tm.transposable_mask(attention.parametrizations.in_proj_weight.original, "2:4")
    assert all(naive.offender(mask[start : start + 10], 2, 4, "exactly") is None for start in (0, 10, 20))
    assert not np.array_equal(mask, straddling)


@pytest.mark.parametrize(
    ("make", "axis"),
    [(lambda: nn.Linear(8, 12), 1), (lambda: nn.Conv2d(8, 12, 3), 1), (lambda: nn.ConvTranspose2d(8, 12, 3), 0)],
)
def test_plain_masks_group_along_the_reduction_axis(make, axis):
    torch.manual_seed(2)
    layer = make()
    weight = layer.weight.detach().abs()
    mask = tmt.sparsify(layer, "2:4", transposable=False, allow=("transposed",)).masks()["weight"]
    groups = mask.movedim(axis, -1).reshape(-1, 4)
    values = weight.movedim(axis, -1).reshape(-1, 4)
    assert (groups.sum(1) == 2).all()
    assert torch.equal((values * groups).sum(1), values.sort(1).values[:, 2:].sum(1))


def test_every_parameter_is_in_the_report_with_a_reason():
    tied = nn.Linear(8, 8)
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(8, 8),
            "odd": Odd(),
            "rnn": nn.LSTM(8, 8),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "grouped": nn.Conv2d(8, 8, 3, groups=2),
            "transposed": nn.ConvTranspose2d(8, 8, 3),
            "small": nn.Linear(2, 2),
            "attention": nn.MultiheadAttention(8, 2, add_bias_kv=True),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
            "pruned": nn.utils.prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5),
            "lazy": nn.LazyLinear(8),
            "one": tied,
            "two": nn.Linear(8, 8),
            "taken": nn.Linear(8, 12),
            "bilinear": nn.Bilinear(4, 4, 4),
        }
    )
    model["two"].weight = tied.weight
    found = {choice.name: (choice.taken, choice.reason) for choice in tmt.sparsify(model, "2:4").report}
    assert set(found) == {
        name.replace("taken.parametrizations.weight.original", "taken.weight")
        .replace("attention.parametrizations.in_proj_weight.original", "attention.in_proj_weight")
        .replace("out_proj.parametrizations.weight.original", "out_proj.weight")
        for name, _ in model.named_parameters(remove_duplicate=False)
    }
    assert [name for name, (taken, _) in found.items() if taken] == [
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "taken.weight",
    ]
    expected = {
        "embedding.weight": "a look-up table: its rows are picked, not multiplied",
        "odd.table": "table of Odd: not known to be a matrix product",
        "odd.number": "a number: not a matrix",
        "odd.counts": "dtype torch.int32: not trained",
        "rnn.weight_ih_l0": "recurrent weights: torch reads them without the mask",
        "depthwise.weight": "a depthwise convolution; taken only with allow=('depthwise',)",
        "grouped.weight": "a grouped convolution; taken only with allow=('grouped',)",
        "transposed.weight": "a transposed convolution; taken only with allow=('transposed',)",
        "small.weight": "2:4 would keep every entry of 2 x 2 matrices",
        "attention.in_proj_weight": "2:4 on 3 matrices of 8 x 8",
        "attention.bias_k": "a learned bias of the attention, not a weight",
        "normed.parametrizations.weight.original1": "already parametrised; remove that first",
        "pruned.weight_orig": "pruned by torch.nn.utils.prune; make it permanent with prune.remove first",
        "lazy.weight": "not initialised yet; run a forward first",
        "one.weight": "shared with two.weight",
        "two.weight": "shared with one.weight",
        "taken.weight": "2:4 on a matrix of 12 x 8",
        "taken.bias": "1 axis: not a matrix",
        "bilinear.weight": "weight of Bilinear: not known to be a matrix product",
    }
    assert {name: found[name][1] for name in expected} == expected


def test_the_report_prints_as_a_table():
    report = tmt.sparsify(nn.Sequential(nn.Linear(8, 8), nn.PReLU()), "2:4").report
    assert str(report).splitlines() == [
        "+ 0.weight  2:4 on a matrix of 8 x 8",
        "- 0.bias    1 axis: not a matrix",
        "- 1.weight  1 axis: not a matrix",
    ]
    assert [choice.name for choice in report.taken] == ["0.weight"]


def test_a_module_under_two_names_is_one_weight():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert list(tmt.sparsify(model, "2:4").masks()) == ["0.weight"]


def stack():
    return nn.ModuleDict({name: nn.Linear(8, 8) for name in ("first", "body", "head")})


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, ["first", "body", "head"]),
        ({"layers": "body"}, ["body"]),
        ({"layers": ["body.weight", "h*"]}, ["body", "head"]),
        ({"layers": lambda name, module: "o" in name.split(".")[0]}, ["body"]),
        ({"skip_ends": True}, ["body"]),
        ({"layers": ("first", "body"), "transposable": False}, ["first", "body"]),
    ],
)
def test_layers_can_be_chosen(options, taken):
    assert list(tmt.sparsify(stack(), "2:4", **options).masks()) == [f"{name}.weight" for name in taken]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"layers": "bdy"}, ValueError, "`layers` must name parameters or modules of the model, got 'bdy', which"),
        ({"layers": "body.weigth"}, ValueError, "Did you mean 'body.weight'?"),
        ({"layers": "body.bias"}, ValueError, "got 'body.bias': body.bias: 1 axis: not a matrix. Leave it out."),
        ({"layers": [3]}, TypeError, "`layers` must hold strings, got 3"),
        ({"layers": 3}, TypeError, "`layers` must be names, wildcards or a callable, got 3"),
        ({"layers": "body", "skip_ends": True}, ValueError, "left out by `skip_ends`"),
        ({"layers": lambda *_: False}, ValueError, "`model` must have a weight that can take '2:4', got none"),
        ({"pattern": "8:16"}, ValueError, "first.weight: 8:16 would keep every entry of 8 x 8 matrices"),
        ({"pattern": "4:4"}, ValueError, "`pattern` must keep at least 1 entry and prune at least 1, got '4:4'"),
        ({"pattern": "0:4"}, ValueError, "`pattern` must keep at least 1 entry and prune at least 1, got '0:4'"),
        ({"pattern": "5:4"}, ValueError, "`n` must be at most m = 4, got 5"),
        ({"allow": ["groupd"]}, ValueError, "`allow` must be one of .* Did you mean 'grouped'?"),
        ({"transposable": False, "solver": "greedy"}, ValueError, "`transposable` must be True with a `solver`"),
        ({"constraint": "atmost"}, ValueError, "Did you mean 'at_most'?"),
        ({"solver": "enumertion"}, ValueError, "Did you mean 'enumeration'?"),
        (
            {"pattern": "3:6", "solver": "enumeration"},
            tm.UnsupportedPatternError,
            "'enumeration' must be given",
        ),
        ({"estimator": "sr_ste"}, ValueError, "`estimator` must be one of .* Did you mean 'sr-ste'?"),
        ({"refresh_every": 0}, ValueError, "`refresh_every` must be at least 1, got 0"),
        ({"refresh_every": 1.5}, TypeError, "`refresh_every` must be an integer, got 1.5"),
        ({"decay": -1.0}, ValueError, "`decay` must be finite and at least 0, got -1.0"),
        ({"decay": "2e-4"}, TypeError, "`decay` must be a number, got '2e-4'"),
    ],
)
def test_bad_input_gets_one_error_and_leaves_the_model_alone(options, error, text):
    model = stack()
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(error, match=text) as caught:
        tmt.sparsify(model, **{"pattern": "2:4", **options})
    assert isinstance(caught.value, tm.TransmaskError)
    assert "\n" not in str(caught.value)
    assert [name for name, _ in model.named_parameters()] == names


def test_no_model_and_no_parameters():
    with pytest.raises(tm.InvalidTypeError, match=r"`model` must be a torch.nn.Module, got int"):
        tmt.sparsify(3, "2:4")
    with pytest.raises(tm.InvalidArgumentError, match="got none: no parameters"):
        tmt.sparsify(nn.ReLU(), "2:4")
    with pytest.raises(tm.InvalidArgumentError, match="on the meta device, without values"):
        tmt.sparsify(nn.Linear(8, 8, device="meta"), "2:4")


def test_weights_with_nan_are_named_and_nothing_changes():
    model = stack()
    with torch.no_grad():
        model["body"].weight[2, 3] = float("nan")
    with pytest.raises(tm.InvalidArgumentError, match=r"`body.weight` must be finite, got 1 of 64 .* index \(2, 3\)"):
        tmt.sparsify(model, "2:4")
    assert not any(nn.utils.parametrize.is_parametrized(module) for module in model.modules())


def test_a_sparsified_model_is_not_sparsified_again():
    model = stack()
    tmt.sparsify(model, "2:4")
    with pytest.raises(tm.InvalidArgumentError, match="already parametrised; remove that first"):
        tmt.sparsify(model, "1:4")
