"""Work on a stream of items in threads, and take the results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_order"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    *,
    is_small: Callable[[Item], bool] = lambda item: False,
) -> Generator[Result, None, None]:
    """Call `function` on every item, on at most `threads` threads, and yield the results in order.

    The calling thread makes the items and uses the results meanwhile, so that reading, working and writing overlap. At
    most ``threads + 2`` items are on their way. After an exception, which is raised when its item's turn comes, no
    further item is made, and those on their way are dropped or finished.

    Parameters
    ----------
    function : callable
        Takes one item; calls must not depend on each other.
    items : iterable
        Consumed by the calling thread.
    threads : int
        1 does everything in the calling thread.
    is_small : callable, optional
        Tells of an item that it takes less time than handing it to a thread; the calling thread does those.

    Yields
    ------
    object
        What `function` returned.

    Examples
    --------
    >>> list(in_order(abs, [1, -2, -3], threads=2))
    [1, 2, 3]
    """
    if threads == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="transmask") as pool:
        try:
            for item in items:
                waiting.append(_done(function, item) if is_small(item) else pool.submit(function, item))
                if len(waiting) == threads + 2:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _done(function: Callable[[Item], Result], item: Item) -> Future[Result]:
    """Call `function` at once, and keep what it returns or raises until its turn comes."""
    future: Future[Result] = Future()
    try:
        future.set_result(function(item))
    except Exception as error:
        future.set_exception(error)
    return future
