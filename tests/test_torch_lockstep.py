"""One pass of the model on every batch: the same result as a pass for every layer, and no thread left behind."""

from __future__ import annotations

import contextvars
import copy
import importlib
import os
import signal
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # two threads that wait for each other are slow on a busy machine

from torch import nn  # noqa: E402
from torch_models import MODELS, Encoder, normal, run, tokens  # noqa: E402

import transmask as tm  # noqa: E402
from transmask import torch as tmt  # noqa: E402
from transmask.torch.reconstruction.gram import Gram, layer_rows  # noqa: E402

RIDGE = 1e-2  # of `LeastSquares`


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def reconstruct(model, batches, pattern="2:4", **options):
    return tmt.reconstruct(model, batches, pattern, **{"progress": False, "forward": run, **options})


def model_and_batches(name):
    make, batch = MODELS[name]
    torch.manual_seed(0)
    return make().double().eval(), [batch(seed) for seed in range(5)]


# ---- a pass of the model for every layer, in numpy


def fitted_by_hand(model, batches, *, sequential):
    """Run the whole model once for each layer, record what the layer is called with, and solve row by row."""
    order = max((recorded(model, [batch], None) for batch in batches), key=len)  # of one that goes everywhere
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    order += [name for name in layers if name not in order]
    dense = copy.deepcopy(model)
    for name in order:
        source = model if sequential else dense
        rows = recorded(source, batches, name)
        refit(layers[name], rows.numpy() if rows is not None else None)
    return order


def recorded(model, batches, name):
    """Return all inputs of a layer as rows; without a name, the layers in the order of their first calls."""
    calls, handles = [], []
    for key, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and name in (None, key):

            def record(module, args, kwargs, output, key=key):
                calls.append((key, torch.cat(list(layer_rows(module, args[0] if args else kwargs["input"])), dim=1)[0]))

            handles.append(module.register_forward_hook(record, with_kwargs=True))
    with torch.no_grad():
        for batch in batches:
            run(model, batch)
    for handle in handles:
        handle.remove()
    if name is None:
        return list(dict.fromkeys(key for key, _ in calls))
    return torch.cat([rows for _, rows in calls]) if calls else None


@torch.no_grad()
def refit(layer, design):
    mask = tm.transposable_mask(layer.weight.numpy(), "2:4", axes=(0, 1))
    layer_mask = mask.reshape(len(mask), -1)
    weights = layer.weight.reshape(len(mask), -1).numpy().copy()
    if design is None:
        layer.weight *= torch.from_numpy(mask)
        return
    inputs = weights.shape[1]
    penalty = np.zeros(design.shape[1])
    penalty[:inputs] = RIDGE * np.square(design[:, :inputs]).sum() / inputs
    for row, kept in enumerate(layer_mask):
        support = np.append(kept, True) if layer.bias is not None else kept
        old = np.append(weights[row], layer.bias[row].item()) if layer.bias is not None else weights[row]
        left = design[:, support].T @ design[:, support] + np.diag(penalty[support])
        right = design[:, support].T @ (design @ old) + penalty[support] * old[support]
        new = np.zeros(len(old))
        new[support] = np.linalg.solve(left, right)
        layer.weight[row] = torch.from_numpy(new[:inputs]).reshape(layer.weight[row].shape)
        if layer.bias is not None:
            layer.bias[row] = new[-1]


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

    def forward(self, x):
        try:
            return self.layer(self.layer(x))
        except BaseException:
            press_ctrl_c()
            raise


def test_an_interrupt_between_two_passes_is_not_lost():
    model = Pressing().double()
    leaves_the_model(model, KeyboardInterrupt, lambda: reconstruct(model, [tokens(seed, 9, 16) for seed in range(3)]))


# ---- what torch keeps for each thread


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


# ---- rows that do not count, and layers without rows


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


# ---- activations on the CPU


class Keeping(nn.Module):
    """Keeps a tensor of its first forward for all the others, and reads one layer's input through a view."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = (nn.Linear(16, 16) for _ in range(3))
        self.kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = torch.sin(torch.arange(16, dtype=torch.float64))
        x = x * self.kept
        view = x[:, :4]
        y = self.first(x)
        view.mul_(2)  # changes x as well
        return self.last(torch.relu(self.second(x)) + y * self.kept)


@pytest.mark.parametrize("name", ["residual", "decoder", "experts", "shared", "keeping"])
def test_offloading_changes_no_result(name, monkeypatch):
    """On the CPU, where every tensor is treated as if it were elsewhere."""
    module = importlib.import_module("transmask.torch.reconstruction.offload")
    monkeypatch.setattr(module, "is_movable", lambda value: type(value) is torch.Tensor)
    torch.manual_seed(0)
    if name == "keeping":
        model, batches = Keeping().double(), [tokens(seed, 40, 16) for seed in range(4)]
    else:
        model, batches = model_and_batches(name)
    expected, inputs = copy.deepcopy(model), copy.deepcopy(batches)
    reconstruct(expected, batches)
    emptied = []
    monkeypatch.setattr(
        module._Emptied, "empty", lambda self, empty=module._Emptied.empty: (emptied.append(self), empty(self))
    )
    reconstruct(model, batches, offload=True)
    assert len(emptied) > 20
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    if name == "keeping":
        assert torch.equal(model.kept, expected.kept)
    if name != "decoder":
        assert all(torch.equal(now, before) for now, before in zip(batches, inputs, strict=True))


def test_while_a_layer_is_fitted_no_waiting_batch_holds_memory(monkeypatch):
    module = importlib.import_module("transmask.torch.reconstruction.offload")
    monkeypatch.setattr(module, "is_movable", lambda value: type(value) is torch.Tensor)
    held = []

    def scores(weight, gram):
        held.append([x.untyped_storage().nbytes() for x in alive])
        return weight

    alive = []
    model, batches = model_and_batches("encoder")
    model.blocks[0].norm.register_forward_hook(lambda module, args, output: alive.append(output))
    model.blocks[0].norm.register_forward_hook(lambda module, args, output: alive.append(args[0]))
    reconstruct(model, batches, offload=True, scores=scores, layers=["blocks.0.up", "blocks.0.down"])
    assert held == [[0] * 10] * 2
    assert all(x.untyped_storage().nbytes() > 0 for x in alive)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offloading_on_cuda_frees_what_waiting_batches_hold():
    model, batches = model_and_batches("encoder")
    there, batches = copy.deepcopy(model).cuda(), [tokens(seed, 64, 512, 16).cuda() for seed in range(8)]
    peaks = []
    for offload in (False, True):
        one = copy.deepcopy(there)
        torch.cuda.reset_peak_memory_stats()
        reconstruct(one, batches, offload=offload)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.7 * peaks[0]
