"""Small networks and inputs for the tests of reconstruction."""

import copy

import numpy as np
import torch
from torch import nn

from transmask.torch import sparsify


def data(count, width, seed=0, rank=None):
    """Correlated inputs, as activations are; of a lower rank if asked."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(123).standard_normal((rank or width, width)) / np.sqrt(width)
    return torch.from_numpy((rng.standard_normal((count, rank or width)) @ mixing).astype(np.float32))


def two_layers(seed=0, width=32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, 16))


def output_error(model, reference, inputs):
    with torch.no_grad():
        expected = reference(inputs)
        return float((model(inputs) - expected).square().sum() / expected.square().sum())


def mask_only(model, pattern, **options):
    masked = copy.deepcopy(model)
    sparsify(masked, pattern, **options).remove()
    return masked
