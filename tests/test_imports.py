"""Ctrl-C while a heavy package is imported, as in the first second of a notebook, breaks nothing."""

import signal
import subprocess
import sys
import threading

import pytest

from transmask._imports import import_whole
from transmask._signals import signals_later

pytestmark = pytest.mark.surface

PROGRAM = """
import signal, sys
import numpy as np, transmask as tm

class Interrupts:
    left = {count}
    def find_spec(self, *names):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
try:
    tm.transposable_mask(np.ones((8, 8)), "2:4", solver={solver!r})
except KeyboardInterrupt:
    print("interrupted", {package!r} in sys.modules)
print(tm.transposable_mask(np.ones((8, 8)), "2:4", solver={solver!r}).sum())
"""


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize(
    ("solver", "package", "count"), [("greedy", "numba", 20), ("greedy", "numba", 150), ("milp", "scipy.optimize", 20)]
)
def test_an_interrupt_at_any_import_is_raised_and_the_next_call_works(solver, package, count):
    code = PROGRAM.format(solver=solver, package=package, count=count)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["interrupted", "True", "32"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of two parts, during the import of which a signal comes."""
    (tmp_path / "heavy_package").mkdir()
    (tmp_path / "heavy_package" / "__init__.py").write_text(
        "import signal\nfrom heavy_package import part\nsignal.raise_signal(signal.SIGINT)\nend = part.value\n"
    )
    (tmp_path / "heavy_package" / "part.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "heavy_package"
    for name in ("heavy_package", "heavy_package.part"):
        sys.modules.pop(name, None)


def test_the_interrupt_comes_when_the_import_has_ended(module):
    with pytest.raises(KeyboardInterrupt):
        import_whole(module)
    assert sys.modules[module].end == 3
    assert import_whole(module) is sys.modules[module]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_it_the_package_is_left_in_pieces(module):
    with pytest.raises(KeyboardInterrupt):
        __import__(module)
    assert module not in sys.modules
    assert f"{module}.part" in sys.modules


def test_a_handler_of_the_callers_is_called_once_and_stays(module):
    calls = []

    def handler(number, frame):
        calls.append((number, frame is not None))

    previous = signal.signal(signal.SIGINT, handler)
    try:
        import_whole(module)
        assert calls == [(signal.SIGINT, True)]
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_is_no_handler_of_pythons_is_left_alone(handler):
    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        with signals_later():
            assert signal.getsignal(signal.SIGUSR1) is handler
        assert signal.getsignal(signal.SIGUSR1) is handler
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_a_failed_import_restores_the_handlers_too():
    with pytest.raises(ModuleNotFoundError):
        import_whole("transmask.no_such_module")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_imports_without_touching_handlers(tmp_path, monkeypatch):
    (tmp_path / "other_package.py").write_text("import signal\nseen = signal.getsignal(signal.SIGINT)\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    thread = threading.Thread(target=lambda: found.append(import_whole("other_package").seen))
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
    del sys.modules["other_package"]
