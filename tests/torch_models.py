"""Small models of every structure that a pass of the model must cope with, and inputs for them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from transmask import torch as tmt

WIDTH = 16


class Residual(nn.Module):
    """Convolutions with a skip connection and batch normalisation, then a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.short = nn.Conv2d(8, 8, 1, bias=False)
        self.long = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.long(x) + self.short(x))
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    """A transformer block with a key-value cache that it is given, as decoders are."""

    def __init__(self):
        super().__init__()
        self.out, self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=bias) for bias in (True, True, False, True))
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x, cache=None):
        q, k, v = self.q(x), self.k(x), self.v(input=x)
        if cache is not None:
            k, v = torch.cat([cache[0], k], dim=1), torch.cat([cache[1], v], dim=1)
            cache[0], cache[1] = k, v
        x = x + self.out(scaled_dot_product_attention(q, k, v))
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x, attention_mask=None):
        for block in self.blocks:
            x = block(x)
        return x


class Decoder(Encoder):
    def forward(self, x, caches):
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cache=cache)
        return x


class Experts(nn.Module):
    """Routes whole batches and single tokens; the experts are registered in an order in which they may not run."""

    def __init__(self, backwards=False):
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU()) for _ in range(4))
        self.order = [3, 1, 2, 0] if backwards else [0, 1, 2, 3]
        self.head = nn.Linear(16, 8)

    def forward(self, x):
        best = x[:, :4].argmax(1)
        y = torch.zeros(len(x), 16, dtype=x.dtype)
        for index in self.order:
            if (rows := best == index).any():
                y[rows] = self.experts[index](x[rows])
        return self.head(y)


class Shared(nn.Module):
    """One block used three times, between layers that are used once."""

    def __init__(self):
        super().__init__()
        self.head, self.block, self.stem = nn.Linear(WIDTH, 8), Block(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = self.block(x)
        return self.head(x)


class EarlyExit(nn.Module):
    """Leaves early on some batches."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(WIDTH, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x):
        y = torch.relu(self.first(x))
        if x[0, 0] > 0:
            y = torch.relu(self.second(y))
        return self.head(y)


def tokens(seed, *shape):
    """Correlated inputs, as activations are, in double precision."""
    mixing = normal(99, shape[-1], shape[-1]) / shape[-1] ** 0.5
    return normal(seed, *shape) @ mixing


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MODELS = {
    "residual": (Residual, lambda seed: normal(seed, 4, 4, 6, 6)),
    "encoder": (Encoder, lambda seed: tokens(seed, 5, 9, WIDTH)),
    "decoder": (Decoder, lambda seed: {"x": tokens(seed, 5, 9, WIDTH), "caches": seed}),
    # Five rows: every batch leaves out some expert.
    "experts": (Experts, lambda seed: tokens(seed, 5, WIDTH)),
    "experts backwards": (lambda: Experts(backwards=True), lambda seed: tokens(seed, 5, WIDTH)),
    "shared": (Shared, lambda seed: tokens(seed, 5, 9, WIDTH)),
    "early exit": (EarlyExit, lambda seed: tokens(seed, 24, WIDTH) + 9 * (-1) ** seed),
}


def run(model, batch):
    """Run a model; a decoder gets caches that are filled already, new ones every time."""
    if isinstance(batch, dict):
        return model(batch["x"], [[tokens(batch["caches"] + i, 5, 3, WIDTH) for _ in "kv"] for i in range(2)])
    return model(batch)


def model_and_batches(name):
    """Return a model in double precision and five batches for it."""
    make, batch = MODELS[name]
    torch.manual_seed(0)
    return make().double().eval(), [batch(seed) for seed in range(5)]


def reconstruct(model, batches, pattern="2:4", **options):
    return tmt.reconstruct(model, batches, pattern, **{"progress": False, "forward": run, **options})


def leaves_the_model(model, error, call):
    """Expect an error that changes nothing: no weight, no statistics, no mode, no hook, one line."""
    model.train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error) as caught:
        call()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert len(str(caught.value).splitlines()) <= 1
    return str(caught.value)
