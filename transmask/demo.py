"""What ``transmask demo`` does: prune a small trained network with several solvers and measure what each of them costs.

The network (`transmask.data.digits`) reads digits of 8 x 8 pixels. Every solver prunes the same tensors in one shot,
without any training afterwards, and the accuracy on images that the network was never shown is computed in numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import Array
from .check import check_mask
from .checkpoint import open_checkpoint, select_tensors
from .data import DIGITS
from .data.digits import Tensors, load_held_out, load_network, predict
from .errors import InvalidArgumentError, UnsupportedPatternError
from .masks import nm_mask, solve, transposable_mask
from .pattern import CONSTRAINTS, Constraint, Pattern, PatternLike
from .solvers import list_solvers

__all__ = ["ONE_CALL_A_BLOCK", "Demo", "DemoRow", "draw_block", "run_demo"]

ONE_CALL_A_BLOCK = ("network_simplex", "milp")
"""Reference solvers that call a library for every block, milliseconds each: run only where they are asked for."""

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
    kept : float
        Fraction of the sum of magnitudes that is kept.
    gap : float or None
        What a better mask could still gain, as a fraction of the proven upper bound.
    seconds : float or None
        Wall time of the solver over all pruned tensors, its code compiled beforehand.
    accuracy : float
        Fraction of the held-out images that are read correctly.
    transposable : bool
        Whether the groups of every mask hold the pattern in rows and in columns.
    """

    solver: str
    constraint: Constraint | None
    kept: float
    gap: float | None
    seconds: float | None
    accuracy: float
    transposable: bool


@dataclass(frozen=True, slots=True)
class Demo:
    """What `run_demo` measured.

    Attributes
    ----------
    pattern : Pattern
    images : int
        Number of held-out images.
    dense_accuracy : float
        Fraction of them that is read correctly before pruning.
    pruned : tuple of str
        Names of the tensors that were pruned: those that ``transmask prune`` takes.
    dense : tuple of (str, str)
        Names of the other tensors, with the reason.
    rows : tuple of DemoRow
        The plain mask first, then every solver under "exactly" and under "at_most".
    refused : tuple of (str, str, str)
        Solver, constraint and the reason why it does not answer the pattern.
    block : str
        A drawing of the first block of fc1.weight; see `draw_block`.
    """

    pattern: Pattern
    images: int
    dense_accuracy: float
    pruned: tuple[str, ...]
    dense: tuple[tuple[str, str], ...]
    rows: tuple[DemoRow, ...]
    refused: tuple[tuple[str, Constraint, str], ...]
    block: str


def run_demo(pattern: PatternLike = "2:4", *, solvers: Iterable[str] = (), threads: int | None = None) -> Demo:
    """Prune the network that ships with the package and measure kept weight, proven gap, time and accuracy.

    Parameters
    ----------
    pattern : Pattern, str or tuple of two int, default "2:4"
        N entries kept of every M; M is at most 100, the smaller side of the largest matrix.
    solvers : iterable of str, optional
        Names out of `list_solvers`. Default: all but `ONE_CALL_A_BLOCK`.
    threads : int, optional
        Default: the environment variable TRANSMASK_NUM_THREADS, else every core.

    Returns
    -------
    Demo

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used.

    Examples
    --------
    >>> demo = run_demo("2:4", solvers=["enumeration"])
    >>> [f"{row.kept:.1%} kept, {row.accuracy:.1%} right" for row in demo.rows]
    ['74.3% kept, 98.6% right', '69.5% kept, 96.9% right', '69.6% kept, 96.9% right']
    """
    chosen = Pattern.of(pattern)
    network = load_network()
    selections = select_tensors(open_checkpoint(DIGITS).tensors, chosen)
    pruned = tuple(item.tensor.name for item in selections if item.axes)
    if not pruned:
        raise InvalidArgumentError(
            f"`pattern` must have M of at most 100 for the demo's network, got {str(chosen)!r}. Try '2:4'."
        )
    names = tuple(solvers) or [info.name for info in list_solvers() if info.name not in ONE_CALL_A_BLOCK]
    measure = _Measure(network, *load_held_out(), pruned=pruned, pattern=chosen)
    rows, refused = [measure.plain_row()], []
    for constraint in CONSTRAINTS:
        for name in names:
            try:
                rows.append(measure.solver_row(name, constraint, threads))
            except UnsupportedPatternError as error:
                refused.append((name, constraint, str(error)))
    side = max(chosen.m, 8 - 8 % chosen.m)
    corner = network["fc1.weight"][:side, :side]
    return Demo(
        pattern=chosen,
        images=len(measure.images),
        dense_accuracy=measure.accuracy(network),
        pruned=pruned,
        dense=tuple((item.tensor.name, item.reason) for item in selections if not item.axes),
        rows=tuple(rows),
        refused=tuple(refused),
        block=draw_block(corner, transposable_mask(corner, chosen, threads=threads), chosen),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Measure:
    """A network, images it was never shown, and which of its weights are pruned to which pattern."""

    network: Tensors
    images: Array
    labels: Array
    pruned: tuple[str, ...]
    pattern: Pattern

    def accuracy(self, network: Tensors) -> float:
        """Return the fraction of the images that a network reads correctly."""
        return float(np.mean(predict(network, self.images) == self.labels))

    def plain_row(self) -> DemoRow:
        """Measure the mask that is sparse along the inputs alone; no transposable mask keeps more."""
        masks = {name: nm_mask(self.network[name], self.pattern, axis=MATRIX_AXES[1]) for name in self.pruned}
        return self._row("plain", None, masks)

    def solver_row(self, solver: str, constraint: Constraint, threads: int | None) -> DemoRow:
        """Prune with one solver and measure."""
        arguments: dict[str, Any] = {"constraint": constraint, "solver": solver, "threads": threads}
        # One whole and three cut blocks make the solver compile or load all it needs: the time below is its own.
        solve(np.ones((self.pattern.m + 1,) * 2, np.float32), self.pattern, **arguments)
        results = [solve(self.network[name], self.pattern, axes=MATRIX_AXES, **arguments) for name in self.pruned]
        return self._row(
            solver,
            constraint,
            {name: result.mask for name, result in zip(self.pruned, results, strict=True)},
            upper_bound=sum(result.upper_bound for result in results),
            seconds=sum(result.seconds for result in results),
        )

    def _row(
        self,
        solver: str,
        constraint: Constraint | None,
        masks: dict[str, NDArray[np.bool_]],
        upper_bound: float | None = None,
        seconds: float | None = None,
    ) -> DemoRow:
        """Measure what masks keep and what they cost in accuracy, without regard to who made them."""
        kept = total = 0.0
        network = dict(self.network)
        for name, mask in masks.items():
            magnitudes = np.abs(network[name].astype(np.float64))
            kept, total = kept + float(magnitudes[mask].sum()), total + float(magnitudes.sum())
            network[name] = np.where(mask, network[name].astype(np.float32), 0)
        return DemoRow(
            solver=solver,
            constraint=constraint,
            kept=kept / total,
            gap=None if upper_bound is None else max(0.0, upper_bound - kept) / (upper_bound or 1.0),
            seconds=seconds,
            accuracy=self.accuracy(network),
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
        Rows and columns beyond it are left out.

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
