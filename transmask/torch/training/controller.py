"""Control the masks of a model during training: attach an optimizer, refresh, freeze, remove."""

from __future__ import annotations

import copy
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NoReturn, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..._arguments import as_mask, tensor_on_cpu
from ...errors import InvalidArgumentError, InvalidTypeError
from ..selection import SelectionReport, WeightChoice, refuse_other_than_module
from .loading import MaskedEntry, MaskT, first_offender, masked_entries
from .mask_state import MaskState
from .masked_weight import MaskedWeight
from .sharding import refuse_sharded
from .step_hooks import StepHooks

__all__ = ["MaskController", "ParametrisationController", "RefreshRecord"]

RecordT = TypeVar("RecordT")


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


class ParametrisationController(ABC, Generic[MaskT, RecordT]):
    """What controllers share, whatever finds the masks: the optimizer, the masks, their end, copies.

    Parameters
    ----------
    model : torch.nn.Module
        Carrying masks.
    report : SelectionReport, optional
        Which parameters were taken, and why. Default: which carry a mask.
    load_handle : torch.utils.hooks.RemovableHandle, optional
        Handle of the hook that checks masks when the model loads them; removed with the masks.

    Raises
    ------
    InvalidTypeError
        If `model` is not a module.
    InvalidArgumentError
        If the model carries no mask.
    """

    # Words for error messages: what a model carries, what its optimizer must hold and how it comes to, who puts it on.
    _carried: ClassVar[str]
    _trained: ClassVar[str]
    _from: ClassVar[str]
    _maker: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        report: SelectionReport | None = None,
        *,
        load_handle: RemovableHandle | None = None,
    ) -> None:
        refuse_other_than_module(model, "model")
        self.model = model
        self.history: list[RecordT] = []
        self._hooks: list[StepHooks] = []
        self._load_handle = load_handle
        entries = self._entries()
        if not entries:
            raise InvalidArgumentError(
                f"`model` must carry {self._carried}, got a {type(model).__name__} without any. "
                f"Call {self._maker} first."
            )
        self.report = report or _describe(model, entries)

    @abstractmethod
    def _entries(self) -> list[MaskedEntry[MaskT]]:
        """List the weights that are controlled."""

    @abstractmethod
    def _parameter(self, entry: MaskedEntry[MaskT]) -> nn.Parameter:
        """Return the parameter whose optimizer rules the mask."""

    @abstractmethod
    def _refresh(self, due: Iterable[MaskState]) -> object:
        """Look at the masks that are due after an optimizer step."""

    def attach(self, optimizer: Optimizer) -> Self:
        """Count an optimizer's steps, look at the masks when due, and add to the gradients before each step.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            Or what wraps one as its ``optimizer``, as accelerate does: the steps of that one count, not those that
            the wrapper leaves out. It must hold masked weights, or their thresholds; those of other optimizers are not
            touched. A resumed run must create it at the same point as the original, before or after the masks: torch
            numbers an optimizer's parameters, and masks change their order. Thresholds exist only after
            `sparsify_by_threshold`.

        Returns
        -------
        MaskController or ThresholdController
            This one.

        Raises
        ------
        InvalidTypeError
            If `optimizer` neither is nor wraps a torch Optimizer.
        InvalidArgumentError
            If it holds no masked weight or threshold, or is already attached.
        """
        optimizer = _innermost(optimizer)
        if any(hooks.optimizer is optimizer for hooks in self._hooks):
            raise InvalidArgumentError(
                "`optimizer` must not be attached yet, got it twice. Its decay would count twice."
            )
        pairs = [(self._parameter(entry), entry.masked) for entry in self._entries()]
        hooks = StepHooks(optimizer, pairs, self._refresh)
        if not hooks.served():
            hooks.remove()
            raise InvalidArgumentError(
                f"`optimizer` must hold a {self._trained} of this model, got none. Make it from {self._from}."
            )
        self._hooks.append(hooks)
        return self

    def masks(self) -> dict[str, Tensor]:
        """Copy the masks, keyed by each parameter's name in the dense model.

        Returns
        -------
        dict of str to torch.Tensor of bool
        """
        return {entry.name: entry.masked.mask.clone() for entry in self._entries()}

    def freeze(self) -> None:
        """Fix the masks for good: no refresh, no decay, no gradient for pruned weights."""
        for entry in self._entries():
            entry.masked.freeze()

    def remove(self) -> None:
        """Write the zeros into the weights and leave an ordinary model with its original parameters."""
        for hooks in self._hooks:
            hooks.remove()
        self._hooks.clear()
        if self._load_handle is not None:
            self._load_handle.remove()
        for entry in self._entries():
            parametrize.remove_parametrizations(entry.module, entry.attribute)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the model with its masks; the copy is attached to no optimizer."""
        twin = type(self)(copy.deepcopy(self.model, memo), copy.deepcopy(self.report, memo))
        twin.history = list(self.history)
        memo[id(self)] = twin
        return twin

    def __getstate__(self) -> NoReturn:
        raise InvalidTypeError(
            f"`{type(self).__name__}` must stay in its process, got a request to pickle or copy.copy it. Save "
            "model.state_dict(), which holds the masks; copy.deepcopy copies it with its model."
        )

    def __repr__(self) -> str:
        entries = self._entries()
        size = sum(entry.masked.mask.numel() for entry in entries)
        return f"{type(self).__name__}({type(self.model).__name__}: {len(entries)} masks, {size} weights)"


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

    def remove(self) -> None:
        """Write the zeros into the weights and leave an ordinary model with its original parameters.

        Raises
        ------
        InvalidArgumentError
            If a mask does not hold its pattern, as an average of masks does not, or FSDP2 shards the model; the model
            is unchanged.
        """
        self._refuse_broken()
        refuse_sharded(
            self.model,
            "be whole to lose its masks",
            "Save its full state_dict, and load it after sparsify in one process, or fold it with `transmask apply`.",
        )
        super().remove()

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

    @torch.no_grad()
    def _refresh(self, due: Iterable[MaskState]) -> list[RefreshRecord]:
        wanted = {id(masked) for masked in due}
        found = []
        for entry in self._entries():
            if id(entry.masked) in wanted:
                began = time.perf_counter()
                mask = entry.masked.find(entry.original, entry.name)
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


def _innermost(optimizer: Any) -> Optimizer:
    """Return the optimizer that steps, whatever wraps it."""
    inner = optimizer
    while isinstance(wrapped := getattr(inner, "optimizer", None), Optimizer) and wrapped is not inner:
        inner = wrapped
    if not isinstance(inner, Optimizer):
        raise InvalidTypeError(
            f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}. Attach what it wraps."
        )
    return inner


def _describe(model: nn.Module, entries: Sequence[MaskedEntry[MaskT]]) -> SelectionReport:
    """Say of every parameter whether it carries a mask."""
    masked = {id(entry.original): entry for entry in entries}
    choices = []
    for name, parameter in model.named_parameters():
        entry = masked.get(id(parameter))
        path, _, attribute = name.rpartition(".")
        shape = tuple(parameter.shape)
        if entry is None:
            module = model.get_submodule(path)
            choices.append(WeightChoice(name, shape, False, "without a mask", module, attribute, None))
        else:
            reason = entry.masked.describe()
            layout = entry.masked.layout
            choices.append(WeightChoice(entry.name, shape, True, reason, entry.module, entry.attribute, layout))
    return SelectionReport(choices)
