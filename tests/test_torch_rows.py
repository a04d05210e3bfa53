"""Which rows of a batch count: padding does not, and layers without rows get their mask alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # two threads that wait for each other are slow on a busy machine

from torch import nn  # noqa: E402
from torch_by_hand import refit  # noqa: E402
from torch_models import leaves_the_model, normal, reconstruct, tokens  # noqa: E402

import transmask as tm  # noqa: E402


def with_padding(seed):
    """A batch whose mask leaves out a third of the tokens, which hold large numbers."""
    x = tokens(seed, 5, 9, 16)
    mask = (normal(seed + 50, 5, 9) > -0.4).long()
    x[mask == 0] = 1e3 * normal(seed + 60, int((mask == 0).sum()), 16)
    return {"x": x, "attention_mask": mask}


class Tokenwise(nn.Module):
    """Sees sequences, the same tokens in one row, and one vector a sequence."""

    def __init__(self):
        super().__init__()
        self.first, self.flat, self.pooled = nn.Linear(16, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 8)

    def forward(self, x, attention_mask=None):
        x = torch.relu(self.first(x))
        x = torch.relu(self.flat(x.reshape(-1, 16))).reshape(x.shape)
        return self.pooled(x[:, 0])


@pytest.mark.parametrize("form", ["attention_mask", "row_weights", "weights of 2"])
def test_padding_does_not_count(form):
    torch.manual_seed(0)
    model, batches = Tokenwise().double(), [with_padding(seed) for seed in range(12)]
    reference = copy.deepcopy(model)
    options = {"forward": lambda model, batch: model(**batch)}
    if form == "attention_mask":
        reconstruct(model, batches, **options)
    else:
        scale = 2.0 if form == "weights of 2" else 1.0
        plain = [(batch["x"], batch["attention_mask"]) for batch in batches]
        options = {"forward": None, "row_weights": lambda batch: scale * batch[1]}
        reconstruct(model, plain, **options)
    counted = torch.cat([batch["x"][batch["attention_mask"] == 1] for batch in batches])
    expected = copy.deepcopy(reference)
    design = np.concatenate([counted.numpy(), np.ones((len(counted), 1))], axis=1)
    refit(expected.first, design)
    torch.testing.assert_close(model.first.weight, expected.first.weight, rtol=1e-8, atol=1e-10)
    refit(expected.flat, torch.relu(expected.first(counted)).detach().numpy())
    torch.testing.assert_close(model.flat.weight, expected.flat.weight, rtol=1e-8, atol=1e-10)
    heads = torch.cat([batch["x"][:, 0] for batch in batches])  # one row a sequence: all of them count
    heads = torch.relu(expected.flat(torch.relu(expected.first(heads)))).detach().numpy()
    refit(expected.pooled, np.concatenate([heads, np.ones((len(heads), 1))], axis=1))
    torch.testing.assert_close(model.pooled.weight, expected.pooled.weight, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_sequences_that_torch_packs_without_padding_count_the_same():
    """nn.TransformerEncoder calls its layers with nested tensors where it is given a padding mask."""
    weights = []
    for packed in (True, False):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=packed).double()
        batches = [{"x": tokens(seed, 5, 9, 16), "attention_mask": torch.ones(5, 9)} for seed in range(3)]
        for batch in batches:
            batch["attention_mask"][1:, 6:] = 0
        kinds = set()
        model.layers[0].linear1.register_forward_hook(lambda m, args, out, kinds=kinds: kinds.add(args[0].is_nested))
        reconstruct(
            model, batches, forward=lambda m, batch: m(batch["x"], src_key_padding_mask=batch["attention_mask"] == 0)
        )
        assert kinds == {packed}
        weights.append(model.layers[1].linear2.weight)
    torch.testing.assert_close(*weights, rtol=1e-8, atol=1e-10)


class Sparse(nn.Module):
    """Calls one layer without any tokens, and another one never."""

    def __init__(self):
        super().__init__()
        self.never, self.empty, self.used = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.filters = nn.Conv1d(16, 16, 3)

    def forward(self, x):
        self.filters(x[:0, :, None].expand(-1, -1, 5))
        return self.used(x) + self.empty(x[:0]).sum()


@pytest.mark.parametrize("scores", ["magnitude", "wanda", lambda weight, gram: weight / gram.sum()])
@pytest.mark.parametrize("sequential", [True, False])
def test_layers_without_rows_get_their_mask_and_a_note(scores, sequential):
    torch.manual_seed(0)
    model, batches = Sparse().double(), [tokens(seed, 20, 16) for seed in range(3)]
    before = copy.deepcopy(model)
    report = reconstruct(model, batches, scores=scores, sequential=sequential)
    fits = {fit.name: fit for fit in report.fits}
    for name in ("never", "empty", "filters"):
        fit = fits[f"{name}.weight"]
        assert fit.note == "mask only: no calibration row reaches it"
        assert fit.error_masked == fit.error_fitted == 0
        dense = before.get_submodule(name)
        mask = torch.from_numpy(tm.transposable_mask(dense.weight.detach().numpy(), "2:4", axes=(0, 1)))
        assert torch.equal(model.get_submodule(name).weight, dense.weight * mask)
        assert torch.equal(model.get_submodule(name).bias, dense.bias)
    assert fits["used.weight"].note == ""
    assert 0 < fits["used.weight"].error_fitted < fits["used.weight"].error_masked


def test_padding_everywhere_reaches_no_layer():
    model = Tokenwise().double()
    batches = [{"x": tokens(0, 5, 9, 16), "attention_mask": torch.zeros(5, 9)}]
    call = lambda: reconstruct(model, batches, forward=None, layers=["first", "flat"])  # noqa: E731
    assert "must reach at least one layer" in leaves_the_model(model, tm.InvalidArgumentError, call)


def test_a_row_of_weight_three_counts_like_three_rows():
    torch.manual_seed(0)
    model, x = nn.Linear(16, 16).double(), tokens(0, 40, 16)
    weights = torch.arange(40) % 4
    expected = copy.deepcopy(model)
    reconstruct(expected, [x.repeat_interleave(weights, dim=0)])
    reconstruct(model, [x], row_weights=lambda batch: weights)
    torch.testing.assert_close(model.weight, expected.weight, rtol=1e-8, atol=1e-10)
