"""What `reconstruct` did to every layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pattern import Pattern
from ...shown import shown

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
    """

    forward: float = 0.0
    gram: float = 0.0
    solving: float = 0.0


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
    """

    fits: tuple[LayerFit, ...]
    left: tuple[tuple[str, str], ...]
    batch_norm_layers: int
    seconds: Seconds = field(default_factory=Seconds, compare=False)

    def __str__(self) -> str:
        left = [(shown(name), why) for name, why in self.left]
        width = max(len(name) for name in [*(shown(fit.name) for fit in self.fits), *(name for name, _ in left)])
        fitted = [
            f"+ {shown(fit.name):{width}}  {fit.pattern}  error {fit.error_masked:.3e} -> {fit.error_fitted:.3e}  "
            f"{fit.note}"
            for fit in self.fits
        ]
        return "\n".join(line.rstrip() for line in fitted + [f"- {name:{width}}  {why}" for name, why in left])
