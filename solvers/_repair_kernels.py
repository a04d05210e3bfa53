"""Phase 2 of `primal_dual`: make one block exactly optimal, from any duals and any mask with the right row sums.

Works on int64 scores, scaled by a power of two so that the largest has REPAIR_BITS bits; sums and differences are exact
and every loop ends. The problem is a flow between rows and columns; "at_most" adds one dummy row and one dummy column,
of score 0, that take up what the lines leave free, and whose duals are 0.

    r = S - u - v;    r <= 0 where flow can be added, r >= 0 where flow can be removed     (complementary slackness)

1. *Settle*: find duals with complementary slackness for the given mask by Bellman-Ford in its residual graph. A
   negative cycle on the way is an exchange that improves the mask; it is made, and the search goes on.
2. *Augment*: while a column keeps more than N, move one unit along the shortest path (Dijkstra on abs(r)) to a column
   that keeps less, and update the duals, which keeps complementary slackness.

References
----------
Ahuja, Magnanti and Orlin 1993, "Network Flows", sections 9.6 (cycle cancelling) and 9.7 (successive shortest paths).
"""

# mypy: ignore-errors

from __future__ import annotations

import numpy as np

from ._jit import bare_kernel
from ._lane_kernels import NEVER
from ._relax_kernels import relax

__all__ = ["REPAIR_BITS", "repair_block", "repair_workspace"]

REPAIR_BITS = 51  # float64 holds u + v exactly; paths of 128 arcs stay below NEVER
QUICK_ROUNDS = 4  # Bellman-Ford rounds before predecessors are kept, which costs three times as much a round


@bare_kernel
def repair_block(scores, flow, n, has_dummy, u, v, work, kernels):
    """Make `flow` and the duals optimal.

    Parameters
    ----------
    scores : ndarray of int64, shape (E, E)
        E = M + 1; the last row and column are the dummies, whose scores are 0 and which "exactly" leaves empty.
    flow : ndarray of int64, shape (E, E)
        The mask to begin with; the dummies are set here. Updated.
    n : int
    has_dummy : bool
    u, v : ndarray of int64, shape (E,)
        v is the starting point; both are overwritten by optimal duals, those of the dummies 0.
    work : tuple of ndarray of int64
        As made by `repair_workspace`; its first two arrays, removable and addable, hold the scores where flow is 1,
        else NEVER, and the scores where it is 0, else -NEVER, but for the dummies.
    kernels : ndarray of int64
        The table of the pattern.
    """
    size = len(u)
    removable, addable, target, row_from, column_from, row_distance, column_distance, row_done, column_done = work
    for i in range(size - 1):
        target[i] = n
        _refill_row(scores, flow, removable, addable, v, i, n, has_dummy)
    target[size - 1] = n * (size - 1) if has_dummy else 0
    _set_dummies(scores, flow, removable, addable, n, has_dummy)
    _settle(scores, flow, removable, addable, n, u, v, row_from, column_from, kernels)
    while _augment(
        scores, flow, removable, addable, n, u, v, target,
        row_from, column_from, row_distance, column_distance, row_done, column_done,
    ):  # fmt: skip
        pass
    if has_dummy:
        shift = u[size - 1]
        for line in range(size):
            u[line] -= shift
            v[line] += shift


@bare_kernel
def _refill_row(scores, flow, removable, addable, v, i, n, has_dummy):
    """Remove the least or add the largest score - v of a row until it keeps N; under "at_most" no negative ones."""
    size = len(scores)
    kept = 0
    for j in range(size - 1):
        kept += flow[i, j]
    while kept != n:
        best, place = -NEVER, -1
        for j in range(size - 1):
            gain = addable[i, j] - v[j] if kept < n else v[j] - removable[i, j]
            if (flow[i, j] == 0) == (kept < n) and gain > best:
                best, place = gain, j
        if has_dummy and kept < n and best <= 0:
            return
        flow[i, place] = 1 - flow[i, place]
        kept += 1 if flow[i, place] else -1
        _mark(scores, flow, removable, addable, i, place, n)


@bare_kernel
def _set_dummies(scores, flow, removable, addable, n, has_dummy):
    """Let the dummies take up what the lines leave free, or take them out of the problem."""
    last = len(scores) - 1
    for line in range(last + 1):
        flow[line, last] = flow[last, line] = 0
        removable[line, last] = removable[last, line] = NEVER
        addable[line, last] = addable[last, line] = -NEVER
    if not has_dummy:
        return
    flow[last, last] = n * last
    for line in range(last):
        row, column = 0, 0
        for other in range(last):
            row += flow[line, other]
            column += flow[other, line]
        flow[line, last] = n - row
        flow[last, line] = max(0, n - column)
        flow[last, last] -= flow[last, line]
    for line in range(last + 1):
        _mark(scores, flow, removable, addable, line, last, n)
        _mark(scores, flow, removable, addable, last, line, n)


def repair_workspace(size):
    """Allocate (scores, flow, u, v, work) as `repair_block` takes them for E = `size`."""
    grids = [np.zeros((size, size), np.int64) for _ in range(4)]
    lines = [np.zeros(size, np.int64) for _ in range(9)]
    return *grids[:2], *lines[:2], (*grids[2:], *lines[2:])


