"""What is told of a pruned tensor, and how it adds up over the pieces that it is solved in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from ..certificate import add_up, relative_gap
from ..pattern import Pattern
from ._base import TensorInfo

__all__ = ["Progress", "PrunedTensor", "Sums", "outcome_of"]


@dataclass(frozen=True, slots=True)
class PrunedTensor:
    """The outcome for one tensor.

    Attributes
    ----------
    tensor : TensorInfo
    pattern : Pattern
    axes : tuple of two int
        The axes that formed its matrix.
    kept, total : float
        Sum of the magnitudes kept, and of all; of the effective weights, where the file holds them as entries in 8 bits
        and scales.
    upper_bound : float
        No mask of the pattern keeps more.
    gap : float
        The fraction of the bound that a better mask could still gain.
    unproven : int
        Number of blocks that may not be optimal; see `MaskResult`.
    n_blocks : int
    seconds : float
        Time that threads have spent in the solver; matrices that were solved together share it evenly.
    """

    tensor: TensorInfo
    pattern: Pattern
    axes: tuple[int, int]
    kept: float
    total: float
    upper_bound: float
    gap: float
    unproven: int
    n_blocks: int
    seconds: float


Progress: TypeAlias = Callable[[TensorInfo, PrunedTensor | None], None]
"""Called with each tensor twice: with None when work on it begins, with its outcome when it is done."""


class Sums(NamedTuple):
    """What is added up over the pieces of a tensor; see `PrunedTensor`."""

    kept: float
    total: float
    upper_bound: float
    unproven: int
    n_blocks: int
    seconds: float


def outcome_of(tensor: TensorInfo, pattern: Pattern, axes: tuple[int, int], pieces: list[Sums]) -> PrunedTensor:
    """Add up the pieces of a tensor."""
    kept, total, bound, seconds = (
        add_up(getattr(piece, name) for piece in pieces) for name in ("kept", "total", "upper_bound", "seconds")
    )
    return PrunedTensor(
        tensor=tensor,
        pattern=pattern,
        axes=axes,
        kept=kept,
        total=total,
        upper_bound=bound,
        gap=relative_gap(kept, bound),
        unproven=sum(piece.unproven for piece in pieces),
        n_blocks=sum(piece.n_blocks for piece in pieces),
        seconds=seconds,
    )
