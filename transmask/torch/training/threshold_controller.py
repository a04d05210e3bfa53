"""Control the thresholds of a model during training: attach an optimizer, follow the densities, freeze, remove."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .loading import MaskedEntry, masked_entries
from .mask_state import MaskState
from .parametrisation_controller import ParametrisationController
from .thresholded_weight import ThresholdedWeight

__all__ = ["DensityRecord", "ThresholdController"]


@dataclass(frozen=True, slots=True)
class DensityRecord:
    """What one layer kept at one step.

    Attributes
    ----------
    step : int
        Optimizer steps since the thresholds were put on.
    name : str
        The parameter.
    kept : int
        Entries that the thresholds keep.
    size : int
        Entries in all.
    flipped : int
        Entries whose state differs from the one at the record before; the first mask keeps every entry.
    resets : int
        How often the thresholds were set back to 0 since they were put on.
    """

    step: int
    name: str
    kept: int
    size: int
    flipped: int
    resets: int

    @property
    def density(self) -> float:
        """Fraction of the entries that is kept."""
        return self.kept / self.size


class ThresholdController(ParametrisationController[ThresholdedWeight, DensityRecord]):
    """Controls the thresholds of a model; `sparsify_by_threshold` makes it.

    The model's own state_dict holds all that a resumed run needs. To control a deep copy of the model, make another:
    ``ThresholdController(copy)``. A deep copy of the controller also copies its model, and has no optimizer.

    Parameters
    ----------
    model : torch.nn.Module
        Carrying thresholds.
    report : SelectionReport, optional
        Which parameters `sparsify_by_threshold` took, and why. Default: which carry thresholds.
    load_handle : torch.utils.hooks.RemovableHandle, optional
        Handle of the hook that checks thresholds when the model loads them; removed with the thresholds.

    Attributes
    ----------
    model : torch.nn.Module
    report : SelectionReport
        Every parameter of the model, taken or not, and why.
    history : list of DensityRecord
        The density of each layer every ``record_every`` steps, oldest first; clear it whenever it grows too long.

    Raises
    ------
    InvalidTypeError
        If `model` is not a module.
    InvalidArgumentError
        If the model carries no threshold.
    """

    _carried, _trained, _maker = "thresholds", "threshold", "sparsify_by_threshold"
    _from = "model.parameters(), after sparsify_by_threshold"

    def _entries(self) -> list[MaskedEntry[ThresholdedWeight]]:
        return list(masked_entries(self.model, ThresholdedWeight))

    def _parameter(self, entry: MaskedEntry[ThresholdedWeight]) -> nn.Parameter:
        return entry.masked.threshold

    def _refresh(self, due: Iterable[MaskState]) -> None:
        """Revive layers that have pruned themselves away, and record those whose turn it is."""
        wanted = {id(masked) for masked in due}
        entries = [entry for entry in self._entries() if id(entry.masked) in wanted]
        for entry in entries:
            entry.masked.revive(entry.original)
        self._record([entry for entry in entries if entry.masked.is_recorded])

    def record(self) -> list[DensityRecord]:
        """Record the density of every layer that is not frozen, now.

        Returns
        -------
        list of DensityRecord
            Also appended to `history`.
        """
        return self._record([entry for entry in self._entries() if not entry.masked.is_frozen])

    def _record(self, entries: list[MaskedEntry[ThresholdedWeight]]) -> list[DensityRecord]:
        records = []
        for entry in entries:
            masked, mask = entry.masked, entry.masked.current(entry.original)
            records.append(
                DensityRecord(
                    step=masked.steps,
                    name=entry.name,
                    kept=int(torch.count_nonzero(mask)),
                    size=mask.numel(),
                    flipped=masked.replace_mask(mask),
                    resets=int(masked.resets),
                )
            )
        self.history += records
        return records

    def masks(self) -> dict[str, Tensor]:
        """Return the masks of the weights and thresholds as they are, keyed by the name in the dense model.

        Returns
        -------
        dict of str to torch.Tensor of bool
        """
        return {entry.name: entry.masked.current(entry.original) for entry in self._entries()}

    def thresholds(self) -> dict[str, nn.Parameter]:
        """Return the thresholds themselves, keyed by their weight's name in the dense model.

        Returns
        -------
        dict of str to torch.nn.Parameter
            For a parameter group of their own, with another learning rate or without weight decay.
        """
        return {entry.name: entry.masked.threshold for entry in self._entries()}

    def densities(self) -> dict[str, float]:
        """Return the fraction of each weight that is kept now, keyed by the name in the dense model."""
        return {name: float(mask.float().mean()) for name, mask in self.masks().items()}

    def freeze(self) -> None:
        """Fix the masks as they are: thresholds stop, and pruned weights get no gradient."""
        for entry in self._entries():
            entry.masked.replace_mask(entry.masked.current(entry.original))
        super().freeze()
