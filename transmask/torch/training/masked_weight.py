"""A weight with a mask: the parametrisation that the modules of a sparsified model carry.

The forward product uses S * W. What the gradient sees depends on the estimator:

    "sr-ste", "ste"   dL/dW := dL/d(S * W)        straight through: pruned weights learn too, and can come back
    "fixed"           dL/dW := S * dL/d(S * W)    the true gradient: pruned weights stay as they are
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..._arguments import as_integer, as_number
from ...blocks import block_grid
from ...errors import InvalidArgumentError, unknown_choice
from ..layouts import Layout
from ..mask_rule import MaskRule, StoredDuals
from .mask_state import MaskState

__all__ = ["Estimator", "MaskedWeight", "TrainingRule"]

Estimator: TypeAlias = Literal["sr-ste", "ste", "fixed"]


@dataclass(frozen=True, slots=True)
class TrainingRule:
    """How masks and pruned weights are treated in training.

    Attributes
    ----------
    estimator : {"sr-ste", "ste", "fixed"}
    refresh_every : int
        Optimizer steps between two refreshes of a mask; "fixed" never refreshes.
    decay : float
        "sr-ste" adds ``decay * W`` to the gradient of a pruned weight W.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If one of them cannot be used.
    """

    estimator: Estimator = "sr-ste"
    refresh_every: int = 40
    decay: float = 2e-4

    def __post_init__(self) -> None:
        if self.estimator not in get_args(Estimator):
            raise unknown_choice("estimator", self.estimator, get_args(Estimator))
        never = "estimator='fixed' never refreshes."
        every = as_integer(self.refresh_every, argument="refresh_every", least=1, remedy=never)
        object.__setattr__(self, "refresh_every", every)
        object.__setattr__(self, "decay", as_number(self.decay, argument="decay"))
        if not 0 <= self.decay < float("inf"):
            raise InvalidArgumentError(f"`decay` must be finite and at least 0, got {self.decay}.")


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
    ``_extra_state``
        1-D, the dual variables from which the next refresh starts; empty if the solver has no warm start. They are not
        a buffer, so they stay on the CPU in their own precision, and distributed training does not send them around.

    Parameters
    ----------
    mask : torch.Tensor of bool
    duals : pair of ndarray or None
    layout : Layout
    mask_rule : MaskRule
    training_rule : TrainingRule
    """

    pattern: Tensor

    def __init__(
        self,
        mask: Tensor,
        duals: StoredDuals | None,
        layout: Layout,
        mask_rule: MaskRule,
        training_rule: TrainingRule,
    ) -> None:
        super().__init__(mask, layout, training_rule.estimator == "fixed")
        self.mask_rule, self.training_rule, self.duals = mask_rule, training_rule, duals
        self.register_buffer("pattern", torch.tensor([mask_rule.pattern.n, mask_rule.pattern.m], device=mask.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return S * W, with the gradient that the estimator asks for."""
        if self.is_frozen:
            return weight.masked_fill(~self.mask, 0)
        # W - (1 - S) * W with the second term held constant is S * W to the last bit, and its gradient is that of W.
        return weight - weight.detach().masked_fill(self.mask, 0)

    def find(self, weight: Tensor, name: str) -> tuple[Tensor, StoredDuals | None]:
        """Find the mask for the current `weight`, without changing anything."""
        return self.mask_rule.find(weight, self.layout, name=name, start=self.duals)

    def replace(self, mask: Tensor, duals: StoredDuals | None) -> int:
        """Replace the mask in place, and return how many entries changed their state."""
        self.duals = duals
        return self.replace_mask(mask)

    def is_due(self) -> bool:
        """Tell whether the mask is due for a refresh."""
        return not self.is_frozen and self.steps % self.training_rule.refresh_every == 0

    def decay_into(self, parameter: nn.Parameter, scale: float | Tensor) -> None:
        """Add ``scale * decay * (1 - S) * W`` to the gradient of the weight, if the estimator asks for it."""
        rule = self.training_rule
        if rule.estimator != "sr-ste" or self.is_frozen or parameter.grad is None:
            return
        parameter.grad.add_(parameter.detach().masked_fill(self.mask, 0) * (scale * rule.decay))

    def get_extra_state(self) -> Tensor:
        """Return the duals as one 1-D tensor."""
        if self.duals is None:
            return torch.empty(0)
        return torch.from_numpy(np.concatenate([dual.ravel() for dual in self.duals]))

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the duals; an empty tensor means that there are none."""
        if state.numel() == 0:
            self.duals = None
            return
        values = state.detach().cpu().numpy()
        u_shape, v_shape = self._duals_shapes()
        split = math.prod(u_shape)
        self.duals = values[:split].reshape(u_shape).copy(), values[split:].reshape(v_shape).copy()

    def duals_size(self) -> int:
        """Return how many dual variables there are."""
        return sum(map(math.prod, self._duals_shapes()))

    def _duals_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        batch = self.layout.batch(self.mask.shape)
        rows, columns = self.layout.sides(self.mask.shape)
        block_rows, block_columns = block_grid((rows, columns), self.mask_rule.pattern.m)
        return (*batch, rows, block_columns), (*batch, block_rows, columns)

    def describe(self) -> str:
        """Say in a few words what the weight carries."""
        return f"{self.mask_rule.pattern} mask"

    def extra_repr(self) -> str:
        """Say what the mask is."""
        kind = "transposable" if self.mask_rule.transposable else "plain"
        return f"{self.mask_rule.pattern} {kind}, {self.training_rule.estimator}, step {self.steps}"
