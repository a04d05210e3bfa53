"""The entropic method, for comparison: a transport plan by Dykstra's projections, rounded greedily.

Method
    The mask is relaxed to a plan P with entries between 0 and 1, and an entropy is added that makes the best one easy
    to find:

        maximise   sum_ij P_ij S_ij / max(S)  -  1 / tau * sum_ij P_ij (log P_ij - 1)
        subject to 0 <= P <= 1 and every row sum and every column sum == N   ("exactly")  or  <= N   ("at_most")

    Dykstra's algorithm projects exp(tau S / max(S)) onto one constraint after the other (`_entropic_kernels`, on
    logarithms where range matters). The plan is rounded by keeping its entries from large to small while row and column
    have room, as `greedy` does with scores, and what has room left is swapped full (`_completion_kernels`).
    For "at_most" the projections scale lines down to N and never up, and only swaps that gain are made.
Guarantee
    Only that the mask is feasible. As tau grows the plan tends to an optimal mask, but needs more iterations.
Ties
    As in `greedy`: of equal entries of the plan the one with the smaller index is kept first.
Cost
    max_iterations * about 10 operations an entry, in float64.
When not to use it
    It is here for comparison: the exact solver that "auto" picks loses nothing and takes less time.

References: Meng, Makni and Mazumder 2025, "TSENOR: Highly-Efficient Algorithm for Finding Transposable N:M Sparse
Masks", algorithms 1 and 2; Benamou et al. 2015, "Iterative Bregman Projections for Regularized Transportation
Problems", section 5 (capacities).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .._arguments import as_integer, as_number
from ..blocks import Array
from ..errors import InvalidArgumentError
from ..pattern import Constraint, Pattern
from ._base import Solver
from ._completion_kernels import add_and_swap
from ._entropic_kernels import transport_plans
from ._table import TABLE
from .greedy import greedy_masks

__all__ = ["Entropic"]


class Entropic(Solver):
    """Round an entropy-regularised transport plan; see the module's docstring.

    Parameters
    ----------
    tau : float, default 100.0
        Inverse weight of the entropy when the largest score of a block is 1; positive and finite.
    max_iterations : int, default 300
        Rounds of projections, at least 1. A plan that has converged is not changed by more of them.
    local_search_steps : int, default 10
        Swaps with a gain that a block may make after rounding, at least 0. Under "exactly" swaps go on until every line
        is full, whatever this limit says.

    Raises
    ------
    InvalidTypeError
        If an option is not a number of the right kind.
    InvalidArgumentError
        If an option is out of range.

    Examples
    --------
    >>> from transmask import solve
    >>> solve([[3.0, 2.0], [2.0, 0.0]], "1:2", solver=Entropic(tau=50.0)).kept
    4.0
    """

    info = TABLE["entropic"]

    def __init__(self, *, tau: float = 100.0, max_iterations: int = 300, local_search_steps: int = 10) -> None:
        self.tau: float = as_number(tau, argument="tau")
        if not 0 < self.tau < math.inf:
            raise InvalidArgumentError(f"`tau` must be positive and finite, got {tau}. 100 suits scores of any size.")
        self.max_iterations: int = as_integer(max_iterations, argument="max_iterations", least=1)
        self.local_search_steps: int = as_integer(local_search_steps, argument="local_search_steps", least=0)

    def solve_scores(self, scores: Array, pattern: Pattern, constraint: Constraint) -> NDArray[np.bool_]:
        """Solve a batch of blocks; see `Solver.solve_scores`."""
        at_most = constraint == "at_most"
        mask = greedy_masks(transport_plans(scores, pattern.n, self.tau, self.max_iterations, at_most), pattern.n)
        add_and_swap(scores, mask, pattern.n, self.local_search_steps if at_most else mask.size, not at_most)
        return mask
