"""Names are data: whatever a file calls its tensors, and whatever it is called itself, no terminal obeys it."""

import io
import json
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from checkpoint_files import write_safetensors, write_sharded

import transmask as tm
from transmask.cli import main
from transmask.shown import shown
from transmask.tables import Table

CLEAR, TITLE, FORGED, C1, BIDI = "\x1b[2J", "\x1b]0;owned\x07", "\nok: 9 tensors hold 2:4", "\x9b2J\x85", "\u202e\u2066"
INVISIBLE = "\u200b\u200d\ufeff\u00ad\u2028"
EVIL = f"evil{CLEAR}{TITLE}\r{FORGED}{C1}{BIDI}{INVISIBLE}\x7f\x00[bold red]:smile:[/]"
ENUMERATION = ["--solver", "enumeration"]


def test_what_is_plain_is_shown_as_it_is():
    for text in ("model.layers.0.weight", "a b", "[b]x[/b]", "C:\\models", "größe.重み", "", "🙂"):
        assert shown(text) == text


def test_what_cannot_be_seen_is_escaped():
    assert shown("a\x1b[2Jb\nc\td\x7fe\x9bf") == "a\\x1b[2Jb\\nc\\td\\x7fe\\x9bf"
    assert shown("\u202ea\u200b\ud800\U000e0001") == "\\u202ea\\u200b\\ud800\\U000e0001"


def test_no_control_or_format_character_is_left_of_any():
    every = "".join(map(chr, range(0x110000)))
    kinds = {unicodedata.category(character) for character in shown(every)}
    assert kinds.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    assert {"Lu", "Nd", "So", "Mn", "Zs"} <= kinds


def test_an_error_and_a_table_are_safe_wherever_they_are_printed():
    assert str(tm.CheckpointError(f"got {EVIL}")).isprintable()
    assert tm.CheckpointError("a", "b").args == ("a", "b")
    lines = str(Table({"name": "name"}, [{"name": EVIL}, {"name": "plain"}])).splitlines()
    assert len(lines) == 3
    assert all(map(str.isprintable, lines))
    assert EVIL in Table({"name": "name"}, [{"name": EVIL}]).to_dict()["name"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with hostile files, in which the test runs."""
    weights = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    evil = tmp_path / f"m{CLEAR}{BIDI}\udcff\n.safetensors"
    write_safetensors(evil, {EVIL: weights, f"{EVIL}.bias": np.ones(4, np.float32)})
    write_safetensors(tmp_path / "other.safetensors", {"plain": weights})
    write_safetensors(tmp_path / "nothing.safetensors", {f"{EVIL}.bias": np.ones(4, np.float32)})
    write_safetensors(tmp_path / "nan.safetensors", {EVIL: np.full((8, 8), np.nan, np.float32)})
    shards = {f"{CLEAR}{BIDI}.safetensors": {EVIL: weights}}
    index = write_sharded(tmp_path / "shards", shards)
    (tmp_path / "shards" / next(iter(shards))).rename(tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    return evil.name, str(index.relative_to(tmp_path))


def runs(evil, index):
    """Every command on hostile files, in what succeeds and in what fails, with its exit code."""
    new = f"new{CLEAR}\n.safetensors"
    yield ["prune", evil, "-p", "2:4", "--dry-run", *ENUMERATION], 0
    yield ["prune", evil, "-p", "2:4", "-o", new, "--masks", f"k{BIDI}.safetensors", *ENUMERATION], 0
    yield ["prune", "nothing.safetensors", "-p", "2:4", "-o", new], 2
    yield ["prune", "nan.safetensors", "-p", "2:4", "-o", new, *ENUMERATION], 2
    yield ["prune", evil, "-p", "2:4", "-o", f"{CLEAR}/{new}", *ENUMERATION], 2
    yield ["prune", f"{CLEAR}\n", "-p", "2:4", "-o", new], 2
    yield ["prune", index, "-p", "2:4", "-o", "folder"], 2
    yield ["check", evil, "-p", "2:4"], 1
    yield ["check", new, "-p", "2:4"], 0
    yield ["check", f"k{BIDI}.safetensors", "-p", "2:4"], 0
    yield ["sad", evil, new], 0
    yield ["sad", evil, "other.safetensors"], 2
    yield ["compare", evil, "-p", "2:4", *ENUMERATION, "--sample", "1"], 0
    yield ["compare", evil, "-p", "2:4", "--include", f"{CLEAR}("], 2
    yield ["compare", evil, "-p", f"{CLEAR}\n"], 2
    yield ["diversity", f"{CLEAR}\n"], 2
    yield ["diversity", "2:4", "--structures", CLEAR], 2
    yield ["check", evil, new, "-p", "2:4"], 2
    yield [f"{CLEAR}{BIDI}"], 2
    yield ["demo", "-p", "2:4", "--solver", f"{TITLE}"], 2


@pytest.mark.surface
def test_no_command_lets_a_control_character_through_in_a_pipe(folder, capsys):
    escaped = []
    for arguments, code in runs(*folder):
        assert main(arguments) == code, arguments
        printed = capsys.readouterr()
        for line in [*printed.out.split("\n"), *printed.err.split("\n")]:
            assert line.isprintable(), arguments
            assert not line.startswith("ok: 9"), arguments
        escaped.append("\\x1b" in printed.out + printed.err)
    assert sum(escaped) >= 16  # it was there to be shown, not left out


@pytest.mark.surface
def test_no_command_lets_a_control_character_through_on_a_terminal(folder, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    for arguments, code in runs(*folder):
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", terminal)
            patch.setattr("sys.stderr", terminal)
            assert main(arguments) == code, arguments
        text = terminal.getvalue()
        for sequence in (CLEAR, TITLE, "\x9b", "\x85", *BIDI, *INVISIBLE, "\x7f", "\x00", FORGED):
            assert sequence not in text, arguments


@pytest.mark.surface
def test_json_has_names_exactly_and_in_ascii(folder, capsys):
    evil, _ = folder
    for command, place in (
        (["prune", evil, "-p", "2:4", "--dry-run"], "pruned"),
        (["check", evil, "-p", "2:4"], "tensors"),
        (["sad", evil, evil], "tensors"),
    ):
        main([*command, "--json"])
        text = capsys.readouterr().out
        assert text.isascii()
        assert all(map(str.isprintable, text.split("\n")))
        assert [row["name"] for row in json.loads(text)[place]] == [EVIL]
        assert evil in json.loads(text).values()


ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict": {"PYTHONIOENCODING": "ascii:strict"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.surface
@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_name_that_the_locale_cannot_encode_is_escaped(tmp_path, encoding):
    write_safetensors(tmp_path / "m.safetensors", {"größe.重み": np.eye(4, dtype=np.float32)})
    environment = {**os.environ, **ENCODINGS[encoding]}
    command = [sys.executable, "-m", "transmask", "prune", "m.safetensors", "-p", "2:4", "-o", "new.safetensors"]
    done = subprocess.run([*command, *ENUMERATION], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new.safetensors").exists()
    expected = "größe" if encoding == "latin-1" else "gr\\xf6\\xdfe"
    for stream in (done.stdout, done.stderr):
        text = stream.decode("latin-1")
        assert f"{expected}.\\u91cd\\u307f" in text
        assert "Traceback" not in text
