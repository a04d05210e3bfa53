"""The contract that every solver keeps.

A solver chooses, on each M x M block of non-negative scores S, the 0/1 matrix X that should

    maximise   sum_ij S[i, j] X[i, j]
    subject to every row sum and every column sum == N   ("exactly")  or  <= N   ("at_most")

To add one: write ``solvers/<name>.py`` with a subclass of `Solver` that implements `solve_scores`, and add a row to the
table in ``solvers/__init__.py``. The public functions have validated everything by the time a solver is called, and
handle N = 0 and N = M themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..blocks import Array, Blocks, score_dtype
from ..errors import UnsupportedPatternError
from ..pattern import Constraint, Pattern
from ..threads import run_parallel

__all__ = ["Guarantee", "Solver", "SolverInfo", "scale_blocks"]

Guarantee: TypeAlias = Literal["exact", "kept >= 1/2 optimum", "pruned <= 2 x optimum", "none"]
"""What is proven of a solver's masks: the optimum, a factor on the kept or on the pruned weight, or nothing."""


@dataclass(frozen=True, slots=True)
class SolverInfo:
    """A row of the table of solvers.

    Attributes
    ----------
    name : str
        What `solver=` takes; also the name of the module.
    class_name : str
        The class in that module.
    guarantee : str
        What is proven of the masks for "at_most"; the module's docstring says what holds for "exactly".
    constraints : tuple of str
        The constraints it answers.
    max_m : int or None
        Largest block side it takes, None if there is no limit.
    needs : str
        The package that does the work.
    reference : str
        Where the method was published.
    """

    name: str
    class_name: str
    guarantee: Guarantee
    constraints: tuple[Constraint, ...]
    max_m: int | None
    needs: str
    reference: str


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
        if self.info.max_m is not None and pattern.m > self.info.max_m:
            raise UnsupportedPatternError(
                f"`solver` {self.info.name!r} must be given a pattern with M of at most {self.info.max_m}, "
                f"got {str(pattern)!r}. {self._alternatives(pattern, constraint)}"
            )

    def _alternatives(self, pattern: Pattern, constraint: Constraint) -> str:
        """Name the other exact solvers that take this pattern."""
        from . import exact_solvers

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
            If a third-party solver stops without an answer.
        """

        def solve_part(part: Blocks) -> None:
            mask = self.solve_scores(part.scores(), pattern, part.constraint)
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
