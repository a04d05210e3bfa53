"""What is shown while a checkpoint is worked on: lines in a pipe, a bar on a terminal, a word about compiling."""

import io
import os
import re
import shutil
import subprocess
import sys

import numba
import numpy as np
import pytest

from transmask.cli._progress import TensorProgress, compiling_note

pytestmark = pytest.mark.surface

NAME = "model.language_model.layers.17.self_attention.query_key_value_projection.weight"


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self):
        return True

    def plain(self):
        """What was shown, without the codes that colour and move."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())


def on_a_terminal(monkeypatch):
    """Replace stderr; to be called in the test itself, because pytest sets its own before that."""
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return stream


def compile_something():
    """Compile a function that calls another, as kernels do."""
    inner = numba.njit(lambda x: x + 1)
    assert numba.njit(lambda x: inner(x) * 2)(1) == 4


def test_a_line_for_each_tensor_in_a_pipe(capsys):
    with TensorProgress(30, 2) as progress:
        for name, size in (("a", 10), ("[b]", 20)):
            progress.begin(name)
            progress.advance(name, size, "kept")
    assert capsys.readouterr().err == "[1/2] a: kept\n[2/2] [b]: kept\n"


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    with TensorProgress(40, 2) as progress:
        progress.begin("[b]first[/b]")
    assert "[b]first[/b]" in terminal.plain()
    with TensorProgress(40, 2) as progress:
        progress.begin("first")
        progress.advance("first", 10, "unused")
        progress.begin(NAME)
    shown = terminal.plain()
    assert " 25 %" in shown
    assert "M weights/s" in shown
    # The end of a long name is what tells tensors apart.
    assert re.search(r"…\S+jection\.weight ━", shown)
    assert "unused" not in shown
    assert max(map(len, re.split(r"[\r\n]", shown))) <= 80


@pytest.mark.compiled
@pytest.mark.parametrize(("purpose", "said"), [("8:16", 1), ("", 0)])
def test_a_terminal_is_told_once_that_something_compiles(monkeypatch, purpose, said):
    terminal = on_a_terminal(monkeypatch)
    with TensorProgress(1, 1, compiling=purpose) as progress:
        progress.begin("w")
        compile_something()
        compile_something()
    assert terminal.plain().count("compiling for 8:16, ") == said
    told = len(terminal.getvalue())
    compile_something()  # nobody listens any more
    assert len(terminal.getvalue()) == told


@pytest.mark.compiled
def test_a_pipe_is_not_told(capsys):
    with TensorProgress(1, 1, compiling="8:16") as progress:
        progress.begin("w")
        compile_something()
    assert capsys.readouterr() == ("", "")


def test_the_note_says_where_the_code_is_kept(monkeypatch):
    monkeypatch.setattr("transmask.cli._progress.cache_folder", lambda: "/some/[b]folder")
    assert compiling_note("8:16") == "compiling for 8:16, once: kept below /some/[b]folder"
    monkeypatch.setattr("transmask.cli._progress.cache_folder", lambda: None)
    assert "again next time: set NUMBA_CACHE_DIR" in compiling_note("8:16")


@pytest.mark.compiled
def test_the_bar_shows_the_tensor_again_when_all_is_compiled(monkeypatch):
    on_a_terminal(monkeypatch)
    with TensorProgress(1, 1, compiling="8:16") as progress:
        progress.begin("some.weight")
        shown = []
        progress._show = shown.append
        compile_something()
    assert shown == ["compiling", "compiling", "compiling", "some.weight"]


TERMINAL = """
import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
"""


def pruned(tmp_path, *options):
    """Prune a matrix on a terminal, with a cache of its own; return what a user sees."""
    np.savez(tmp_path / "m.npz", w=np.ones((65, 65), np.float32))  # too large for primal_dual: the proof alone compiles
    command = [sys.executable, "-c", TERMINAL, sys.executable, "-m", "transmask", "prune", "m.npz", "-p", "1:65"]
    command += ["--solver", "min_cost_flow", "-o", "new.npz", *options]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "TERM": "xterm", "COLUMNS": "200"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.compiled
def test_a_first_run_says_so_on_a_terminal(tmp_path):
    """In processes of their own: the first compiles on a terminal, the second has its code, the third prints JSON."""
    assert pruned(tmp_path).count(f"compiling for 1:65, once: kept below {tmp_path / 'cache'}") == 1
    assert "compiling" not in pruned(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    assert "compiling" not in pruned(tmp_path, "--json")
