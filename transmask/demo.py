"""What ``transmask demo`` measures: a small trained network, pruned by one solver after another.

The network (`transmask.data.digits`) reads digits of 8 x 8 pixels. Every solver prunes the same tensors in one shot,
without further training, and numpy computes the accuracy on images that the network never saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import Array
from .check import check_mask
from .checkpoint import open_checkpoint, select_tensors
from .data import DIGITS
from .data.digits import load_held_out, load_network, predict
from .errors import InvalidArgumentError
from .masks import solve, transposable_mask
from .pattern import Constraint, Pattern, PatternLike
from .plain_mask import nm_mask

__all__ = ["Demo", "DemoRow", "draw_block"]

MATRIX_AXES = (0, 1)
"""Outputs and inputs, of a linear layer (K, C) and of a convolution (K, C, R, S) alike."""


@dataclass(frozen=True, slots=True)
class DemoRow:
    """What one solver made of the network.

    Attributes
    ----------
    solver : str
        Name of the solver, or "plain" for the N:M mask that is sparse along the inputs alone.
    constraint : {"exactly", "at_most"} or None
        None for the plain mask.
    kept_fraction : float
        Fraction of the sum of magnitudes that is kept.
    gap : float or None
        What a better mask could still gain, as a fraction of the proven upper bound.
    unproven_blocks : int or None
        Number of blocks that may not be optimal; see `MaskResult`.
    seconds : float or None
        Wall time of the solver over all pruned tensors, its code compiled beforehand.
    accuracy : float
        Fraction of the held-out images that are read correctly.
    transposable : bool
        Whether the groups of every mask hold the pattern in rows and in columns.
    """

    solver: str
    constraint: Constraint | None
    kept_fraction: float
    gap: float | None
    unproven_blocks: int | None
    seconds: float | None
    accuracy: float
    transposable: bool


class Demo:
    """The network that ships with the package, ready to be pruned to one pattern.

    Parameters
    ----------
    pattern : Pattern, str or tuple of two int, default "2:4"
        N entries kept of every M; M is at most 100, the smaller side of the largest matrix.

    Attributes
    ----------
    pattern : Pattern
    pruned : tuple of str
        Names of the tensors that are pruned: those that ``transmask prune`` takes.
    skipped : tuple of (str, str)
        Names of the other tensors, with the reason.
    n_weights : int
        Number of entries of the pruned tensors.
    n_images : int
        Number of held-out images.
    dense_accuracy : float
        Fraction of them that is read correctly before pruning.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `pattern` is not a pattern, or no matrix is large enough for it.

    Examples
    --------
    >>> demo = Demo("2:4")
    >>> row = demo.prune("enumeration", "exactly")
    >>> f"{row.kept_fraction:.1%} kept, {demo.dense_accuracy:.1%} right before, {row.accuracy:.1%} after"
    '69.5% kept, 98.7% right before, 96.9% after'
    """

    def __init__(self, pattern: PatternLike = "2:4") -> None:
        self.pattern = Pattern.of(pattern)
        selections = select_tensors(open_checkpoint(DIGITS).tensors, self.pattern)
        self.pruned = tuple(item.tensor.name for item in selections if item.axes)
        self.skipped = tuple((item.tensor.name, item.reason) for item in selections if not item.axes)
        if not self.pruned:
            raise InvalidArgumentError(
                f"`pattern` must have M of at most 100 for the demo's network, got {str(self.pattern)!r}. Try '2:4'."
            )
        self._network = load_network()
        self._images, self._labels = load_held_out()
        self.n_weights = sum(self._network[name].size for name in self.pruned)
        self.n_images = len(self._images)
        self.dense_accuracy = self._accuracy(self._network)

    def plain(self) -> DemoRow:
        """Measure the mask that is sparse along the inputs alone; no transposable mask keeps more.

        Returns
        -------
        DemoRow
        """
        masks = {name: nm_mask(self._network[name], self.pattern, axis=MATRIX_AXES[1]) for name in self.pruned}
        return self._row("plain", None, masks)

    def prune(self, solver: str, constraint: Constraint, *, threads: int | None = None) -> DemoRow:
        """Prune with one solver and measure.

        Parameters
        ----------
        solver : str
            A name from `list_solvers`.
        constraint : {"exactly", "at_most"}
        threads : int, optional
            Default: the environment variable TRANSMASK_NUM_THREADS, else every core.

        Returns
        -------
        DemoRow

        Raises
        ------
        InvalidTypeError, InvalidArgumentError, UnsupportedPatternError, SolverError
            As `solve`.
        """
        arguments: dict[str, Any] = {"constraint": constraint, "solver": solver, "threads": threads}
        # One whole and three cut blocks make the solver compile or load all it needs: the time below is its own.
        solve(np.ones((self.pattern.m + 1,) * 2, np.float32), self.pattern, **arguments)
        results = [solve(self._network[name], self.pattern, axes=MATRIX_AXES, **arguments) for name in self.pruned]
        return self._row(
            solver,
            constraint,
            {name: result.mask for name, result in zip(self.pruned, results, strict=True)},
            upper_bound=sum(result.upper_bound for result in results),
            unproven_blocks=sum(result.unproven for result in results),
            seconds=sum(result.seconds for result in results),
        )

    def draw_block(self) -> str:
        """Draw the first block of fc1.weight under an optimal mask; a few blocks where they are smaller than 8 x 8.

        Returns
        -------
        str
            See the function `draw_block`.
        """
        side = max(self.pattern.m, 8 - 8 % self.pattern.m)
        corner = self._network["fc1.weight"][:side, :side]
        return draw_block(corner, transposable_mask(corner, self.pattern), self.pattern)

    def _accuracy(self, network: dict[str, Array]) -> float:
        """Return the fraction of the images that a network reads correctly."""
        return float(np.mean(predict(network, self._images) == self._labels))

    def _row(
        self,
        solver: str,
        constraint: Constraint | None,
        masks: dict[str, NDArray[np.bool_]],
        upper_bound: float | None = None,
        unproven_blocks: int | None = None,
        seconds: float | None = None,
    ) -> DemoRow:
        """Measure what masks keep and what they cost in accuracy, without regard to who made them."""
        kept = total = 0.0
        network = dict(self._network)
        for name, mask in masks.items():
            magnitudes = np.abs(network[name].astype(np.float64))
            kept, total = kept + float(magnitudes[mask].sum()), total + float(magnitudes.sum())
            network[name] = np.where(mask, network[name].astype(np.float32), 0)
        return DemoRow(
            solver=solver,
            constraint=constraint,
            kept_fraction=kept / total,
            gap=None if upper_bound is None else max(0.0, upper_bound - kept) / (upper_bound or 1.0),
            unproven_blocks=unproven_blocks,
            seconds=seconds,
            accuracy=self._accuracy(network),
            transposable=all(check_mask(mask, self.pattern, axes=MATRIX_AXES).ok for mask in masks.values()),
        )


def draw_block(weights: Array, mask: NDArray[np.bool_], pattern: PatternLike, *, limit: int = 16) -> str:
    """Draw weights as numbers, the kept ones in brackets, with lines between the blocks.

    Parameters
    ----------
    weights : ndarray, shape (R, C)
        Drawn as percent of the largest magnitude.
    mask : ndarray of bool, shape (R, C)
        True = kept.
    pattern : Pattern, str or tuple of two int
    limit : int, default 16
        Largest number of rows and columns drawn.

    Returns
    -------
    str
        One line of ASCII a row.

    Examples
    --------
    >>> print(draw_block(np.array([[4.0, 1], [2, -3]]), np.eye(2, dtype=bool), "1:2"))
    [100]  25
      50 [ 75]
    """
    m = Pattern.of(pattern).m
    magnitudes = np.abs(weights.astype(np.float64))
    percent = np.rint(100 * magnitudes / (magnitudes.max(initial=0) or 1)).astype(int)[:limit, :limit]
    lines = []
    for i, (values, kept) in enumerate(zip(percent, mask[:limit, :limit], strict=True)):
        cells = [f"[{value:3}]" if keep else f" {value:3} " for value, keep in zip(values, kept, strict=True)]
        groups = ["".join(cells[start : start + m]) for start in range(0, len(cells), m)]
        if i and i % m == 0:
            lines.append("-+-".join("-" * len(group) for group in groups))
        lines.append(" | ".join(groups).rstrip())
    return "\n".join(lines)
