"""How many threads to use, and one way to spread independent work over them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from itertools import chain, islice
from threading import Lock, Thread
from typing import TypeVar, cast

from ._arguments import as_integer
from .errors import InvalidArgumentError

__all__ = ["ENVIRONMENT_VARIABLE", "resolve_threads", "run_parallel"]

ENVIRONMENT_VARIABLE = "TRANSMASK_NUM_THREADS"

Work = TypeVar("Work")

MOST_THREADS = 1024

_END = object()


def resolve_threads(threads: int | None) -> int:
    """Return the number of threads to use.

    Parameters
    ----------
    threads : int or None
        At least 1; more than 1024 count as 1024. None means the environment variable TRANSMASK_NUM_THREADS if it is
        set, else every core that this process may run on.

    Returns
    -------
    int

    Raises
    ------
    InvalidTypeError
        If `threads` is neither an integer nor None.
    InvalidArgumentError
        If it is below 1, or the environment variable is not a whole number of at least 1.

    Examples
    --------
    >>> resolve_threads(3)
    3
    """
    if threads is not None:
        remedy = "Leave it out to use every core."
        wanted = as_integer(threads, argument="threads", least=1, expected="an integer or None", remedy=remedy)
        return min(wanted, MOST_THREADS)
    text = os.environ.get(ENVIRONMENT_VARIABLE, "").strip()
    if text:
        if not re.fullmatch("0*[1-9][0-9]{0,17}", text):
            raise InvalidArgumentError(
                f"the environment variable {ENVIRONMENT_VARIABLE} must be a whole number of at least 1, "
                f"got {text[:40]!r}. Unset it to use every core."
            )
        return min(int(text), MOST_THREADS)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_parallel(function: Callable[[Work], object], items: Iterable[Work], threads: int) -> None:
    """Call `function` on every item, on at most `threads` threads.

    The calling thread works, too. The others live only as long as the call, so that they never meet a fork, a pool of
    the caller's or a second caller. After an exception, or Ctrl-C, no further item starts, and the exception is raised
    here when those under way are done: an item should take a fraction of a second.

    Parameters
    ----------
    function : callable
        Takes one item. Its result is dropped; calls must not depend on each other.
    items : iterable
        Consumed by the calling thread.
    threads : int
        1 runs everything in the calling thread.
    """
    queue = iter(items)
    first = list(islice(queue, threads))
    if len(first) < 2:
        for item in chain(first, queue):
            function(item)
        return
    queue, lock = chain(first, queue), Lock()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not errors:
                with lock:
                    item = next(queue, _END)
                if item is _END:
                    return
                function(cast(Work, item))
        except BaseException as error:
            errors.append(error)

    started: list[Thread] = []
    try:
        for index in range(1, len(first)):
            thread = Thread(target=work, name=f"transmask-{index}")
            thread.start()
            started.append(thread)
        work()
    except BaseException as error:  # a thread could not start, or Ctrl-C came: the others stop
        errors.append(error)
    while started:
        try:
            started[-1].join()
            started.pop()
        except BaseException as error:  # Ctrl-C came, perhaps again: no thread may outlive the call
            errors.append(error)
    if errors:
        raise errors[0]