@bare_kernel
def _mark(scores, flow, removable, addable, i, j, n):
    """Set the score at which flow can be removed from or added to (i, j), or NEVER and -NEVER where it cannot."""
    last = len(scores) - 1
    capacity = 1
    if i == last or j == last:
        capacity = NEVER if i == j else n
    removable[i, j] = scores[i, j] if flow[i, j] > 0 else NEVER
    addable[i, j] = scores[i, j] if flow[i, j] < capacity else -NEVER


@bare_kernel
def _settle(scores, flow, removable, addable, n, u, v, row_from, column_from, kernels):
    """Find duals with complementary slackness by Bellman-Ford, improving the mask where a cycle asks for it."""
    for _ in range(QUICK_ROUNDS):
        if not relax(kernels, removable, addable, u, v):
            return
    row_from[:] = -1
    column_from[:] = -1
    while _relax_tracked(removable, addable, u, v, row_from, column_from):
        start = _find_cycle(row_from, column_from)
        if start < 0:
            continue
        j = start
        while True:
            i = column_from[j]
            flow[i, j] += 1
            _mark(scores, flow, removable, addable, i, j, n)
            j = row_from[i]
            flow[i, j] -= 1
            _mark(scores, flow, removable, addable, i, j, n)
            if j == start:
                break
        row_from[:] = -1
        column_from[:] = -1


@bare_kernel
def _relax_tracked(removable, addable, u, v, row_from, column_from):
    """Do what `relax` does, and remember for each dual that changed where its new value came from."""
    size = len(u)
    changed = False
    for i in range(size):
        for j in range(size):
            if removable[i, j] - v[j] < u[i]:
                u[i] = removable[i, j] - v[j]
                row_from[i] = j
                changed = True
    for i in range(size):
        for j in range(size):
            if addable[i, j] - u[i] > v[j]:
                v[j] = addable[i, j] - u[i]
                column_from[j] = i
                changed = True
    return changed


@bare_kernel
def _find_cycle(row_from, column_from):
    """Return a column on a cycle of the predecessors, or -1."""
    size = len(row_from)
    for start in range(size):
        j = start
        for _ in range(size):
            if column_from[j] < 0 or row_from[column_from[j]] < 0:
                break
            j = row_from[column_from[j]]
            if j == start:
                return start
    return -1


@bare_kernel
def _augment(
    scores, flow, removable, addable, n, u, v, target,
    row_from, column_from, row_distance, column_distance, row_done, column_done,
):  # fmt: skip
    """Move one unit from the columns that keep too much to the nearest that keeps too little; return whether it did."""
    size = len(u)
    row_distance[:] = NEVER
    column_distance[:] = NEVER
    surplus = False
    for j in range(size):
        if _column_sum(flow, j) > target[j]:
            column_distance[j] = 0
            column_from[j] = -1
            surplus = True
    if not surplus:
        return False
    end, distance = _shortest_path(
        flow, removable, addable, u, v, target, row_from, column_from, row_distance, column_distance, row_done, column_done
    )
    for line in range(size):
        u[line] += min(row_distance[line], distance)
        v[line] -= min(column_distance[line], distance)
    j = end
    while column_from[j] >= 0:
        i = column_from[j]
        flow[i, j] += 1
        _mark(scores, flow, removable, addable, i, j, n)
        j = row_from[i]
        flow[i, j] -= 1
        _mark(scores, flow, removable, addable, i, j, n)
    return True


@bare_kernel
def _column_sum(flow, j):
    """Return what a column keeps."""
    total = 0
    for i in range(len(flow)):
        total += flow[i, j]
    return total


@bare_kernel
def _shortest_path(
    flow, removable, addable, u, v, target, row_from, column_from, row_distance, column_distance, row_done, column_done
):
    """Run Dijkstra from the columns at distance 0; return the first column that keeps too little, and its distance.

    Distances that are final are those up to the one returned; `_augment` needs no others.
    """
    size = len(u)
    row_done[:] = 0
    column_done[:] = 0
    while True:
        nearest, place, is_row = NEVER, -1, False
        for line in range(size):
            if not column_done[line] and column_distance[line] < nearest:
                nearest, place, is_row = column_distance[line], line, False
            if not row_done[line] and row_distance[line] < nearest:
                nearest, place, is_row = row_distance[line], line, True
        if is_row:
            row_done[place] = 1
            for j in range(size):
                if addable[place, j] > -NEVER and not column_done[j]:
                    distance = nearest + u[place] + v[j] - addable[place, j]
                    if distance < column_distance[j]:
                        column_distance[j] = distance
                        column_from[j] = place
        else:
            if _column_sum(flow, place) < target[place]:
                return place, nearest
            column_done[place] = 1
            for i in range(size):
                if removable[i, place] < NEVER and not row_done[i]:
                    distance = nearest + removable[i, place] - u[i] - v[place]
                    if distance < row_distance[i]:
                        row_distance[i] = distance
                        row_from[i] = place
