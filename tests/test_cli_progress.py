"""What is shown while a checkpoint is worked on: lines in a pipe, a bar on a terminal, a word about compiling."""

import io
import re

import numba
import pytest

from transmask.cli._progress import TensorProgress
from transmask.solvers.enumeration import Enumeration
from transmask.solvers.greedy import Greedy

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
@pytest.mark.parametrize(("solvers", "said"), [([Enumeration()], 0), ([Enumeration(), Greedy()], 1)])
def test_compiling_is_told_once(capsys, solvers, said):
    with TensorProgress(1, 1, solvers) as progress:
        progress.begin("w")
        compile_something()
        compile_something()
    assert capsys.readouterr().err.splitlines() == ["compiling the solver, once for all runs"] * said
    compile_something()  # nobody listens any more
    assert capsys.readouterr().err == ""


@pytest.mark.compiled
def test_the_bar_shows_the_tensor_again_when_all_is_compiled(monkeypatch):
    on_a_terminal(monkeypatch)
    with TensorProgress(1, 1, [Greedy()]) as progress:
        progress.begin("some.weight")
        shown = []
        progress._show = shown.append
        compile_something()
    notice = "compiling the solver, once for all runs"
    assert shown == [notice, notice, notice, "some.weight"]
