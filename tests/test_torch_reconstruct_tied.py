"""`reconstruct` of a weight that several layers share: what it does to one layer that is called as often."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from torch import nn  # noqa: E402
from torch_models import tokens  # noqa: E402

import transmask as tm  # noqa: E402
from transmask.torch import convert_unstructured, reconstruct  # noqa: E402


class Net(nn.Module):
    """Layers of which some are the same one, or copies that share its weight and bias."""

    def __init__(self, kind, tied, bias=True):
        super().__init__()
        torch.manual_seed(0)
        if kind == "linear":
            self.stem, make = nn.Linear(16, 16), lambda: nn.Linear(16, 16, bias=bias)
        else:
            self.stem, make = nn.Conv1d(16, 16, 1), lambda: nn.Conv1d(16, 16, 3, padding=1, bias=bias)
        self.one, self.mid = make(), make()
        self.two = make() if tied else self.one
        self.two.weight, self.two.bias = self.one.weight, self.one.bias
        self.double()

    def forward(self, x):
        x = torch.relu(self.one(torch.relu(self.stem(x))))
        return self.two(torch.tanh(self.mid(x)))


def batches(kind):
    found = [tokens(seed, 5, 9, 16) for seed in range(4)]
    return found if kind == "linear" else [x.mT.contiguous() for x in found]


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("method", ["least_squares", "alps"])
def test_all_uses_count(kind, bias, sequential, method):
    tied, twice, data = Net(kind, True, bias), Net(kind, False, bias), batches(kind)
    options = {"sequential": sequential, "method": method, "progress": False}
    report = reconstruct(tied, data, "2:4", **options)
    expected = reconstruct(twice, data, "2:4", **options)
    assert [fit.name for fit in report.fits] == [fit.name for fit in expected.fits]
    assert sorted(fit.name for fit in report.fits) == ["mid.weight", "one.weight", "stem.weight"]
    assert dict(report.left)["two.weight"] == "the same weight as one.weight"
    assert tied.two.weight is tied.one.weight
    for name, value in twice.named_parameters():
        torch.testing.assert_close(tied.get_parameter(name), value, rtol=1e-7, atol=1e-9)
    # With the inputs of its first use alone it becomes something else.
    once = Net(kind, True, bias)
    once.two.weight = nn.Parameter(once.two.weight.detach().clone())
    reconstruct(once, data, "2:4", **options)
    assert not torch.allclose(once.one.weight, tied.one.weight)


def test_matched_blocks_leave_the_weight_that_another_block_trains():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return x + self.down(torch.relu(self.up(x)))

    model = nn.Sequential(Block(), Block()).double()
    model[1].up.weight, model[1].up.bias = model[0].up.weight, model[0].up.bias
    report = reconstruct(model, batches("linear"), "2:4", match="blocks", match_steps=20, progress=False)
    assert list(report.matches) == ["0", "1"]
    weight = model[0].up.weight
    assert model[1].up.weight is weight
    assert (weight != 0).sum() == weight.numel() // 2


def test_a_weight_that_is_used_in_two_ways_is_left():
    model = Net("linear", True)
    for name, change in {
        "another bias": lambda layer: setattr(layer, "bias", nn.Parameter(torch.zeros(16).double())),
        "no bias": lambda layer: setattr(layer, "bias", None),
    }.items():
        changed = copy.deepcopy(model)
        change(changed.two)
        before = changed.one.weight.detach().clone()
        report = reconstruct(changed, batches("linear"), "2:4", progress=False)
        why = "shared with a layer of another kind or with another bias"
        assert dict(report.left)["one.weight"] == why, name
        assert torch.equal(changed.one.weight, before)


def test_an_embedding_that_is_tied_is_left():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.mid, self.head = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 20, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(torch.relu(self.mid(self.embedding(x))))

    model = Language()
    before = model.head.weight.detach().clone()
    report = reconstruct(model, [torch.randint(20, (8, 9))], "2:4", progress=False)
    assert [fit.name for fit in report.fits] == ["mid.weight"]
    assert torch.equal(model.head.weight, before)
    assert dict(report.left)["head.weight"] == "the same weight as embedding.weight"


def test_the_second_name_is_not_taken():
    model = Net("linear", True)
    with pytest.raises(tm.InvalidArgumentError, match=r"got 'two.weight': two.weight: the same weight as one.weight"):
        reconstruct(model, batches("linear"), {"two.weight": "2:4"}, progress=False)


def test_unstructured_zeros_of_a_tied_weight_are_converted():
    model = Net("linear", True)
    with torch.no_grad():
        model.one.weight *= torch.rand(16, 16) > 0.9
    report = convert_unstructured(model, batches("linear"), 8, progress=False)
    assert [fit.name for fit in report.fits] == ["one.weight"]
