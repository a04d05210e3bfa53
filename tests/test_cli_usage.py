"""How the command line is asked: its version, what it refuses, where it sends who asked wrongly, narrow terminals."""

import io
import json

import numpy as np
import pytest
from checkpoint_files import files_in, write_safetensors

import transmask as tm
from transmask.cli import main

pytestmark = pytest.mark.surface


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a small checkpoint, m.safetensors."""
    write_safetensors(tmp_path / "m.safetensors", {"w": np.random.default_rng(0).standard_normal((8, 8))})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("more", [[], ["--constraint", "at_most"], ["--dry-run"]])
def test_a_pattern_that_keeps_nothing_prunes_nothing(folder, capsys, more):
    before = files_in(folder)
    assert main(["prune", "m.safetensors", "-o", "new.safetensors", "-p", "0:4", *more]) == 2
    assert capsys.readouterr().err == (
        "transmask: `--pattern` must keep at least 1 entry of every M, got '0:4'. It would set every weight to zero.\n"
    )
    assert files_in(folder) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "m.safetensors"], "`output` must not be the input, got 'm.safetensors'"),
        (["-o", "gone/new.safetensors"], "`output` must be in a folder that exists, got 'gone/new.safetensors'."),
        (["-o", "folder.safetensors"], "`output` must be a file, got 'folder.safetensors', which is a folder."),
        (["-o", "new.npz"], "`output` must end with '.safetensors' like the input, got 'new.npz'."),
        (["-o", "new.safetensors", "--masks", "masks.npz"], "`masks` must end with '.safetensors', got 'masks.npz'."),
        (["-o", "new.safetensors", "--masks", "m.safetensors"], "`masks` must not be the input, got 'm.safetensors'"),
        (["-o", "new.safetensors", "--masks", "gone/m.safetensors"], "`masks` must be in a folder that exists"),
        (["-o", "x.safetensors", "--masks", "x.safetensors"], "`output` must not be another output too"),
        (["-o", "new.safetensors", "--no-apply"], "`--masks` must be given with --no-apply."),
        (["--masks", "masks.safetensors"], "`--output` must be given."),
        (["-o", "new.safetensors", "--threads", "0"], "`threads` must be at least 1, got 0."),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(folder, capsys, arguments, message):
    (folder / "folder.safetensors").mkdir()
    before = files_in(folder)
    said = []
    for more in (["--dry-run"], []):
        assert main(["prune", "m.safetensors", "-p", "2:4", *arguments, *more]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert files_in(folder) == before
        said.append(printed.err)
    assert said[0].startswith(f"transmask: {message}")
    assert said[0] == said[1]


def test_a_dry_run_leaves_old_outputs_as_they_are(folder):
    for name in ("new.safetensors", "masks.safetensors"):
        (folder / name).write_text("old")
    before = files_in(folder)
    outputs = ["-o", "new.safetensors", "--masks", "masks.safetensors"]
    assert main(["prune", "m.safetensors", "-p", "2:4", *outputs, "--dry-run"]) == 0
    assert files_in(folder) == before


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"transmask {tm.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "m", "-p", "2:4", "--threadz", "1"], "No such option: --threadz"),
        (["prune", "m", "-p", "2:4", "--threads", "x"], "Invalid value for '--threads': "),
        (["check"], "Missing argument 'FILE'."),
        (["check", "m", "n", "-p", "2:4"], "Got unexpected extra argument"),
        (["prnue"], "Did you mean 'prune'?"),
        (["--nonsense"], "No such option: --nonsense"),
    ],
)
def test_wrong_use_points_to_the_help_of_the_command(capsys, arguments, message):
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    command = f"transmask {arguments[0]}" if arguments[0] in ("prune", "check") else "transmask"
    before, _, after = printed.partition(" See ")
    assert after == f"{command} --help.\n"
    assert message in before
    assert before.endswith((".", "?"))
    assert not before.endswith("..")


def test_names_of_a_usual_length_are_not_folded_in_80_columns(folder, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    name = "model.layers.10.self_attn.q_proj.weight"
    write_safetensors(folder / "long.safetensors", {name: np.zeros((1024, 1024), np.float32)})
    stream = Terminal()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["check", "long.safetensors", "-p", "2:4"]) == 0
    lines = stream.getvalue().splitlines()
    assert [line.split() for line in lines if name in line] == [[name, "1024x1024", "0.00", "%", "0", "0"]]
    assert max(map(len, lines)) <= 80
    assert {"bad", "rows", "columns", "tensor", "kept"} <= {word for line in lines[:2] for word in line.split()}


def test_diversity_takes_patterns_as_other_commands_do(capsys):
    assert main(["diversity", "2:4", "4:8", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    for arguments in (["-p", "2:4", "--pattern", "4:8"], ["2:4", "-p", "4:8"]):
        assert main(["diversity", *arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == expected
    assert main(["diversity"]) == 2
    assert "`N:M` must be given, got no pattern." in capsys.readouterr().err
