"""The Conv1D of transformers is a linear layer that holds its weight the other way round."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # two threads that wait for each other are slow on a busy machine

from torch import nn  # noqa: E402
from torch_models import reconstruct, tokens  # noqa: E402

from transmask import torch as tmt  # noqa: E402


class Conv1D(nn.Module):
    """As in transformers/pytorch_utils.py, where GPT-2 takes it from."""

    def __init__(self, nf, nx):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(x.size()[:-1] + self.weight.shape[1:])


Conv1D.__module__ = "transformers.pytorch_utils"


@pytest.mark.parametrize("options", [{}, {"transposable": False}, {"scores": "wanda", "sequential": False}])
def test_conv1d_of_transformers_is_a_linear_layer(options):
    torch.manual_seed(0)
    turned = nn.Sequential(Conv1D(32, 16), nn.GELU(), Conv1D(16, 32)).double()
    linear = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)).double()
    for mine, theirs in ((turned[0], linear[0]), (turned[2], linear[2])):
        mine.weight.data.copy_(theirs.weight.T)
        mine.bias.data.copy_(theirs.bias)
    batches = [{"x": tokens(seed, 4, 9, 16), "attention_mask": torch.arange(9).expand(4, 9) < 7} for seed in range(3)]
    masked = {"forward": lambda model, batch: model(batch["x"])}
    reports = [reconstruct(model, batches, "1:4", **masked, **options) for model in (turned, linear)]
    for mine, theirs in zip(reports[0].fits, reports[1].fits, strict=True):
        assert mine.error_fitted == pytest.approx(theirs.error_fitted, rel=1e-9)
    for index in (0, 2):
        torch.testing.assert_close(turned[index].weight.T, linear[index].weight, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(turned[index].bias, linear[index].bias, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("transposable", [True, False])
def test_conv1d_of_transformers_trains_with_the_mask_of_a_linear_layer(transposable):
    turned, linear = nn.Sequential(Conv1D(32, 16)), nn.Sequential(nn.Linear(16, 32))
    linear[0].weight.data.copy_(turned[0].weight.T)
    masks = [tmt.sparsify(model, "2:4", transposable=transposable).masks() for model in (turned, linear)]
    assert torch.equal(masks[0]["0.weight"].T, masks[1]["0.weight"])
