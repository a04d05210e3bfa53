"""`reconstruct` with `match`: every block is trained once its layers are fitted, in the same pass of the model."""

from __future__ import annotations

import copy
import threading

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # two threads that wait for each other are slow on a busy machine

from torch import nn  # noqa: E402
from torch_models import WIDTH, Block, Encoder, leaves_the_model, model_and_batches, reconstruct, run, tokens  # noqa: E402

import transmask as tm  # noqa: E402
from transmask.torch.reconstruction import treatment  # noqa: E402
from transmask.torch.reconstruction.block_matching import match_block  # noqa: E402

STEPS = 30


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def matched(model, batches, **options):
    return reconstruct(model, batches, **{"match": "blocks", "match_steps": STEPS, "batch_norm": False, **options})


def error(model, dense, batches):
    with torch.no_grad():
        return sum(float((run(model, batch) - run(dense, batch)).square().sum()) for batch in batches)


@pytest.mark.parametrize(("method", "padding"), [("least_squares", 0), ("alps", 0), ("least_squares", 4)])
def test_it_does_what_block_after_block_by_hand_does(method, padding):
    model, batches = model_and_batches("encoder")
    by_hand = copy.deepcopy(model)
    counts = torch.arange(9).expand(5, 9) < 9 - padding
    options = {"method": method, "row_weights": lambda batch: counts}
    report = matched(model, batches, **options)
    seen = wanted = batches
    with torch.no_grad():
        for index, block in enumerate(by_hand.blocks):
            dense = copy.deepcopy(block)
            wanted = [dense(x) for x in wanted]
            fits = reconstruct(block, seen, **options).fits
            masks = {fit.name: block.get_parameter(fit.name) != 0 for fit in fits}
            match = match_block(block, [((x,), {}) for x in seen], wanted, masks, steps=STEPS, row_weights=[counts] * 5)
            assert report.matches[f"blocks.{index}"].error_after == pytest.approx(match.error_after, rel=1e-6)
            assert match.step > 0
            seen = [block(x) for x in seen]
    for (key, mine), theirs in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")
    assert report.seconds.matching > 0
    assert "blocks.1        " in str(report)


@pytest.mark.parametrize(
    ("name", "match"),
    [("encoder", "blocks"), ("decoder", "blocks"), ("residual", ["long"]), ("experts", ["experts.1", "experts.3"])],
)
def test_models_come_closer_to_the_dense_one_and_masks_hold(name, match):
    model, batches = model_and_batches(name)
    dense, plain = copy.deepcopy(model), copy.deepcopy(model)
    report = matched(model, batches, match=match)
    reconstruct(plain, batches, batch_norm=False)
    if name == "experts":  # five rows a batch are too few to train on
        assert all(match.step == 0 for match in report.matches.values())
    else:
        assert error(model, dense, batches) < error(plain, dense, batches)
    assert len(report.matches) == (2 if match == "blocks" else len(match))
    for fit in report.fits:
        assert tm.check_mask((model.get_parameter(fit.name) != 0).numpy(), "2:4", constraint="at_most", axes=(0, 1)).ok
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_the_model_runs_twice_on_every_batch():
    model, batches = model_and_batches("encoder")
    counts = []
    matched(model, batches, forward=lambda model, batch: (counts.append(batch), run(model, batch)))
    assert len(counts) == 2 * len(batches)


