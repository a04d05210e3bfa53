"""Control the masks of a model during training: attach an optimizer, refresh, freeze, remove."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..._arguments import as_mask, tensor_on_cpu
from ...errors import InvalidArgumentError
from ..choices import Patterns
from ..mask_rule import MaskRule
from ..selection import SelectionReport, matches
from .loading import MaskedEntry, first_offender, masked_entries
from .mask_state import MaskState
from .masked_weight import MaskedWeight
from .parametrisation_controller import ParametrisationController
from .sharding import refuse_sharded, whole

__all__ = ["MaskController", "RefreshRecord"]


@dataclass(frozen=True, slots=True)
class RefreshRecord:
    """One refresh of one mask.

    Attributes
    ----------
    step : int
        Optimizer steps since the first mask.
    name : str
        The parameter.
    flipped : int
        Entries that went from kept to pruned or back: the sparse architecture divergence from the previous mask.
    size : int
        Entries in all.
    seconds : float
        Wall time of finding the mask, including the copy to the CPU and back.
    """

    step: int
    name: str
    flipped: int
    size: int
    seconds: float

    @property
    def flip_rate(self) -> float:
        """Fraction of the entries that changed their state."""
        return self.flipped / self.size


class MaskController(ParametrisationController[MaskedWeight, RefreshRecord]):
    """Controls the masks of a sparsified model; `sparsify` makes it.

    The model's own state_dict holds all that a resumed run needs. To control a deep copy of the model, or an average of
    models, make another: ``MaskController(copy)``. A deep copy of the controller also copies its model, and has no
    optimizer.

    Parameters
    ----------
    model : torch.nn.Module
        Carrying masks.
    report : SelectionReport, optional
        Which parameters `sparsify` took, and why. Default: which carry a mask.
    load_handle : torch.utils.hooks.RemovableHandle, optional
        Handle of the hook that checks masks when the model loads them; removed with the masks.

    Attributes
    ----------
    model : torch.nn.Module
    report : SelectionReport
        Every parameter of the model, taken or not, and why.
    history : list of RefreshRecord
        The refreshes that this controller has made, oldest first; clear it whenever it grows too long.

    Raises
    ------
    InvalidTypeError
        If `model` is not a module.
    InvalidArgumentError
        If the model carries no mask.

    Warns
    -----
    RuntimeWarning
        If a mask does not hold its pattern, as an average of masks does not. `refresh` finds new ones.
    """

    _carried, _trained, _from, _maker = "masks", "masked weight", "model.parameters()", "sparsify"

    def __init__(
        self,
        model: nn.Module,
        report: SelectionReport | None = None,
        *,
        load_handle: RemovableHandle | None = None,
    ) -> None:
        super().__init__(model, report, load_handle=load_handle)
        for entry in self._entries():
            entry.masked.mirror()  # an average may have written into its buffers
        if report is None and (broken := self._broken()):
            warnings.warn(f"the model carries {broken}", RuntimeWarning, stacklevel=2)

    def _broken(self) -> str:
        """Say which mask does not hold its pattern, and what to do; "" if all do."""
        for entry in self._entries():
            masked = entry.masked
            kept = as_mask(tensor_on_cpu(masked.mask, argument="mask"))
            if offender := first_offender(kept, masked.layout, masked.mask_rule):
                return (
                    f"a mask that is not {masked.mask_rule}, for {entry.name}: {offender}. Averages of models must not "
                    "average masks (use_buffers=False). Call refresh() to find masks for the weights as they are."
                )
        return ""

    def _refuse_broken(self) -> None:
        if broken := self._broken():
            raise InvalidArgumentError(f"`model` must carry masks that hold their pattern, got {broken}")

    def masks(self) -> dict[str, Tensor]:
        """Copy the masks, keyed by each parameter's name in the dense model.

        Returns
        -------
        dict of str to torch.Tensor of bool

        Raises
        ------
        InvalidArgumentError
            If one does not hold its pattern, as an average of masks does not.
        """
        self._refuse_broken()
        return super().masks()

    def dense(self) -> None:
        """Drop the masks and go on with the dense weights behind them, for the last part of training.

        Pruned weights take part from the next forward on. The parameters are those that the optimizer holds, so its
        state stays.

        Raises
        ------
        InvalidArgumentError
            If FSDP2 shards the model; the model is unchanged.

        References
        ----------
        Hu et al. 2024, "Accelerating Transformer Pre-training with 2:4 Sparsity", section 4.4, dense fine-tuning.
        """
        self._refuse_sharded()
        self._end(masked=False)

    def remove(self) -> None:
        """Write the zeros into the weights and leave an ordinary model with its original parameters.

        Raises
        ------
        InvalidArgumentError
            If a mask does not hold its pattern, as an average of masks does not, or FSDP2 shards the model; the model
            is unchanged.
        """
        self._refuse_broken()
        self._refuse_sharded()
        super().remove()

    def _refuse_sharded(self) -> None:
        refuse_sharded(
            self.model,
            "be whole to lose its masks",
            "Save its full state_dict, and load it after sparsify in one process, or fold it with `transmask apply`.",
        )

    def _entries(self) -> list[MaskedEntry[MaskedWeight]]:
        return list(masked_entries(self.model, MaskedWeight))

    def _parameter(self, entry: MaskedEntry[MaskedWeight]) -> nn.Parameter:
        return entry.original

    def refresh(self) -> list[RefreshRecord]:
        """Refresh every mask that is not frozen, now, from the current weights.

        Returns
        -------
        list of RefreshRecord
            Also appended to `history`.

        Raises
        ------
        InvalidArgumentError
            If a weight is NaN or infinite, or on the meta device; no mask changes then.
        """
        return self._refresh([entry.masked for entry in self._entries() if not entry.masked.is_frozen])

    def change_pattern(self, pattern: Patterns) -> list[RefreshRecord]:
        """Give the masks another pattern and find them anew: a step of density, such as from 3:4 to 2:4.

        A state_dict says which patterns its masks have; a model that loads it must have come to the same.

        Parameters
        ----------
        pattern : Pattern, str, tuple of two int, or mapping of str to those
            For every mask; or by names or wildcards of weights or of their modules, of which the later one counts. What
            a mapping does not name stays as it is.

        Returns
        -------
        list of RefreshRecord
            Also appended to `history`.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError, UnsupportedPatternError
            If a pattern cannot be used, a name matches no mask, a mask is frozen, or a weight is NaN or infinite;
            nothing has changed then.
        """
        rules = self._changed_rules(pattern)
        records = self._find([(entry, rules[entry.name]) for entry in self._entries() if entry.name in rules])
        for entry in self._entries():
            if entry.name in rules:
                entry.masked.change_rule(rules[entry.name])
        return records

    def _changed_rules(self, pattern: Patterns) -> dict[str, MaskRule]:
        """Return the new rule of each mask that `pattern` names."""
        rules: dict[str, MaskRule] = {}
        by_name = pattern if isinstance(pattern, Mapping) else {"*": pattern}
        for name, wanted in by_name.items():
            entries = [entry for entry in self._entries() if isinstance(name, str) and matches(name, entry.name)]
            if not entries:
                raise InvalidArgumentError(
                    f"`pattern` must name weights that carry masks, got {name!r}. controller.masks() lists them."
                )
            for entry in entries:
                old = entry.masked.mask_rule
                if entry.masked.is_frozen:
                    raise InvalidArgumentError(
                        f"`pattern` must name masks that change, got {name!r}: that of {entry.name} is frozen."
                    )
                rule = MaskRule.of(wanted, old.transposable, old.constraint, old.solver)
                if not rule.prunes(entry.masked.layout, entry.original.shape):
                    raise InvalidArgumentError(
                        f"`pattern` must prune every weight that it names, got {str(rule.pattern)!r}, which would keep "
                        f"all of {entry.name}, of shape {tuple(entry.original.shape)}."
                    )
                rules[entry.name] = rule
        return rules

    def _refresh(self, due: Iterable[MaskState]) -> list[RefreshRecord]:
        wanted = {id(masked) for masked in due}
        return self._find([(entry, entry.masked.mask_rule) for entry in self._entries() if id(entry.masked) in wanted])

    @torch.no_grad()
    def _find(self, wanted: Sequence[tuple[MaskedEntry[MaskedWeight], MaskRule]]) -> list[RefreshRecord]:
        """Find masks by rules, and put them in place when all are found."""
        found = []
        for entry, rule in wanted:
            began = time.perf_counter()
            mask = rule.find(whole(entry.original), entry.masked.layout, name=entry.name)
            found.append((entry, mask, time.perf_counter() - began))
        records = [
            RefreshRecord(
                step=entry.masked.steps,
                name=entry.name,
                flipped=entry.masked.replace_mask(mask),
                size=mask.numel(),
                seconds=seconds,
            )
            for entry, mask, seconds in found
        ]
        self.history += records
        return records
