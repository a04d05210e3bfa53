"""What the solvers are measured against: a plain N:M mask by numpy, a copy, and OR-Tools on large joint networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from ortools.graph.python.min_cost_flow import SimpleMinCostFlow

from transmask import Pattern

__all__ = ["JOINT_BLOCKS", "joint_flow", "plain_mask"]

JOINT_BLOCKS = 4000


def plain_mask(weights: NDArray[np.float32], pattern: Pattern) -> Callable[[], NDArray[np.bool_]]:
    """Return a function that makes the plain N:M mask along the rows from ready magnitudes, as one would with numpy."""
    groups = np.abs(weights).reshape(-1, pattern.m)

    def run() -> NDArray[np.bool_]:
        largest = np.argpartition(groups, pattern.m - pattern.n, axis=1)[:, pattern.m - pattern.n :]
        mask = np.zeros(groups.shape, np.bool_)
        np.put_along_axis(mask, largest, True, axis=1)
        return mask.reshape(weights.shape)

    return run


def joint_flow(blocks: NDArray[np.float32], pattern: Pattern) -> Callable[[], NDArray[np.bool_]]:
    """Return a function that solves (B, M, M) blocks under "exactly", JOINT_BLOCKS to one minimum-cost flow."""
    m = pattern.m

    def run() -> NDArray[np.bool_]:
        masks = []
        for start in range(0, len(blocks), JOINT_BLOCKS):
            part = np.abs(blocks[start : start + JOINT_BLOCKS])
            lines = 2 * m * np.arange(len(part))[:, None, None]
            tails = np.broadcast_to(lines + np.arange(m)[:, None], part.shape).ravel().astype(np.int32)
            heads = np.broadcast_to(lines + m + np.arange(m), part.shape).ravel().astype(np.int32)
            costs = -np.rint(part.ravel() * (2.0**40 / part.max())).astype(np.int64)
            flow = SimpleMinCostFlow()
            arcs = flow.add_arcs_with_capacity_and_unit_cost(tails, heads, np.ones(part.size, np.int64), costs)
            supplies = np.tile(np.repeat([pattern.n, -pattern.n], m), len(part))
            flow.set_nodes_supplies(np.arange(supplies.size, dtype=np.int32), supplies)
            if flow.solve() != flow.OPTIMAL:
                raise RuntimeError("OR-Tools found no optimum.")
            masks.append(flow.flows(arcs).reshape(part.shape) > 0)
        return np.concatenate(masks)

    return run
