"""A weight under trainable thresholds: the parametrisation of Dynamic Sparse Training.

The forward product uses W * M with M = S(|W| - t), S the step of `threshold_step`. With G the gradient of W * M:

    dL/dW = G * M + G * W * H(|W| - t) * sign(W)        what the product does, and what the mask does
    dL/dt = - sum of G * W * H(|W| - t)                 over the entries that share the threshold

and the regulariser alpha * sum exp(-t) adds -alpha * exp(-t) to dL/dt.

References
----------
Liu et al. 2020, "Dynamic Sparse Training: Find Efficient Sparse Network From Scratch With Trainable Masked Layers",
section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from ..._arguments import as_integer, as_number
from ...errors import InvalidArgumentError, unknown_choice
from ..layouts import Layout
from .mask_state import MaskState
from .threshold_step import step

__all__ = ["Granularity", "ThresholdRule", "ThresholdedWeight"]

Granularity: TypeAlias = Literal["layer", "row", "entry"]

_GONE = 100
"""A layer that keeps one entry in so many, or fewer, has pruned itself away: its thresholds start from 0 again."""


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """How thresholds are shared, trained and recorded.

    Attributes
    ----------
    alpha : float
        Weight of the regulariser, the sum of exp(-t) over the thresholds t.
    granularity : {"layer", "row", "entry"}
        One threshold for the whole parameter, for each output unit, or for each entry.
    record_every : int
        Optimizer steps between two records of the density.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If one of them cannot be used.
    """

    alpha: float
    granularity: Granularity = "row"
    record_every: int = 40

    def __post_init__(self) -> None:
        if self.granularity not in get_args(Granularity):
            raise unknown_choice("granularity", self.granularity, get_args(Granularity))
        object.__setattr__(self, "record_every", as_integer(self.record_every, argument="record_every", least=1))
        object.__setattr__(self, "alpha", as_number(self.alpha, argument="alpha"))
        if not 0 <= self.alpha < float("inf"):
            raise InvalidArgumentError(f"`alpha` must be finite and at least 0, got {self.alpha}.")

    def threshold_shape(self, shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
        """Return the shape of the thresholds of a parameter: (), (output units,) or the parameter's own."""
        if self.granularity == "layer":
            return ()
        if self.granularity == "entry":
            return tuple(shape)
        return (layout.parts * layout.sides(shape)[1 - layout.reduction],)


class ThresholdedWeight(MaskState):
    """The parametrisation ``W -> W * S(|W| - t)`` of one parameter, with all that a resumed run needs.

    The state_dict holds, next to the parameter ``original``:

    ``threshold``
        The trained thresholds t, in the dtype of the weight.
    ``mask``
        bool, the mask at the last record, from which the next one counts flips; the mask itself once it is frozen.
    ``step``, ``frozen``
        As for `sparsify`.
    ``resets``
        int64, how often the thresholds were set back to 0.

    Parameters
    ----------
    weight : torch.Tensor
        Gives shape, dtype and device. Thresholds start from 0, where every entry is kept.
    layout : Layout
    rule : ThresholdRule
    """

    resets: Tensor

    def __init__(self, weight: Tensor, layout: Layout, rule: ThresholdRule) -> None:
        super().__init__(torch.ones_like(weight, dtype=torch.bool, requires_grad=False), layout, frozen=False)
        self.rule = rule
        self.threshold = nn.Parameter(weight.new_zeros(rule.threshold_shape(weight.shape, layout)))
        self.register_buffer("resets", torch.zeros((), dtype=torch.int64, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return W * S(|W| - t); the mask is constant once it is frozen."""
        if self.is_frozen:
            return weight.masked_fill(~self.mask, 0)
        return weight * step(weight.abs() - self._spread(self.threshold, weight.shape))

    def _spread(self, threshold: Tensor, shape: Sequence[int]) -> Tensor:
        """View the thresholds so that they broadcast against a parameter of this shape."""
        if self.rule.granularity != "row":
            return threshold
        trailing = (1,) * (len(shape) - 2)
        if self.layout.reduction == 1:
            return threshold.view(-1, 1, *trailing)
        rows, columns = self.layout.sides(shape)
        parts = threshold.view(self.layout.parts, 1, columns).expand(-1, rows, -1)
        return parts.reshape(-1, columns, *trailing)

    @torch.no_grad()
    def current(self, weight: Tensor) -> Tensor:
        """Return the mask of `weight` under the thresholds as they are, or the frozen one; bool."""
        if self.is_frozen:
            return self.mask.clone()
        return weight.abs() >= self._spread(self.threshold, weight.shape)

    @torch.no_grad()
    def revive(self, weight: Tensor) -> None:
        """Set the thresholds back to 0 if the layer has pruned itself away; does not wait for the device."""
        if self.is_frozen:
            return
        gone = torch.count_nonzero(self.current(weight)) <= weight.numel() // _GONE
        self.threshold.masked_fill_(gone, 0)
        self.resets += gone

    def is_due(self) -> bool:
        """Tell that the controller has to look: at every step, for a layer may prune itself away at any."""
        return not self.is_frozen

    @property
    def is_recorded(self) -> bool:
        """Whether the density is recorded after this step."""
        return self.steps % self.rule.record_every == 0

    def decay_into(self, parameter: nn.Parameter, scale: float | Tensor) -> None:
        """Add the gradient of the regulariser, ``-scale * alpha * exp(-t)``, to that of the thresholds."""
        if self.is_frozen or parameter.grad is None:
            return
        parameter.grad.sub_(torch.exp(-parameter.detach()) * (scale * self.rule.alpha))

    def describe(self) -> str:
        """Say in a few words what the weight carries."""
        count = self.threshold.numel()
        return f"{count} threshold{'s' if count > 1 else ''}"

    def extra_repr(self) -> str:
        """Say what the thresholds are."""
        return f"threshold per {self.rule.granularity}, alpha {self.rule.alpha}, step {self.steps}"
