"""A weight with a mask: the parametrisation that the modules of a sparsified model carry.

The forward product uses S * W. What the gradient sees depends on the estimator:

    "sr-ste", "ste"   dL/dW := dL/d(S * W)        straight through: pruned weights learn too, and can come back
    "fixed"           dL/dW := S * dL/d(S * W)    the true gradient: pruned weights stay as they are
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from ..._arguments import as_integer, as_number
from ...errors import InvalidArgumentError, unknown_choice
from ..layouts import Layout
from ..mask_rule import MaskRule
from .mask_state import MaskState
from .sharding import part_of

__all__ = ["Estimator", "MaskedWeight", "TrainingRule"]

Estimator: TypeAlias = Literal["sr-ste", "ste", "fixed"]


@dataclass(frozen=True, slots=True)
class TrainingRule:
    """How masks and pruned weights are treated in training.

    Attributes
    ----------
    estimator : {"sr-ste", "ste", "fixed"}
    refresh_every : int or callable
        Optimizer steps between two refreshes of a mask, or a function that tells of the number of steps done whether a
        refresh is due; "fixed" never refreshes.
    decay : float or callable
        "sr-ste" adds ``decay * W`` to the gradient of a pruned weight W; or a function of the number of steps done.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If one of them cannot be used.
    """

    estimator: Estimator = "sr-ste"
    refresh_every: int | Callable[[int], bool] = 40
    decay: float | Callable[[int], float] = 2e-4

    def __post_init__(self) -> None:
        if self.estimator not in get_args(Estimator):
            raise unknown_choice("estimator", self.estimator, get_args(Estimator))
        if not callable(self.refresh_every):
            never = "estimator='fixed' never refreshes."
            every = as_integer(self.refresh_every, argument="refresh_every", least=1, remedy=never)
            object.__setattr__(self, "refresh_every", every)
        if not callable(self.decay):
            object.__setattr__(self, "decay", _as_decay(self.decay, ""))

    def refreshes_after(self, steps: int) -> bool:
        """Tell whether a mask is due for a refresh after so many optimizer steps."""
        if callable(self.refresh_every):
            return bool(self.refresh_every(steps))
        return steps % self.refresh_every == 0

    def decay_after(self, steps: int) -> float:
        """Return the decay of the step that follows so many others.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If a function returns what is no decay.
        """
        return _as_decay(self.decay(steps), f" after {steps} steps") if callable(self.decay) else self.decay


def _as_decay(value: object, when: str) -> float:
    """Return a decay as float."""
    decay = as_number(value, argument="decay")
    if not 0 <= decay < float("inf"):
        raise InvalidArgumentError(f"`decay` must be finite and at least 0, got {decay}{when}.")
    return decay


class _StraightThrough(torch.autograd.Function):
    """S * W with the gradient of W.

    The product, not torch.where: on the CPU, that branches on every entry and takes three times as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep nothing: the gradient needs nothing."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Fixed(_StraightThrough):
    """S * W with its true gradient; the mask is kept as it is, so that a cached S * W has several backward passes."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep the mask."""
        ctx.mask = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.mask, None


class MaskedWeight(MaskState):
    """The parametrisation ``W -> S * W`` of one parameter, with all that a resumed run needs.

    The state_dict holds, next to the parameter ``original``:

    ``mask``
        bool, the shape of the parameter, True = kept.
    ``step``
        int64, optimizer steps since the first mask.
    ``frozen``
        bool, whether the mask is fixed for good.
    ``pattern``
        int64, (N, M).

    Parameters
    ----------
    mask : torch.Tensor of bool
    layout : Layout
    mask_rule : MaskRule
    training_rule : TrainingRule
    """

    pattern: Tensor

    def __init__(
        self,
        mask: Tensor,
        layout: Layout,
        mask_rule: MaskRule,
        training_rule: TrainingRule,
    ) -> None:
        super().__init__(mask, layout, training_rule.estimator == "fixed")
        self.mask_rule, self.training_rule = mask_rule, training_rule
        self.register_buffer("pattern", torch.tensor([mask_rule.pattern.n, mask_rule.pattern.m], device=mask.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return S * W, with the gradient that the estimator asks for."""
        mask = part_of(self.mask, weight)
        product = _Fixed if self.is_frozen else _StraightThrough
        return cast(Tensor, product.apply(weight, mask))  # type: ignore[no-untyped-call]

    def change_rule(self, mask_rule: MaskRule) -> None:
        """Follow another rule from now on."""
        self.mask_rule = mask_rule
        self.pattern.copy_(torch.tensor([mask_rule.pattern.n, mask_rule.pattern.m]))

    def is_due(self) -> bool:
        """Tell whether the mask is due for a refresh."""
        return not self.is_frozen and self.training_rule.refreshes_after(self.steps)

    def decay_into(self, parameter: nn.Parameter, scale: float | Tensor) -> None:
        """Add ``scale * decay * (1 - S) * W`` to the gradient of the weight, if the estimator asks for it."""
        rule = self.training_rule
        if rule.estimator != "sr-ste" or self.is_frozen or parameter.grad is None:
            return
        pruned = parameter.detach() * ~part_of(self.mask, parameter)
        parameter.grad.add_(pruned.mul_(scale * rule.decay_after(self.steps)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.pop(f"{prefix}_extra_state", None)  # dual variables, which 0.1.0 stored
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def describe(self) -> str:
        """Say in a few words what the weight carries."""
        return f"{self.mask_rule.pattern} mask"

    def extra_repr(self) -> str:
        """Say what the mask is."""
        kind = "transposable" if self.mask_rule.transposable else "plain"
        return f"{self.mask_rule.pattern} {kind}, {self.training_rule.estimator}, step {self.steps}"
