"""Import heavy modules whole: Ctrl-C, or any other signal that raises, waits until the import has ended.

An exception in the middle of ``import numba`` leaves some of its modules imported and not bound to the package, and
Python goes on with these: every later call in the same process, as in a notebook, fails with "module 'numba' has no
attribute 'core'".
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import resolve_name
from types import FrameType, ModuleType

__all__ = ["import_whole", "whole_imports"]


def import_whole(name: str, package: str | None = None) -> ModuleType:
    """Do what `importlib.import_module` does, and let no signal break it off.

    Parameters
    ----------
    name : str
        A relative name needs `package`.
    package : str, optional

    Returns
    -------
    module

    Raises
    ------
    ImportError
        If the module cannot be imported.
    KeyboardInterrupt
        Or whatever else the handler of a signal raises that arrived meanwhile, once the module is imported.

    Examples
    --------
    >>> import_whole("math").pi
    3.141592653589793
    """
    if resolve_name(name, package) in sys.modules:
        return import_module(name, package)
    with whole_imports():
        return import_module(name, package)


@contextmanager
def whole_imports() -> Iterator[None]:
    """Note the signals that Python would handle in a block of imports, and hand them to their handlers at its end.

    Python runs handlers in the main thread only; elsewhere there is nothing to do. Signals that are ignored, that end
    the process at once, or whose handler is not Python's stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = sorted(signal.valid_signals(), key=lambda number: number == signal.SIGINT)  # SIGINT is restored last
    handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    came: list[tuple[int, FrameType | None]] = []
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: came.append((number, frame)))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in came:
            handlers[number](number, frame)
