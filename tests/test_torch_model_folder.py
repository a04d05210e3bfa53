"""`reconstruct_folder` and its command: a folder of transformers in, a folder of transformers out, nothing else."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

import tokenizers  # noqa: E402
from checkpoint_files import files_in, read_safetensors, same_bits, write_safetensors  # noqa: E402
from naive import offender  # noqa: E402

import transmask as tm  # noqa: E402
from transmask.checkpoint import check_checkpoint  # noqa: E402
from transmask.cli import main  # noqa: E402
from transmask.torch import reconstruct, reconstruct_folder  # noqa: E402
from transmask.torch.model_folder.changes import check_stored, new_values, tensors_that_change  # noqa: E402
from transmask.torch.model_folder.texts import read_texts, tokenize  # noqa: E402

pytestmark = [pytest.mark.surface, pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")]

TEXTS = [f"a text of {'many ' * (i % 5)}words, number {i}, and its cube {i**3}." for i in range(40)]
SIZES = {"vocab_size": 300, "bos_token_id": 258, "eos_token_id": 256}


def llama():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 48}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, **sizes, num_attention_heads=4, num_key_value_heads=2)
    )


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**SIZES, n_embd=32, n_layer=2, n_head=4, n_positions=48)
    )


def bert():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 48}
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=300, **sizes, num_attention_heads=4))


def t5():
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 1, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=300, **sizes))


def save(model, folder, **options):
    """Write a model folder with a tokenizer of bytes and a few files more."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: index for index, name in enumerate([*letters, "<|endoftext|>", "<unk>", "<s>", "</s>"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.save_pretrained(folder, **options)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    (folder / "README.md").write_text("a model card")
    (folder / "more").mkdir()
    (folder / "more/data.json").write_text("{}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with texts.jsonl and a small decoder in m/."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save(llama(), tmp_path / "m")
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text, "id": 3}) for text in TEXTS))
    return tmp_path


def run(pattern="2:4", **options):
    return reconstruct_folder("m", "new", pattern, "texts.jsonl", progress=False, **options)


def stored(folder):
    return {
        key: value for file in sorted(folder.glob("*.safetensors")) for key, value in read_safetensors(file)[1].items()
    }


