"""What `reconstruct` did to every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...pattern import Pattern
from ...shown import shown
from .block_matching import BlockMatch

__all__ = ["LayerFit", "ReconstructionReport", "Seconds"]


@dataclass(frozen=True, slots=True)
class LayerFit:
    """What became of one layer.

    Attributes
    ----------
    name : str
        The weight.
    pattern : Pattern
    error_masked : float
        Squared error of the layer's outputs on the calibration data with the mask alone, relative to the squared
        outputs; 0 if there are none.
    error_fitted : float
        The same with the kept weights refitted.
    note : str
        Anything else to know, such as a singular Gram matrix, or that no calibration row reaches the layer, so that it
        has its mask alone; otherwise empty.
    """

    name: str
    pattern: Pattern
    error_masked: float
    error_fitted: float
    note: str


@dataclass(slots=True)
class Seconds:
    """Where the time went, in seconds.

    Attributes
    ----------
    forward : float
        Running the model.
    gram : float
        Gram matrices.
    solving : float
        Masks and refitting.
    matching : float
        Training blocks.
    """

    forward: float = 0.0
    gram: float = 0.0
    solving: float = 0.0
    matching: float = 0.0


@dataclass(frozen=True, slots=True)
class ReconstructionReport:
    """What became of every parameter; prints as a table.

    Attributes
    ----------
    fits : tuple of LayerFit
        In the order of treatment.
    left : tuple of (str, str)
        Name and reason of every parameter that was skipped.
    batch_norm_layers : int
        How many batch-norm layers were re-estimated.
    seconds : Seconds
        Where the time went, batch normalisation left out.
    matches : mapping of str to BlockMatch
        What training each block has reached, by its name.
    """

    fits: tuple[LayerFit, ...]
    left: tuple[tuple[str, str], ...]
    batch_norm_layers: int
    seconds: Seconds = field(default_factory=Seconds, compare=False)
    matches: Mapping[str, BlockMatch] = field(default_factory=dict)

    def __str__(self) -> str:
        left = [(shown(name), why) for name, why in self.left]
        matches = [(shown(name), match) for name, match in self.matches.items()]
        names = [*(shown(fit.name) for fit in self.fits), *(name for name, _ in [*left, *matches])]
        width = max(map(len, names))
        lines = [
            f"+ {shown(fit.name):{width}}  {fit.pattern}  error {fit.error_masked:.3e} -> {fit.error_fitted:.3e}  "
            f"{fit.note}"
            for fit in self.fits
        ]
        lines += [
            f"+ {name:{width}}  block  error {match.error_before:.3e} -> {match.error_after:.3e}"
            for name, match in matches
        ]
        lines += [f"- {name:{width}}  {why}" for name, why in left]
        return "\n".join(map(str.rstrip, lines))
