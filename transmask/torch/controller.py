"""Put masks on a model and steer them through training."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..errors import InvalidArgumentError, InvalidTypeError
from ..pattern import PatternLike
from ..solvers import Solver
from .layers import LayerFilter, SelectionReport, WeightChoice, select_weights
from .layouts import Allowed
from .parametrization import Estimator, MaskedWeight, TrainingRule
from .state import MaskedEntry, load_masks, masked_entries
from .step_hooks import StepHooks
from .tensor_masks import MaskRule

__all__ = ["MaskController", "RefreshRecord", "sparsify"]


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
        Entries that went from kept to pruned or back: the sparse architecture divergence from the mask before.
    size : int
        Entries in all.
    seconds : float
        Wall time of finding the mask, the copy to the CPU and back included.
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


class MaskController:
    """Steers the masks of a sparsified model; made by `sparsify`.

    All that a resumed run needs lies in the model's own state_dict. A controller for a deep copy of the model is made
    with ``MaskController(copy)``; a deep copy of the controller copies its model, too, and has no optimizer.

    Parameters
    ----------
    model : torch.nn.Module
        With masks on it.
    report : SelectionReport, optional
        Why `sparsify` took what it took. Default: what carries a mask and what does not.

    Attributes
    ----------
    model : torch.nn.Module
    report : SelectionReport
        Every parameter of the model, taken or not, and why.
    history : list of RefreshRecord
        The refreshes that this controller has seen, oldest first; clear it whenever it grows too long.

    Raises
    ------
    InvalidArgumentError
        If the model carries no mask.
    """

    def __init__(self, model: nn.Module, report: SelectionReport | None = None) -> None:
        self.model = model
        self.history: list[RefreshRecord] = []
        self._hooks: list[StepHooks] = []
        self._load_handle: RemovableHandle | None = None
        entries = self._entries()
        if not entries:
            raise InvalidArgumentError(
                f"`model` must carry masks, got a {type(model).__name__} without any. Call sparsify first."
            )
        self.report = report or _describe(model, entries)

    def _entries(self) -> list[MaskedEntry]:
        return list(masked_entries(self.model))

    def attach(self, optimizer: Optimizer) -> MaskController:
        """Count the steps of an optimizer, refresh the masks on time and add the decay before each step.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            Holding masked weights; those of another optimizer are not touched. Whether it was made before or after
            `sparsify` does not matter, but a run that is to be resumed must make it at the same place again: torch
            numbers the parameters of an optimizer, and masks change their order.

        Returns
        -------
        MaskController
            This one.

        Raises
        ------
        InvalidTypeError
            If `optimizer` is none.
        InvalidArgumentError
            If it holds no masked weight, or is attached already.
        """
        if not isinstance(optimizer, Optimizer):
            raise InvalidTypeError(f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
        if any(hooks.optimizer is optimizer for hooks in self._hooks):
            raise InvalidArgumentError(
                "`optimizer` must not be attached yet, got it twice. Its decay would count twice."
            )
        hooks = StepHooks(optimizer, [(entry.original, entry.masked) for entry in self._entries()], self._refresh)
        if not hooks.served():
            hooks.remove()
            raise InvalidArgumentError(
                "`optimizer` must hold a masked weight of this model, got none. Make it from model.parameters()."
            )
        self._hooks.append(hooks)
        return self

    def refresh(self) -> list[RefreshRecord]:
        """Find the masks anew from the present weights, now, except frozen ones.

        Returns
        -------
        list of RefreshRecord
            Also appended to `history`.

        Raises
        ------
        InvalidArgumentError
            If a weight is NaN or infinite; every mask is as it was.
        """
        return self._refresh([entry.masked for entry in self._entries() if not entry.masked.is_frozen])

    @torch.no_grad()
    def _refresh(self, due: Iterable[MaskedWeight]) -> list[RefreshRecord]:
        wanted = {id(masked) for masked in due}
        found = []
        for entry in self._entries():
            if id(entry.masked) in wanted:
                began = time.perf_counter()
                mask, duals = entry.masked.find(entry.original, entry.name)
                found.append((entry, mask, duals, time.perf_counter() - began))
        records = [
            RefreshRecord(
                step=entry.masked.steps,
                name=entry.name,
                flipped=entry.masked.replace(mask, duals),
                size=mask.numel(),
                seconds=seconds,
            )
            for entry, mask, duals, seconds in found
        ]
        self.history += records
        return records

    def masks(self) -> dict[str, Tensor]:
        """Copy the masks, by the name that the parameter had in the dense model.

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
        """Write the zeros into the weights and leave an ordinary model, with the parameters it had."""
        for hooks in self._hooks:
            hooks.remove()
        self._hooks.clear()
        if self._load_handle is not None:
            self._load_handle.remove()
        for entry in self._entries():
            parametrize.remove_parametrizations(entry.module, entry.attribute)

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskController:
        """Copy the model with its masks; the copy is attached to no optimizer."""
        twin = MaskController(copy.deepcopy(self.model, memo), copy.deepcopy(self.report, memo))
        twin.history = list(self.history)
        memo[id(self)] = twin
        return twin

    def __repr__(self) -> str:
        entries = self._entries()
        size = sum(entry.masked.mask.numel() for entry in entries)
        return f"MaskController({type(self.model).__name__}: {len(entries)} masks, {size} weights)"


