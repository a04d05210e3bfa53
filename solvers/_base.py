"""The contract that every solver keeps.

A solver chooses, on each M x M block of non-negative scores S, the 0/1 matrix X that should

    maximise   sum_ij S[i, j] X[i, j]
    subject to every row sum and every column sum == N   ("exactly")  or  <= N   ("at_most")

The public functions have validated everything by the time a solver is called, and handle N = 0 and N = M themselves.
What is left to promise: the mask is feasible, as good as `SolverInfo.guarantee` says, and a function of the block, the
pattern and the constraint alone, whatever the batch and the number of threads; scaling a block by a power of two does
not change it. `transmask.testing.assert_solver_contract` checks all of this.

A solver in this folder is a row in ``_table.py`` and a file ``<name>.py`` with a subclass of `Solver` that implements
`solve_scores`.

A solver in a package of your own is the same subclass, with its row as the class attribute ``info``,

    from transmask.solvers import Solver, SolverInfo

    class MySolver(Solver):
        info = SolverInfo("my_solver", "MySolver", "none", ("exactly", "at_most"), None, "numpy", "unpublished")

        def solve_scores(self, scores, pattern, constraint): ...

and an entry point of the same name in the package's pyproject.toml:

    [project.entry-points."transmask.solvers"]
    my_solver = "my_package:MySolver"

Once installed it stands in `list_solvers`, ``solver="my_solver"``, the command line and the benchmarks. ``MySolver()``
must work without arguments. Import heavy packages inside its methods, because listing solvers imports the module.
"auto" never picks a third-party solver. One that cannot be used is left out with a RuntimeWarning; see `_plugins`. What
one returns or raises is checked every time: masks that break the constraint, and exceptions, become a `SolverError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..blocks import Array, Blocks, score_dtype
from ..errors import SolverError, UnsupportedPatternError
from ..pattern import Constraint, Pattern
from ..threads import run_parallel
from ._table import SolverInfo, exact_solvers

__all__ = ["Solver", "is_built_in", "scale_blocks"]


class Solver(ABC):
    """Base class of the solvers.

    Subclasses set `info` and `chunk_entries`, take their options in the constructor and check them there.
    """

    info: SolverInfo

    warm_startable: bool = False
    """Whether the duals that come with the blocks are used as a starting point."""

    chunk_entries: int = 1 << 16
    """Entries of the scores that are handed to `solve_scores` at once; about 0.5 MB of working memory."""

    def check(self, pattern: Pattern, constraint: Constraint) -> None:
        """Raise UnsupportedPatternError if this solver cannot answer; the message names solvers that can.

        Parameters
        ----------
        pattern : Pattern
        constraint : {"exactly", "at_most"}

        Raises
        ------
        UnsupportedPatternError
        """
        refusal = self.info.refusal(pattern, constraint)
        if refusal is not None:
            raise UnsupportedPatternError(
                f"`solver` {self.info.name!r} must be given {refusal}. {self._alternatives(pattern, constraint)}"
            )

    def _alternatives(self, pattern: Pattern, constraint: Constraint) -> str:
        """Name the other exact solvers that take this pattern."""
        others = [name for name in exact_solvers(pattern, constraint) if name != self.info.name]
        return f"Use one of {', '.join(map(repr, others))}."

    def prepare(self, pattern: Pattern, constraint: Constraint, dtype: DTypeLike) -> None:
        """Solve a block of zeros, so that compiling, or loading from disk, is not part of the time of the next solve.

        Parameters
        ----------
        pattern : Pattern
            With 0 < n < m.
        constraint : {"exactly", "at_most"}
        dtype : dtype_like
            Of the weights.
        """
        self.solve_scores(np.zeros((1, pattern.m, pattern.m), score_dtype(dtype)), pattern, constraint)

    def solve_blocks(self, blocks: Blocks, pattern: Pattern, *, threads: int, warm: bool) -> None:
        """Solve a grid of blocks and write the answer into ``blocks.mask``.

        Parameters
        ----------
        blocks : Blocks
            Finite weights; the magnitudes are the scores. ``mask``, and ``u`` and ``v`` if given, are written.
        pattern : Pattern
            With 0 < n < m.
        threads : int
            How many threads may work, at least 1. The answer does not depend on it.
        warm : bool
            Whether ``u`` and ``v`` hold a starting point; only if `warm_startable`.

        Raises
        ------
        SolverError
            If `solve_scores` returns something else than a bool for every score, or stops without an answer.
        """

        def solve_part(part: Blocks) -> None:
            shape = (part.count, *part.mask.shape[-2:])
            mask: object = self.solve_scores(part.scores(), pattern, part.constraint)
            if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != shape:
                got = f"{mask.dtype} of shape {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
                raise SolverError(
                    f"`solver` {self.info.name!r} must return masks of bool of shape {shape}, got {got}. "
                    "transmask.testing.assert_solver_contract shows what else it gets wrong."
                )
            part.mask[...] = mask.reshape(part.mask.shape)

        run_parallel(solve_part, blocks.split(max(1, self.chunk_entries // pattern.m**2)), threads)

    @abstractmethod
    def solve_scores(self, scores: Array, pattern: Pattern, constraint: Constraint) -> NDArray[np.bool_]:
        """Solve a batch of blocks, each on its own.

        Parameters
        ----------
        scores : ndarray of float32 or float64, shape (B, M, M)
            Finite, non-negative, C-contiguous; the solver may overwrite it.
        pattern : Pattern
            With 0 < n < m.
        constraint : {"exactly", "at_most"}

        Returns
        -------
        ndarray of bool, shape (B, M, M)
            True = kept.

        Raises
        ------
        SolverError
            If a third-party solver stops without an answer.
        """


def is_built_in(solver: Solver) -> bool:
    """Tell whether a solver is one of this package's own, whose masks the tests hold to the contract."""
    return type(solver).__module__.startswith(f"{__package__}.")


def scale_blocks(scores: Array, bits: int) -> NDArray[np.float64]:
    """Multiply each block by a power of two of its own, so that its largest score lies in [2**(bits - 1), 2**bits).

    It changes no mask, and makes what a solver does to scores relative to the largest of their block. Nothing is
    rounded but scores that are smaller than that by a factor of 2**1000 or more.

    Parameters
    ----------
    scores : ndarray of float32 or float64, shape (B, M, M)
        Finite and non-negative; not modified.
    bits : int

    Returns
    -------
    ndarray of float64, shape (B, M, M)
        A block of zeros stays one.

    Examples
    --------
    >>> scale_blocks(np.array([[[3.0, 0.5], [0.0, 0.0]], [[5e-324, 0.0], [0.0, 0.0]]]), 4)
    array([[[12.,  2.],
            [ 0.,  0.]],
    <BLANKLINE>
           [[ 8.,  0.],
            [ 0.,  0.]]])
    """
    _, exponents = np.frexp(scores.max(axis=(1, 2), keepdims=True))
    scaled: NDArray[np.float64] = np.ldexp(scores.astype(np.float64, copy=False), bits - exponents)
    return scaled
