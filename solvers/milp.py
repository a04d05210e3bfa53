"""Exact, and open to side constraints: a mixed-integer program, solved by HiGHS through scipy.

Method
    One program a block. With one binary variable x[i * M + j] for each entry:

        minimise   -sum S[i, j] x[i, j]
        subject to every row sum and every column sum == N  ("exactly")  or  <= N  ("at_most")
        x binary

    Its relaxation is solved first, and again with binary variables only where the answer is fractional, which side
    constraints alone can make it: without them the constraint matrix is totally unimodular.
Guarantee
    Exact to HiGHS' tolerance: it calls a point optimal when no reduced cost has the wrong sign by more than 1e-7. The
    scores of each block are multiplied by a power of two that puts the largest at 2**29 or above, so what can be lost
    is M * M * 1e-7 / 2**29 of what the optimum keeps: 1e-14 at M = 8, 8e-13 at M = 64. Without that factor, scores of
    about 1 were answered wrongly in the eighth digit. They are told apart beside one of 1e12, and not beside one of
    1e18: primal_dual and network_simplex do that.
Ties
    Whichever optimum HiGHS finds; it depends on the block alone.
Cost
    About 2, 2, 3 and 10 ms for a Gaussian block with M = 4, 8, 16, 32, much of it spent setting HiGHS up. Threads help.
When not to use it
    Without side constraints: min_cost_flow is 10 to 100 times faster and has no tolerance. To add them, override
    `Milp.constraints`.

References
----------
Hubara et al. 2021, "Accelerated Sparse Neural Training", section 3, for the program.
Huangfu and Hall 2018, "Parallelizing the dual revised simplex method", for HiGHS.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csc_array, eye_array, kron, vstack

from ..blocks import Array
from ..errors import SolverError
from ..pattern import Constraint, Pattern
from ._base import Solver, scale_blocks
from ._table import TABLE

__all__ = ["Milp"]

# HiGHS' tolerances are absolute: the larger the scores, the less they cost. With the largest score at 2**10 near ties
# lost up to 5e-10, at 2**20 up to 1e-13, from 2**30 on what is left is the rounding of float64.
COST_BITS = 30

INTEGRALITY_TOLERANCE = 1e-6  # what HiGHS takes for an integer


class Milp(Solver):
    """Solve each block as a mixed-integer program; see the module's docstring.

    Examples
    --------
    >>> from transmask import solve
    >>> solve([[3.0, 1.0], [1.0, 1.0]], "1:2", solver=Milp()).kept
    4.0
    """

    info = TABLE["milp"]
    chunk_entries = 1 << 10  # a tenth of a second of work: Ctrl-C waits for it

    def constraints(self, pattern: Pattern, constraint: Constraint) -> list[LinearConstraint]:
        """Return the constraints on the M * M entries of a block; a subclass may add its own.

        Parameters
        ----------
        pattern : Pattern
        constraint : {"exactly", "at_most"}

        Returns
        -------
        list of scipy.optimize.LinearConstraint
            On the entries in row-major order.
        """
        least = pattern.n if constraint == "exactly" else 0
        return [LinearConstraint(line_sums(pattern.m), least, pattern.n)]

    def solve_scores(self, scores: Array, pattern: Pattern, constraint: Constraint) -> NDArray[np.bool_]:
        """Solve a batch of blocks; see `Solver.solve_scores`."""
        constraints = self.constraints(pattern, constraint)
        costs = -scale_blocks(scores, COST_BITS).reshape(len(scores), -1)
        kept = np.empty(costs.shape, np.bool_)
        for block, block_costs in enumerate(costs):
            values = _solve_program(block_costs, constraints, binary=False)
            if np.abs(values - np.rint(values)).max() > INTEGRALITY_TOLERANCE:
                values = _solve_program(block_costs, constraints, binary=True)
            kept[block] = values > 0.5
        return kept.reshape(scores.shape)


def _solve_program(costs: NDArray[np.float64], constraints: list[LinearConstraint], *, binary: bool) -> Array:
    """Return the values in [0, 1] of least cost that hold the constraints; all 0 or 1 to HiGHS' 1e-6 if `binary`."""
    answer = milp(
        costs,
        integrality=np.full(costs.size, int(binary)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if not answer.success:
        raise SolverError(f"HiGHS must solve the program of a block to optimality, got: {answer.message}")
    values: Array = answer.x
    return values


@lru_cache(maxsize=8)
def line_sums(m: int) -> csc_array:
    """Return the (2M, M * M) matrix that sums a block's rows, then its columns.

    Examples
    --------
    >>> line_sums(2).toarray().astype(int)
    array([[1, 1, 0, 0],
           [0, 0, 1, 1],
           [1, 0, 1, 0],
           [0, 1, 0, 1]])
    """
    one, identity = np.ones((1, m)), eye_array(m)
    return csc_array(vstack([kron(identity, one), kron(one, identity)]))