@pytest.mark.parametrize(
    ("make", "dtype", "options"),
    [
        (llama, torch.float32, {}),
        (llama, torch.bfloat16, {"method": "alps", "max_shard_size": "30KB"}),
        (gpt2, torch.float32, {"scores": "wanda", "match": "blocks", "match_steps": 10}),
        (bert, torch.float32, {"method": "adaprune"}),
        (t5, torch.float32, {}),
    ],
)
def test_the_new_folder_differs_in_what_was_reconstructed(tmp_path, monkeypatch, make, dtype, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    shards = {name: options.pop(name) for name in ["max_shard_size"] if name in options}
    torch.manual_seed(0)
    save(make().to(dtype), tmp_path / "m", **shards)
    before = files_in(tmp_path)
    report = run(**options)
    assert {name: data for name, data in files_in(tmp_path).items() if not name.startswith("new/")} == before
    old, new = stored(tmp_path / "m"), stored(tmp_path / "new")
    assert list(old) == list(new)
    names = {fit.name for fit in report.fits}
    assert len(names) >= 8
    others = names | {name.replace("weight", "bias") for name in names}
    if "match" in options:
        others |= {name for name in old if ".h." in name}
    for name, value in new.items():
        assert value.dtype == old[name].dtype
        if name in names:
            assert offender(value != 0, 2, 4, "exactly") is None, name
        assert name in others or same_bits(value, old[name]), name
    changed = {name for name in new if not same_bits(new[name], old[name])}
    assert names <= changed
    assert len(list((tmp_path / "new").glob("*.safetensors"))) == len(list((tmp_path / "m").glob("*.safetensors")))
    for name, data in files_in(tmp_path / "new").items():
        assert name.endswith(".safetensors") or data == (tmp_path / "m" / name).read_bytes(), name
    found = check_checkpoint(tmp_path / "new")
    assert {tensor.name for tensor in found} == names
    assert all(tensor.report.ok for tensor in found)
    model, info = type(make()).from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(info.values()), info
    assert {name for name, value in old.items() if value.ndim > 1} == names | {name for name, _ in report.left}
    del model


def test_it_is_what_reconstruct_does_text_by_text(folder):
    report = run(samples=20, length=30, batch_size=7)
    model = transformers.LlamaForCausalLM.from_pretrained("m")
    tokenizer = transformers.AutoTokenizer.from_pretrained("m")
    alone = [{"input_ids": torch.tensor([tokenizer(text)["input_ids"][:30]])} for text in TEXTS[:20]]
    by_hand = reconstruct(model, alone, "2:4", layers=["model.layers", "lm_head"], progress=False)
    assert {fit.name for fit in by_hand.fits} == {fit.name for fit in report.fits}
    new = stored(folder / "new")
    for fit in report.fits:
        expected = model.get_parameter(fit.name).detach().numpy()
        np.testing.assert_array_equal(new[fit.name] != 0, expected != 0)
        np.testing.assert_allclose(new[fit.name], expected, rtol=1e-3, atol=1e-4)


def test_patterns_are_by_name_and_the_report_says_why_others_are_left(folder, capsys):
    assert (
        main(["reconstruct", "m", "-o", "new", "-c", "texts.jsonl", "-p", "mlp=4:8", "-p", "q_proj=2:4", "--json"]) == 0
    )
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    patterns = {row["name"]: row["pattern"] for row in found["reconstructed"]}
    assert set(patterns.values()) == {"2:4", "4:8"}
    assert all((pattern == "4:8") is ("mlp" in name) for name, pattern in patterns.items())
    assert {row["name"] for row in found["left"]} >= {"lm_head.weight", "model.embed_tokens.weight"}
    assert found["seconds"]["solving"] > 0
    new = stored(folder / "new")
    for name, pattern in patterns.items():
        assert offender(new[name] != 0, *map(int, pattern.split(":")), "exactly") is None
    lines = printed.err.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("[1/8] model.layers.0.self_attn.q_proj.weight: error ")
    assert main(["check", "new"]) == 0


def test_the_command_prints_layers_blocks_and_what_is_left(folder, capsys):
    arguments = ["--match", "--match-steps", "2", "--include", "layers.0"]
    assert main(["reconstruct", "m", "-o", "new", "-c", "texts.jsonl", "-p", "2:4", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["reconstructed", "error", "masked"]
    assert any(line.startswith("model.layers.0  ") for line in lines)
    assert any(line.startswith("lm_head.weight ") and line.endswith("not included") for line in lines)
    assert "reconstructed 7 tensors, 2:4 exactly, least_squares" in lines
    assert lines[-1] == "wrote         new"


def test_experts_that_the_model_fuses_are_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": TEXTS[1]}))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_local_experts": 2}
    config = transformers.MixtralConfig(**SIZES, **sizes, num_attention_heads=4, num_key_value_heads=2)
    save(transformers.MixtralForCausalLM(config), tmp_path / "m")
    left = dict(run().left)
    experts = {name: why for name, why in left.items() if "experts" in name}
    assert len(experts) == 6
    assert set(experts.values()) == {"not a weight that MixtralForCausalLM has under this name"}
    assert all(same_bits(stored(tmp_path / "new")[name], stored(tmp_path / "m")[name]) for name in left)


def edit_config(folder, **fields):
    path = folder / "m/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def remove(*names):
    return lambda folder: [(folder / "m" / name).unlink() for name in names]


def without_a_tensor(folder):
    tensors = stored(folder / "m")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    write_safetensors(folder / "m/model.safetensors", tensors, {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (None, {"model": "m/model.safetensors"}, r"`model` must be a folder with a config.json, got 'm/model.saf"),
        (None, {"output": "m"}, r"`output` must be a new or empty folder for a model folder, got 'm'"),
        (None, {"calibration": "gone.txt"}, r"gone.txt"),
        (None, {"samples": 0}, r"`samples` must be at least 1, got 0."),
        (None, {"batch_size": 1.5}, r"`batch_size` must be an integer, got 1.5"),
        (None, {"length": 49}, r"`length` must be at most 48, the positions that the model has, got 49."),
        (None, {"length": 0}, r"`length` must be at least 1, got 0."),
        (None, {"match": "blocks", "match_steps": 0}, r"`match_steps` must be at least 1, got 0."),
        (None, {"match": ["nothing"]}, r"`match` must name modules of the model, got 'nothing'"),
        (None, {"device": "abacus"}, r"`device` must be one that torch can use, got 'abacus': Expected one of"),
        (None, {"device": "meta"}, r"on the meta device, without values"),
        (None, {"method": "magic"}, r"`method` must be one of 'least_squares', "),
        (None, {"include": "embed"}, r"got none: model.embed_tokens.weight: a look-up table"),
        (remove("config.json"), {}, r"'m' must hold what transformers can load as AutoConfig: "),
        (remove("tokenizer.json", "tokenizer_config.json"), {}, r"as AutoTokenizer|Is the tokenizer in the folder"),
        (
            without_a_tensor,
            {},
            r"every weight of LlamaForCausalLM, got 'm' without 'model.layers.1.mlp.up_proj.weight'.",
        ),
        (
            lambda f: edit_config(f, architectures=["Strange"]),
            {},
            r"name an architecture that .* knows, got 'Strange' in",
        ),
        (
            lambda f: edit_config(f, architectures=["AutoModel"]),
            {},
            r"name an architecture that .* knows, got 'AutoModel'",
        ),
        (lambda f: edit_config(f, architectures=None), {}, r"name an architecture that .* knows, got None in"),
        (
            lambda f: edit_config(f, quantization_config={"quant_method": "fp8"}),
            {},
            r"must hold floating-point weights to be refitted, got quantised ones in 'm'.",
        ),
        (lambda f: (f / "texts.jsonl").write_text('{"text": "x"}\n{"txt": 1}'), {}, r"got '{\"txt\": 1}' in line 2 of"),
        (lambda f: (f / "texts.jsonl").write_text("\n \n"), {}, r"`calibration` must hold at least one text, got none"),
    ],
)
def test_what_cannot_be_done_leaves_nothing_behind(folder, spoil, options, message):
    if spoil is not None:
        spoil(folder)
    before = files_in(folder)
    given = {"model": "m", "output": "new", "pattern": "2:4", "calibration": "texts.jsonl"} | options
    with pytest.raises((tm.TransmaskError, OSError), match=message) as caught:
        reconstruct_folder(**given)
    assert "\n" not in str(caught.value)
    assert files_in(folder) == before
    assert sorted(path.name for path in folder.iterdir()) == ["m", "texts.jsonl"]


def test_code_of_the_folder_is_not_run(folder):
    edit_config(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, model_type="evil")
    (folder / "m/evil.py").write_text("open('ran', 'w')\nclass Config: pass\nclass Model: pass\n")
    with pytest.raises(tm.CheckpointError, match="must hold what transformers can load as AutoConfig"):
        run()
    assert not (folder / "ran").exists()


def test_an_interrupt_leaves_nothing_behind(folder):
    before, threads = files_in(folder), threading.active_count()
    calls = []

    def stop(done, total, fit):
        calls.append((done, total, fit.name))
        assert any(path.name.endswith(".part") for path in folder.iterdir())
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct_folder("m", "new", "2:4", "texts.jsonl", progress=stop)
    assert [call[:2] for call in calls] == [(1, 15), (2, 15), (3, 15)]
    assert files_in(folder) == before
    assert threading.active_count() == threads


def test_the_progress_bar_of_transformers_is_as_it_was(folder):
    from transformers.utils import logging

    assert logging.is_progress_bar_enabled()
    run(samples=2)
    assert logging.is_progress_bar_enabled()


def test_what_changes_must_be_stored_under_its_name(folder):
    write_safetensors(folder / "x.safetensors", {"a": np.ones((4, 4)), "b": np.ones(3)})
    checkpoint = tm.checkpoint.open_checkpoint(folder / "x.safetensors")
    check_stored({"a": torch.ones(4, 4)}, checkpoint)
    for name, value in {"c": torch.ones(3), "b": torch.ones(4)}.items():
        with pytest.raises(tm.InvalidArgumentError, match=f"got no '{name}' of shape .* in '.*x.safetensors'. Load"):
            check_stored({"a": torch.ones(4, 4), name: value}, checkpoint)


@pytest.mark.parametrize(
    ("name", "data", "texts"),
    [
        ("a.txt", b"\xef\xbb\xbfone\r\n\n  two \n\x0bthree", ["one", "  two ", "\x0bthree"]),
        ("a.jsonl", b'\n{"text": "one\\ntwo"}\n{"text": " "}\n{"text": "three", "x": [1]}', ["one\ntwo", "three"]),
        ("a.txt", "ä\u2028ö\nü".encode(), ["ä\u2028ö", "ü"]),
    ],
)
def test_texts_are_read(tmp_path, name, data, texts):
    (tmp_path / name).write_bytes(data)
    assert read_texts(tmp_path / name, 10) == texts
    assert read_texts(tmp_path / name, 1) == texts[:1]


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"text": 3}', "[" * 100_000])
def test_a_line_without_a_text_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' + line)
    with pytest.raises(
        tm.InvalidArgumentError, match=r"an object with a string 'text' in every line, got .* in line 2 of"
    ):
        read_texts(tmp_path / "a.jsonl", 10)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n\xff")
    with pytest.raises(tm.CheckpointError, match=r"a.txt' must be text in UTF-8: invalid start byte at byte"):
        read_texts(tmp_path / "a.txt", 10)


def test_batches_are_cut_and_filled_up(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained("m")
    assert tokenizer.pad_token is None
    batches = tokenize(tokenizer, ["abc", "de", "", "f", "ghijklm"], length=5, batch_size=3)
    assert [batch["attention_mask"].tolist() for batch in batches] == [[[1, 1, 1], [1, 1, 0], [1, 0, 0]], [[1] * 5]]
    assert batches[1]["input_ids"].tolist() == [tokenizer("ghijk")["input_ids"]]
    with pytest.raises(tm.InvalidArgumentError, match="must hold texts with a token, got none in 1"):
        tokenize(tokenizer, [""], length=5, batch_size=3)


def test_a_second_run_on_other_layers_adds_to_what_the_folder_says(folder):
    first = {fit.name for fit in run(include=r"layers\.0\.").fits}
    report = reconstruct_folder("new", "newer", "4:8", "texts.jsonl", include=r"layers\.1\.", progress=False)
    found = {tensor.name: str(tensor.pattern) for tensor in check_checkpoint(folder / "newer")}
    assert found == dict.fromkeys(first, "2:4") | {fit.name: "4:8" for fit in report.fits}
    assert all(same_bits(stored(folder / "newer")[name], stored(folder / "new")[name]) for name in first)


def test_an_error_of_the_system_within_the_run_is_not_taken_for_a_failed_output(folder):
    def fail(done, total, fit):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as caught:
        reconstruct_folder("m", "new", "2:4", "texts.jsonl", progress=fail)
    assert type(caught.value) is OSError
    assert sorted(path.name for path in folder.iterdir()) == ["m", "texts.jsonl"]


def test_a_pickle_is_not_read(folder):
    (folder / "m/model.safetensors").rename(folder / "m/pytorch_model.bin")
    with pytest.raises(tm.CheckpointError, match="must hold one checkpoint"):
        run()


def test_what_did_not_change_keeps_the_bits_that_the_model_rounds(tmp_path):
    weights = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    write_safetensors(tmp_path / "m.safetensors", {"same": weights, "changed": weights, "other": weights})
    checkpoint = tm.checkpoint.open_checkpoint(tmp_path / "m.safetensors")
    loaded = torch.from_numpy(weights).to(torch.bfloat16)
    replace = new_values({"same": loaded, "changed": loaded * 2}, checkpoint)
    found = {tensor.name: replace(tensor) for tensor in checkpoint.tensors}
    assert found["same"] is None
    assert found["other"] is None
    (changed,) = found["changed"]
    assert changed.dtype == np.float32
    np.testing.assert_array_equal(changed.reshape(4, 4), (loaded * 2).float().numpy())


def test_layers_blocks_and_statistics_change():
    block = lambda: torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))  # noqa: E731
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.ModuleList([block(), block()]), torch.nn.Linear(8, 8))
    layer = {"2.weight", "2.bias"}
    statistics = {"0.running_mean", "0.running_var", "0.num_batches_tracked"}
    assert set(tensors_that_change(model, ["2.weight"], None)) == layer | statistics
    matched = set(tensors_that_change(model, ["2.weight", "1.0.0.weight"], "blocks"))
    assert matched == layer | statistics | {f"1.0.{i}.{key}" for i in (0, 1) for key in ("weight", "bias")}
