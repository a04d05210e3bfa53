"""A solver of another package: the better of two circulant masks, one of them with its columns reversed.

It proves nothing, but every mask is feasible for both constraints: a circulant keeps N in every row and column.
"""

import numpy as np

from transmask.solvers import Solver, SolverInfo


class BestOfTwo(Solver):
    """Keep the heavier of two fixed masks, block by block.

    Of equal ones it keeps the first, so that the mask depends on nothing but the block.
    """

    info = SolverInfo(
        name="best_of_two",
        class_name="BestOfTwo",
        guarantee="none",
        constraints=("exactly", "at_most"),
        max_m=None,
        needs="numpy",
        reference="unpublished; an example of a plug-in",
    )

    def solve_scores(self, scores, pattern, constraint):
        """Solve a batch of blocks; see `Solver.solve_scores`."""
        line = np.arange(pattern.m)
        circulant = (line - line[:, None]) % pattern.m < pattern.n
        candidates = np.stack([circulant, circulant[:, ::-1]])
        largest = scores.max(axis=(1, 2), keepdims=True)
        units = np.divide(scores, largest, out=np.zeros(scores.shape), where=largest > 0)
        kept = np.stack([np.where(mask, units, 0.0).sum(axis=(1, 2)) for mask in candidates])
        return candidates[kept.argmax(axis=0)]
