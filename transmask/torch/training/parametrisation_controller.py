"""What the controllers share, whatever finds the masks: the optimizer, the masks, their end, copies."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Generic, NoReturn, Self, TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ...errors import InvalidArgumentError, InvalidTypeError
from ..selection import SelectionReport, WeightChoice, refuse_other_than_module
from .loading import MaskedEntry, MaskT
from .mask_state import MaskState
from .step_hooks import StepHooks

__all__ = ["ParametrisationController"]

RecordT = TypeVar("RecordT")


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
        self._end(masked=True)

    def _end(self, *, masked: bool) -> None:
        """Let go of optimizers, and leave the masked weights, or the dense ones behind them."""
        for hooks in self._hooks:
            hooks.remove()
        self._hooks.clear()
        if self._load_handle is not None:
            self._load_handle.remove()
        for entry in self._entries():
            parametrize.remove_parametrizations(entry.module, entry.attribute, leave_parametrized=masked)

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
