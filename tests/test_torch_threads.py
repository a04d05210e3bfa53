"""What torch and Python keep for each thread holds in the threads of the batches."""

from __future__ import annotations

import contextvars
import copy
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # two threads that wait for each other are slow on a busy machine

from torch import nn  # noqa: E402
from torch_models import model_and_batches, reconstruct, tokens  # noqa: E402


def test_the_settings_of_the_caller_hold_in_every_thread():
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    def forward(model, batch):
        here = (
            torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            torch.get_default_device().type,
            torch.are_deterministic_algorithms_enabled(),
            np.geterr()["over"],
            variable.get(),
            threading.current_thread() is threading.main_thread(),
        )
        seen.append(here)
        variable.set("changed within the forward")
        assert model(batch).dtype == (torch.bfloat16 if here[0] else torch.float32)

    batches = [tokens(seed, 20, 16).float() for seed in range(3)]
    model = nn.Linear(16, 16)
    reconstruct(copy.deepcopy(model), batches, forward=forward)
    assert seen == [(None, False, False, "cpu", False, "warn", "unset", False)] * 3
    del seen[:]
    variable.set("set")
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.device("meta"), np.errstate(over="raise"):
            reconstruct(model, batches, forward=forward)
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [(torch.bfloat16, False, False, "meta", True, "raise", "set", False)] * 3
    assert variable.get() == "set"


def test_inference_mode_and_autocast_around_the_call_change_no_result():
    model, batches = model_and_batches("encoder")
    expected, inference = copy.deepcopy(model), copy.deepcopy(model)
    reconstruct(expected, batches)
    with torch.inference_mode():
        reconstruct(inference, batches)
    for mine, theirs in zip(inference.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_autocast_does_not_serve_dense_weights_to_a_second_pass():
    """Its cache keeps lower-precision copies of weights while it is on; here the last layer would see a stale one."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return self.last(self.twice(self.twice(x)))

    torch.manual_seed(0)
    models = [Twice()]
    models.append(copy.deepcopy(models[0]))
    for model, cached in zip(models, (True, False), strict=True):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            reconstruct(model, [tokens(seed, 40, 16).float() for seed in range(3)])
    assert torch.equal(models[0].last.weight, models[1].last.weight)
