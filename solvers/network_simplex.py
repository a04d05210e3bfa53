"""Exact and written to be read: the published flow formulation, solved by networkx.

Method
    One network a block, as Hubara et al. 2021 publish it: source -> rows -> columns -> sink, N * M units in all.

        source -> row i         capacity N, cost 0
        row i  -> column j      capacity 1, cost -S[i, j]      it carries flow where the entry is kept
        column j -> sink        capacity N, cost 0
        source -> sink          capacity N * M, cost 0         only for "at_most": what need not be kept

    Their code sends M * M / 2 units, which is right only for N = M / 2, and hands networkx floating-point costs, with
    which its simplex may never end: its documentation asks for integers. Here costs are Python integers.
Guarantee
    Exact without any rounding: a float64 is an integer times a power of two, so all scores of a block times one power
    of two are integers, as long as they need to be. Flows with integer capacities have integral optima.
Ties
    Whichever optimum networkx finds; it depends on the block alone.
Cost
    About 0.5, 1.4, 5.6 and 24 ms for a Gaussian block with M = 4, 8, 16, 32. Pure Python: one thread does all the work.
When not to use it
    On a whole model: min_cost_flow solves the same problem 30 to 60 times faster. It is here to be read, and to
    check the others.

References
----------
Hubara et al. 2021, "Accelerated Sparse Neural Training", section 3.
"""

from __future__ import annotations

from fractions import Fraction
from math import lcm

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from ..blocks import Array, Blocks
from ..errors import SolverError
from ..pattern import Constraint, Pattern
from ._base import Solver
from ._table import TABLE

__all__ = ["NetworkSimplex"]


class NetworkSimplex(Solver):
    """Solve each block by the network simplex method; see the module's docstring.

    Examples
    --------
    >>> from transmask import solve
    >>> solve([[3.0, 1.0], [1.0, 1.0]], "1:2", solver=NetworkSimplex()).kept
    4.0
    """

    info = TABLE["network_simplex"]
    chunk_entries = 1 << 11  # a tenth of a second of work: Ctrl-C waits for it

    def solve_blocks(self, blocks: Blocks, pattern: Pattern, *, threads: int, warm: bool) -> None:
        """Solve a grid of blocks on one thread; see `Solver.solve_blocks`."""
        super().solve_blocks(blocks, pattern, threads=1, warm=warm)

    def solve_scores(self, scores: Array, pattern: Pattern, constraint: Constraint) -> NDArray[np.bool_]:
        """Solve a batch of blocks; see `Solver.solve_scores`."""
        mask = np.zeros(scores.shape, np.bool_)
        for block, block_scores in enumerate(scores):
            graph = flow_graph(block_scores, pattern, constraint)
            try:
                _, flow = nx.network_simplex(graph)
            except nx.NetworkXException as error:
                raise SolverError(
                    f"networkx must find a flow of least cost, got {type(error).__name__}: {error}"
                ) from error
            for row in range(pattern.m):
                for column in range(pattern.m):
                    mask[block, row, column] = flow["row", row]["column", column]
        return mask


def flow_graph(scores: Array, pattern: Pattern, constraint: Constraint) -> nx.DiGraph:
    """Build the network of one block; a flow of least cost is an optimal mask.

    Parameters
    ----------
    scores : ndarray of float32 or float64, shape (M, M)
    pattern : Pattern
    constraint : {"exactly", "at_most"}

    Returns
    -------
    networkx.DiGraph
        Nodes "source", ("row", i), ("column", j) and "sink", with the attributes that `networkx.network_simplex` reads.

    Examples
    --------
    >>> import numpy as np
    >>> graph = flow_graph(np.array([[1.0, 0.5], [0.25, 2.0]]), Pattern(1, 2), "exactly")
    >>> graph.edges["source", ("row", 0)], graph.edges[("row", 0), ("column", 1)]
    ({'capacity': 1, 'weight': 0}, {'capacity': 1, 'weight': -2})
    """
    n, m = pattern.n, pattern.m
    integers = integer_scores(scores)
    graph = nx.DiGraph()
    graph.add_node("source", demand=-n * m)
    graph.add_node("sink", demand=n * m)
    for line in range(m):
        graph.add_edge("source", ("row", line), capacity=n, weight=0)
        graph.add_edge(("column", line), "sink", capacity=n, weight=0)
    for row in range(m):
        for column in range(m):
            graph.add_edge(("row", row), ("column", column), capacity=1, weight=-integers[row][column])
    if constraint == "at_most":
        graph.add_edge("source", "sink", capacity=n * m, weight=0)
    return graph


def integer_scores(scores: Array) -> list[list[int]]:
    """Multiply the scores of one block by the smallest power of two, 1 or above, that makes all of them integers.

    Examples
    --------
    >>> import numpy as np
    >>> integer_scores(np.array([[0.5, 3.0], [0.25, 0.0]]))
    [[2, 12], [1, 0]]
    """
    exact = [[Fraction(float(score)) for score in row] for row in scores]
    common = lcm(*(score.denominator for row in exact for score in row))
    return [[int(score * common) for score in row] for row in exact]
