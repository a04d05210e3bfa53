"""Exact for any pattern: a minimum-cost flow, solved by OR-Tools.

Method
    Row i supplies N units, column j demands N, and an arc of capacity 1 and cost -S[i, j] joins them: the arcs that
    carry flow are the entries kept. For "at_most" a further node takes what the rows do not use and gives it to the
    columns at no cost (row -> unused -> column, capacity N). OR-Tools solves it by cost scaling and push-relabel.
Guarantee
    Exact: flows with integer capacities have integral optima. Costs are integers too, the scores times a power of two
    of each block's own that puts its largest at 2**b or above, b = 56, 54, 53, 52, 52 at M = 4, 8, 16, 32, 64. What is
    smaller than the largest by a factor of up to 2**28 is not rounded at all if it is float32; the rest loses at most
    min(N, M - N) * M / 2**b of what the optimum keeps: less than 5e-13 up to M = 64, less than 4e-12 at M = 128. So
    scores of about 1 are told apart beside one of 1e12, and not beside one of 1e18: primal_dual and network_simplex do.
Ties
    Whichever optimum OR-Tools finds; it depends on the block alone (see `flow_network`).
Cost
    About 10, 24, 79, 330 and 1300 us for a Gaussian block with M = 4, 8, 16, 32, 64, on one core. OR-Tools holds the
    interpreter's lock while it solves, so one thread does all the work.
When not to use it
    Up to M = 64 primal_dual is far faster, and for M <= 4 so is enumeration. This one takes any M, compiles nothing,
    and shares no code with them, which makes it the one to check them against.

References
----------
Hubara et al. 2021, "Accelerated Sparse Neural Training", section 3, for the network.
Goldberg 1997, "An Efficient Implementation of a Scaling Minimum-Cost Flow Algorithm", for the algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from ortools.graph.python.min_cost_flow import SimpleMinCostFlow

from ..blocks import Array, Blocks
from ..errors import SolverError
from ..pattern import Constraint, Pattern
from ._base import Solver, scale_blocks
from ._table import TABLE

__all__ = ["MinCostFlow"]

# OR-Tools multiplies costs by the number of nodes + 1, and its potentials reach a few times the largest product. Where
# they would leave int64 it stops with BAD_COST_RANGE. On blocks built for long augmenting paths (bands, triangles,
# outer products, 0/1; M = 2 to 128) products of up to 2**60 never did that, and products of 2**61 sometimes did.
PRODUCT_BITS = 60


class MinCostFlow(Solver):
    """Solve each block as a minimum-cost flow; see the module's docstring.

    Examples
    --------
    >>> from transmask import solve
    >>> solve([[3.0, 1.0], [1.0, 1.0]], "1:2", solver=MinCostFlow()).kept
    4.0
    """

    info = TABLE["min_cost_flow"]

    def solve_blocks(self, blocks: Blocks, pattern: Pattern, *, threads: int, warm: bool) -> None:
        """Solve a grid of blocks on one thread; see `Solver.solve_blocks` and the module's docstring."""
        super().solve_blocks(blocks, pattern, threads=1, warm=warm)

    def solve_scores(self, scores: Array, pattern: Pattern, constraint: Constraint) -> NDArray[np.bool_]:
        """Solve a batch of blocks; see `Solver.solve_scores`."""
        network = flow_network(pattern, constraint)
        costs = integer_costs(scores, network)
        entries = pattern.m**2
        kept = np.empty((len(scores), entries), np.bool_)
        for block, block_costs in enumerate(costs):
            kept[block] = _solve(network, block_costs)[:entries]
        return kept.reshape(scores.shape)


@dataclass(frozen=True, slots=True, eq=False)
class FlowNetwork:
    """All of a block's network but the costs. The first M * M arcs are the entries of the block in row-major order.

    tails and heads (A,) int32, capacities (A,) int64; supplies (V,) int64 of the nodes: rows, columns, "unused" if any.
    """

    tails: NDArray[np.int32]
    heads: NDArray[np.int32]
    capacities: NDArray[np.int64]
    supplies: NDArray[np.int64]

    @property
    def arcs(self) -> NDArray[np.int32]:
        """Indices of the arcs."""
        return np.arange(self.tails.size, dtype=np.int32)

    @property
    def nodes(self) -> NDArray[np.int32]:
        """Indices of the nodes."""
        return np.arange(self.supplies.size, dtype=np.int32)


@lru_cache(maxsize=16)
def flow_network(pattern: Pattern, constraint: Constraint) -> FlowNetwork:
    """Build the network of one block.

    One network a block, not one for many: in a joint network the neighbours decide which of several optima a block
    gets, and every node costs precision. What that costs in time was measured with this network, reused for every
    block, against joint ones of 256 blocks: 10 to 4 us a block at M = 4, 24 to 17 at M = 8, 79 to 74 at M = 16, and
    nothing from M = 32 on.
    """
    n, m = pattern.n, pattern.m
    lines = np.arange(m)
    tails, heads, capacities = np.repeat(lines, m), np.tile(m + lines, m), np.ones(m * m)
    supplies = np.repeat([n, -n], m)
    if constraint == "at_most":
        unused = np.full(m, 2 * m)
        tails, heads = np.concatenate([tails, lines, unused]), np.concatenate([heads, unused, m + lines])
        capacities = np.append(capacities, np.full(2 * m, n))
        supplies = np.append(supplies, 0)
    return FlowNetwork(
        tails.astype(np.int32), heads.astype(np.int32), capacities.astype(np.int64), supplies.astype(np.int64)
    )


def integer_costs(scores: Array, network: FlowNetwork) -> NDArray[np.int64]:
    """Turn the scores of each block into integer costs of its arcs, as precise as OR-Tools can take.

    The costs of all arcs that leave a row are raised by half of the range, which adds the same to every flow and
    halves the largest magnitude.

    Parameters
    ----------
    scores : ndarray of float32 or float64, shape (B, M, M)
    network : FlowNetwork

    Returns
    -------
    ndarray of int64, shape (B, A)
    """
    count, m, _ = scores.shape
    nodes = network.supplies.size + 2  # OR-Tools adds a source and a sink
    bits = PRODUCT_BITS + 1 - nodes.bit_length()
    half = np.int64(1) << (bits - 1)
    costs = np.zeros((count, network.tails.size), np.int64)
    costs[:, : m * m] = np.rint(scale_blocks(scores, bits)).reshape(count, -1)
    np.negative(costs, out=costs)
    costs[:, network.tails < m] += half
    return costs


def _solve(network: FlowNetwork, costs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the flow on each arc of a flow of least cost."""
    flow = SimpleMinCostFlow()
    flow.add_arcs_with_capacity_and_unit_cost(network.tails, network.heads, network.capacities, costs)
    flow.set_nodes_supplies(network.nodes, network.supplies)
    status = flow.solve()
    if status == SimpleMinCostFlow.BAD_COST_RANGE:
        return _solve(network, costs >> 1)  # one bit less of precision
    if status != SimpleMinCostFlow.OPTIMAL:
        raise SolverError(f"OR-Tools must solve the flow of a block to optimality, got status {status.name}.")
    flows: NDArray[np.int64] = flow.flows(network.arcs)
    return flows