class Late(nn.Module):
    """Two blocks, and then a layer of the first once more."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, 8)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x + self.blocks[0].q(x))


def test_a_layer_that_comes_again_undoes_the_blocks_that_were_trained_after_it(monkeypatch):
    """It is then fitted to all its calls, as it is at once where that is known."""
    torch.manual_seed(0)
    model, batches = Late().double(), [tokens(seed, 5, 9, WIDTH) for seed in range(5)]
    known = copy.deepcopy(model)
    report = matched(model, batches)
    init = treatment.Treatment.__init__

    def with_foresight(self, *args, **options):
        init(self, *args, **options)
        self._repeated.add(known.blocks[0].q)

    monkeypatch.setattr(treatment.Treatment, "__init__", with_foresight)
    expected = matched(known, batches)
    assert list(report.matches) == list(expected.matches) == ["blocks.0", "blocks.1"]
    for (key, mine), theirs in zip(model.named_parameters(), known.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")


def test_a_block_that_is_called_three_times_is_left_with_the_reason():
    model, batches = model_and_batches("shared")
    report = matched(model, batches, match=["block"])
    assert not report.matches
    assert ("block", "not matched: called more than once a batch") in report.left


class Fickle(nn.Module):
    """Calls its second block where the first answers much, which it does only when it is pruned, or only when not."""

    def __init__(self, only_dense):
        super().__init__()
        self.blocks, self.only_dense = nn.ModuleList(Block() for _ in range(2)), only_dense

    def forward(self, x):
        x = self.blocks[0](x)
        dense = bool(self.blocks[0].q.weight.all())
        return self.blocks[1](x) if dense == self.only_dense else x


@pytest.mark.parametrize(("only_dense", "why"), [(False, "not called"), (True, None)])
def test_a_block_that_only_one_of_the_models_calls_is_left(only_dense, why):
    torch.manual_seed(0)
    model = Fickle(only_dense).double()
    report = matched(model, [tokens(seed, 5, 9, WIDTH) for seed in range(3)])
    assert list(report.matches) == ["blocks.0"]
    assert dict(report.left).get("blocks.1") == (f"not matched: {why}" if why else None)


class Doubling(Encoder):
    def forward(self, x):
        return self.blocks[1](2 * self.blocks[0](x))


def test_hooks_of_a_block_run_once_each_time_it_does():
    model, batches = model_and_batches("encoder")
    other = Doubling().double()
    other.load_state_dict(model.state_dict())
    model.blocks[1].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    matched(model, batches)
    matched(other, batches)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_tensors_made_in_inference_mode_and_answers_on_the_cpu():
    model, batches = model_and_batches("encoder")
    other = copy.deepcopy(model)
    with torch.inference_mode():
        batches_made = [batch.clone() for batch in batches]
        matched(model, batches_made, offload=True)
    matched(other, batches)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("residual", {}, "`match` must be None for a model in which no module repeats, got 'blocks'"),
        (
            "encoder",
            {"match": "encoder"},
            "`match` must be 'blocks', names of modules in a list, or None, got 'encoder'",
        ),
        ("encoder", {"match": 3}, "`match` must be 'blocks', names of modules in a list, or None, got 3"),
        ("encoder", {"match": ["blocks.2"]}, "`match` must name modules of the model, got 'blocks.2'"),
        ("encoder", {"match": []}, "`match` must name at least one module, got none"),
        (
            "encoder",
            {"match": ["blocks.0", "blocks"]},
            "`match` must name separate blocks, got 'blocks.0', which is in 'blocks'",
        ),
        (
            "encoder",
            {"match": ["blocks.0"], "layers": "blocks.1.*"},
            "`match` must name blocks with a weight that is treated, got 'blocks.0'",
        ),
        ("encoder", {"match_steps": 0}, "`match_steps` must be at least 1, got 0"),
        ("encoder", {"match_steps": "many"}, "`match_steps` must be an integer, got 'many'"),
        ("encoder", {"sequential": False}, "`match` must be None with sequential=False, got 'blocks'"),
    ],
)
def test_bad_input_gets_one_line_and_changes_nothing(name, options, text):
    model, batches = model_and_batches(name)
    assert text in leaves_the_model(model, (tm.TransmaskError), lambda: matched(model, batches, **options))


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        class Cache(list):
            pass

        for block in self.blocks:
            x = block(x, cache=Cache([x, x]))
        return x


def test_a_block_that_is_given_a_cache_of_its_own_type_is_refused():
    model = Stateful().double()
    message = leaves_the_model(
        model, tm.InvalidArgumentError, lambda: matched(model, [tokens(seed, 5, 9, WIDTH) for seed in range(3)])
    )
    assert "got a Cache for 'blocks.0'. Run the model without it, as with use_cache=False" in message


def test_an_interrupt_while_a_block_is_trained_changes_nothing(monkeypatch):
    model, batches = model_and_batches("encoder")

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("transmask.torch.reconstruction.matching.match_block", interrupt)
    leaves_the_model(model, KeyboardInterrupt, lambda: matched(model, batches))


@pytest.mark.slow
def test_a_language_model_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    batches = [{"input_ids": torch.randint(64, (4, 12), generator=torch.Generator().manual_seed(s))} for s in range(4)]
    with pytest.raises(tm.InvalidArgumentError, match=r"a DynamicCache for 'model\.layers\.0'.*use_cache=False"):
        reconstruct(model, batches, match="blocks", forward=None)
    batches = [batch | {"use_cache": False} for batch in batches]
    report = reconstruct(model, batches, match="blocks", forward=None)
    assert list(report.matches) == ["model.layers.0", "model.layers.1"]
    assert all(match.error_after < match.error_before for match in report.matches.values())


def test_what_an_earlier_run_pruned_stays_pruned():
    model, batches = model_and_batches("encoder")
    reconstruct(model, batches, layers="*.up")
    first = {name: value == 0 for name, value in model.named_parameters() if name.endswith("up.weight")}
    matched(model, batches, layers="*.down")
    assert all(torch.equal(model.get_parameter(name) == 0, zeros) for name, zeros in first.items())
    assert all(zeros.any() for zeros in first.values())


def test_under_autocast_a_block_runs_again_with_its_new_weights():
    """Torch keeps copies of weights in lower precision, which must not outlive them."""
    torch.manual_seed(0)
    model, batches = Encoder().eval(), [tokens(seed, 5, 9, WIDTH).float() for seed in range(5)]
    seen = []
    with torch.autocast("cpu", torch.bfloat16):
        handle = model.blocks[1].q.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        matched(model, batches, match=["blocks.0"], match_steps=200)
        handle.remove()
        with torch.no_grad():
            expected = [model.blocks[0](batch) for batch in batches]
    # What the second block was given last: recorded for the dense model first, then in the pass.
    assert all(torch.equal(given, wanted) for given, wanted in zip(seen[-len(batches) :], expected, strict=True))