def _describe(model: nn.Module, entries: list[MaskedEntry]) -> SelectionReport:
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
            reason = f"{entry.masked.mask_rule.pattern} mask"
            layout = entry.masked.layout
            choices.append(WeightChoice(entry.name, shape, True, reason, entry.module, entry.attribute, layout))
    return SelectionReport(choices)


def sparsify(
    model: nn.Module,
    pattern: PatternLike,
    *,
    transposable: bool = True,
    layers: LayerFilter = None,
    skip_ends: bool = False,
    allow: Collection[Allowed] = (),
    constraint: str = "exactly",
    solver: str | Solver = "auto",
    refresh_every: int = 40,
    estimator: Estimator = "sr-ste",
    decay: float = 2e-4,
) -> MaskController:
    """Put masks on the weights of a model, found from their present values.

    Each masked weight W becomes a parametrisation: the model computes with S * W, the optimizer trains W. Parameters
    keep their identity. Nothing is changed if an error is raised.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place. Linear layers, convolutions (the matrix at each kernel position) and the packed projections
        of MultiheadAttention are taken.
    pattern : Pattern, str or tuple of two int
        Such as "2:4": N entries kept of every M.
    transposable : bool, default True
        Hold the pattern in rows and columns (Hubara et al. 2021). False: only along the reduction axis, by magnitude
        (Zhou et al. 2021).
    layers : str, iterable of str or callable, optional
        Names or wildcards ("encoder.*") of parameters or of their modules, or a predicate of a parameter's name and
        its module. Default: every weight that can be taken; the controller's report lists them all.
    skip_ends : bool, default False
        Leave the first and the last weight dense, in the order in which the modules were registered.
    allow : collection of {"grouped", "depthwise", "transposed"}
        Kinds of convolutions that are otherwise left dense.
    constraint : {"exactly", "at_most"}, default "exactly"
    solver : str or Solver, default "auto"
        As in `transmask.transposable_mask`.
    refresh_every : int, default 40
        Optimizer steps between two refreshes of the masks.
    estimator : {"sr-ste", "ste", "fixed"}, default "sr-ste"
        "sr-ste": straight-through gradient, pruned weights decay; "ste": the same without decay; "fixed": the first
        masks stay, pruned weights get no gradient.
    decay : float, default 2e-4
        Added to the gradient of a pruned weight W as ``decay * W``, once an optimizer step.

    Returns
    -------
    MaskController
        Attach the optimizer to it: ``controller.attach(optimizer)``. Without one the masks are never refreshed.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError, UnsupportedPatternError
        If an argument cannot be used, a weight is NaN or infinite, or no layer can take the pattern.

    References
    ----------
    Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", section 4.
    Hubara et al. 2021, "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M Transposable
    Masks", section 4.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> controller = sparsify(model, "2:4")
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> controller.attach(optimizer)
    MaskController(Sequential: 2 masks, 192 weights)
    >>> model(torch.ones(1, 8)).sum().backward()
    >>> optimizer.step()
    >>> controller.remove()
    >>> float((model[0].weight == 0).float().mean())
    0.5
    """
    mask_rule = MaskRule.of(pattern, transposable, constraint, solver)
    training_rule = TrainingRule(estimator, refresh_every, decay)
    report = select_weights(
        model,
        mask_rule.pattern,
        transposable=mask_rule.transposable,
        layers=layers,
        skip_ends=skip_ends,
        allow=allow,
    )
    found = []
    for choice in report.taken:
        assert choice.layout is not None
        weight = getattr(choice.module, choice.attribute)
        mask, duals = mask_rule.find(weight, choice.layout, name=choice.name)
        found.append((choice, MaskedWeight(mask.to(weight.device), duals, choice.layout, mask_rule, training_rule)))
    for choice, masked in found:
        parametrize.register_parametrization(choice.module, choice.attribute, masked)
    controller = MaskController(model, report)
    controller._load_handle = model.register_load_state_dict_pre_hook(load_masks)  # type: ignore[no-untyped-call]
    return controller
