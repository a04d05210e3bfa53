"""The N-th and the (N+1)-th largest of M values as a network of minima and maxima.

A sorting network compares fixed positions, so that the same instructions serve every lane of a vector. Batcher's
odd-even merge sort, less every comparison that the two wanted outputs do not depend on, needs 8, 28, 92 and 284 minima
and maxima for 2 of 4, 4 of 8, 8 of 16 and 16 of 32.

References
----------
Knuth 1998, "The Art of Computer Programming", volume 3, section 5.3.4 (Batcher's network, selection by networks).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

__all__ = ["Operation", "selection_network"]


class Operation(NamedTuple):
    """values[target] = min or max of values[first] and values[second]."""

    kind: Literal["min", "max"]
    target: int
    first: int
    second: int


def selection_network(n: int, m: int) -> tuple[list[Operation], int, int]:
    """Build the network; values 0 .. m - 1 are the inputs, every operation appends one.

    Parameters
    ----------
    n, m : int
        0 < n < m.

    Returns
    -------
    operations : list of Operation
        In an order in which every operand is known.
    nth, following : int
        The values that hold the n-th and the (n+1)-th largest.

    Examples
    --------
    >>> operations, nth, following = selection_network(2, 4)
    >>> len(operations)
    8
    """
    wires = list(range(m))
    operations: list[Operation] = []
    for upper, lower in _batcher_comparators(m):
        first, second, size = wires[upper], wires[lower], m + len(operations)
        operations += [Operation("max", size, first, second), Operation("min", size + 1, first, second)]
        wires[upper], wires[lower] = size, size + 1
    nth, following = wires[n - 1], wires[n]
    needed = {nth, following}
    for operation in reversed(operations):
        if operation.target in needed:
            needed |= {operation.first, operation.second}
    return [operation for operation in operations if operation.target in needed], nth, following


def _batcher_comparators(m: int) -> Iterator[tuple[int, int]]:
    """Yield the comparators (upper, lower) of odd-even merge sort for `m` wires, the largest ending on wire 0."""
    width = 1 << (m - 1).bit_length()
    run = 1
    while run < width:
        step = run
        while step >= 1:
            for start in range(step % run, width - step, 2 * step):
                for upper in range(start, start + step):
                    lower = upper + step
                    if lower < m and upper // (2 * run) == lower // (2 * run):
                        yield upper, lower
            step //= 2
        run *= 2
