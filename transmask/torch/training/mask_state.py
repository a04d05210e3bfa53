"""What the two parametrisations share: the mask of a weight, the steps it has seen, whether it is fixed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ..layouts import Layout

__all__ = ["MaskState"]


class MaskState(nn.Module, ABC):
    """The mask of one parameter, with what a resumed run needs of it.

    Parameters
    ----------
    mask : torch.Tensor of bool
        The shape of the parameter, True = kept.
    layout : Layout
    frozen : bool
        Whether the mask is fixed for good.
    """

    mask: Tensor
    step: Tensor
    frozen: Tensor

    def __init__(self, mask: Tensor, layout: Layout, frozen: bool) -> None:
        super().__init__()
        self.layout = layout
        device = mask.device
        self.register_buffer("mask", mask)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("frozen", torch.tensor(frozen, device=device))
        self.mirror()

    def mirror(self) -> None:
        """Mirror what Python branches on as plain numbers, so that no step waits for the device."""
        self.steps = int(self.step)
        self.is_frozen = bool(self.frozen)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Accept ``module.weight = value``: the dense weight becomes `value`."""
        return weight

    def count_step(self) -> bool:
        """Count an optimizer step and tell whether the controller has to look at the mask."""
        self.step += 1
        self.steps += 1
        return self.is_due()

    @abstractmethod
    def is_due(self) -> bool:
        """Tell whether the controller has to look at the mask after this step."""

    @abstractmethod
    def decay_into(self, parameter: nn.Parameter, scale: float | Tensor) -> None:
        """Add what the method adds to the gradient of the trained `parameter`, times `scale`."""

    @abstractmethod
    def describe(self) -> str:
        """Say in a few words what the weight carries."""

    def replace_mask(self, mask: Tensor) -> int:
        """Replace the mask in place, and return how many entries changed their state."""
        new = mask.to(self.mask.device)
        flipped = int(torch.count_nonzero(new ^ self.mask))
        self.mask.copy_(new)
        return flipped

    def freeze(self) -> None:
        """Fix the mask for good."""
        self.frozen.fill_(True)
        self.is_frozen = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.mirror()
