"""Keep Ctrl-C, and any other signal whose handler raises, out of work that an exception in the middle would break."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["signals_later"]


@contextmanager
def signals_later() -> Iterator[None]:
    """Note the signals that Python would handle in the block, and hand them to their handlers at its end.

    Python runs handlers in the main thread only; elsewhere there is nothing to do. Signals that are ignored, that end
    the process at once, or whose handler is not Python's stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # SIGINT is restored last: should one come meanwhile, the others are in place.
    numbers: list[int] = sorted(signal.valid_signals(), key=lambda number: number == signal.SIGINT)
    handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    came: list[tuple[int, FrameType | None]] = []
    try:
        for number in handlers:
            signal.signal(number, lambda number, frame: came.append((number, frame)))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for code, frame in came:
            handlers[code](code, frame)
