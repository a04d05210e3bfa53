"""One pass of the model on every batch: the same result as a pass for every layer, and no thread left behind."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # two threads that wait for each other are slow on a busy machine

from torch import nn  # noqa: E402
from torch_by_hand import fitted_by_hand  # noqa: E402
from torch_models import MODELS, Encoder, leaves_the_model, model_and_batches, reconstruct, run, tokens  # noqa: E402

import transmask as tm  # noqa: E402
from transmask.torch.reconstruction.gram import Gram  # noqa: E402


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + 5  # one that has left the model is listed for a moment more
    while (left := set(threading.enumerate()) - before) and time.monotonic() < until:
        time.sleep(0.01)
    assert not left


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_one_pass_gives_what_a_pass_for_every_layer_gives(name, sequential):
    model, batches = model_and_batches(name)
    by_hand = copy.deepcopy(model)
    order = fitted_by_hand(by_hand, batches, sequential=sequential)
    report = reconstruct(model, batches, sequential=sequential, batch_norm=False)
    assert sorted(fit.name.removesuffix(".weight") for fit in report.fits) == sorted(order)
    for (key, mine), theirs in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


# ---- how often the model runs


@pytest.fixture
def runs():
    """A `forward` that counts its calls."""
    counts = []

    def forward(model, batch):
        counts.append(batch)
        return run(model, batch)

    return forward, counts


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", ["residual", "encoder", "decoder", "experts", "early exit"])
def test_the_model_runs_once_on_every_batch(name, sequential, runs):
    model, batches = model_and_batches(name)
    forward, counts = runs
    report = reconstruct(model, batches, forward=forward, sequential=sequential, batch_norm=False)
    assert len(counts) == len(batches)
    assert len(report.fits) > 2
    assert min(report.seconds.forward, report.seconds.gram, report.seconds.solving) > 0


def test_layers_used_three_times_cost_a_pass_each_and_the_beginning_of_one(runs):
    model, batches = model_and_batches("shared")
    forward, counts = runs
    report = reconstruct(model, batches, forward=forward)
    assert len(report.fits) == 8
    assert len(counts) <= (1 + 2 * 6) * len(batches)


def test_layers_that_see_the_same_tensor_share_one_gram_matrix(monkeypatch):
    model, batches = model_and_batches("encoder")
    added = []
    monkeypatch.setattr(Gram, "add", lambda self, *args, add=Gram.add: (added.append(self), add(self, *args))[1])
    reconstruct(model, batches, layers="blocks.0.*")
    # k has no bias, so no input of ones; v comes after it.
    assert len(set(added)) == 6
    del added[:]
    for block in model.blocks:
        block.k = nn.Linear(16, 16).double()
    reconstruct(model, batches, layers="blocks.0.*")
    assert len(set(added)) == 4


def test_a_tensor_changed_in_place_is_another_input():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            x = x.clone()
            y = self.one(x)
            return self.two(x.relu_()) + y

    torch.manual_seed(0)
    model, batches = InPlace().double(), [tokens(seed, 40, 16) for seed in range(3)]
    by_hand = copy.deepcopy(model)
    fitted_by_hand(by_hand, batches, sequential=True)
    reconstruct(model, batches)
    torch.testing.assert_close(model.two.weight, by_hand.two.weight, rtol=1e-7, atol=1e-9)


# ---- errors and interrupts; `no_thread_is_left` counts threads after every test


class Failing(Encoder):
    """Fails after the first block on batches that say so; other batches wait in their threads by then."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        x = self.blocks[0](x)
        if (x[:, 0, 0] > 1e6).any():
            self.act()
        return self.blocks[1](x)


def failing_batches():
    batches = [tokens(seed, 4, 6, 16) for seed in range(4)]
    batches[2][0, 0, 0] = 1e8
    return batches


def raise_(error):
    raise error


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("error", [KeyError("cache"), AssertionError(), torch.OutOfMemoryError("out of memory")])
def test_a_batch_that_fails_in_the_middle_is_named(error, sequential):
    model = Failing(lambda: raise_(error)).double()
    call = lambda: reconstruct(model, failing_batches(), sequential=sequential)  # noqa: E731
    text = leaves_the_model(model, tm.InvalidArgumentError, call)
    assert "got batch 2, of shape (4, 6, 16), on which it fails: " in text
    assert (str(error) or "AssertionError") in text


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("act", [press_ctrl_c, lambda: raise_(KeyboardInterrupt), lambda: raise_(SystemExit(3))])
def test_an_interrupt_in_a_forward_ends_every_thread(act):
    model = Failing(act).double()
    leaves_the_model(model, (KeyboardInterrupt, SystemExit), lambda: reconstruct(model, failing_batches()))


@pytest.mark.parametrize("presses", [1, 3])
def test_an_interrupt_while_a_layer_is_fitted_ends_every_thread(presses):
    model = Encoder().double()

    def scores(weight, gram):
        if len(weight) == 32:
            assert threading.active_count() >= 5  # every batch waits
            for _ in range(presses):
                press_ctrl_c()
        return weight

    batches = [tokens(seed, 4, 6, 16) for seed in range(4)]
    leaves_the_model(model, KeyboardInterrupt, lambda: reconstruct(model, batches, scores=scores))


def test_the_model_may_be_run_while_a_layer_is_treated():
    model, batches = model_and_batches("encoder")
    outputs = []
    reconstruct(model, batches, scores=lambda weight, gram: outputs.append(model(batches[0])) or weight)
    assert len(outputs) == 12
    assert not torch.equal(outputs[0], outputs[-1])


def test_a_model_that_catches_everything_is_ended_all_the_same():
    class Catching(Encoder):
        def forward(self, x):
            for block in self.blocks:
                try:
                    x = block(x)
                except BaseException:
                    x = x + 1
            return x

    model = Catching().double()
    model.blocks[0].q.register_forward_hook(lambda module, args, output: output * float("inf"))
    batches = [tokens(seed, 4, 6, 16) for seed in range(3)]
    with pytest.raises(tm.InvalidArgumentError, match=r"NaN or infinite inputs of blocks\.0\.out\.weight"):
        reconstruct(model, batches)


def test_nan_activations_name_the_layer():
    model = Encoder().double()
    model.blocks[0].norm.weight.data[3] = float("inf")
    batches = [tokens(seed, 4, 6, 16) for seed in range(3)]
    text = leaves_the_model(model, tm.InvalidArgumentError, lambda: reconstruct(model, batches))
    assert text == "`calibration` must give finite activations, got NaN or infinite inputs of blocks.0.up.weight."


class Pressing(nn.Module):
    """Presses Ctrl-C when its forward is ended before its time: a layer is called again, so the pass is given up."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.inside = 0

    def forward(self, x):
        self.inside += 1
        try:
            return self.layer(self.layer(x))
        except BaseException:
            press_ctrl_c()
            time.sleep(0.1)  # Ctrl-C finds who waits for this thread
            raise
        finally:
            self.inside -= 1


def test_an_interrupt_between_two_passes_is_not_lost():
    model = Pressing().double()
    leaves_the_model(model, KeyboardInterrupt, lambda: reconstruct(model, [tokens(seed, 9, 16) for seed in range(3)]))
    assert model.inside == 0
