"""The step function of Dynamic Sparse Training, with the derivative that its authors give it.

    S(x) = 1 if x >= 0, else 0           dS/dx := H(x) = 2 - 4 |x|   if       |x| <= 0.4
                                                         0.4         if 0.4 < |x| <= 1
                                                         0           if   1 < |x|

The true derivative is 0 almost everywhere, and nothing would be learnt. H has a long tail, so that a weight far from
its threshold still gets a gradient.

References
----------
Liu, Xu, Shi, Cheung, So 2020, "Dynamic Sparse Training: Find Efficient Sparse Network From Scratch With Trainable
Masked Layers", section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["step", "step_derivative"]


def step(distance: Tensor) -> Tensor:
    """Return S(x) entry by entry, with H(x) as its derivative.

    Parameters
    ----------
    distance : torch.Tensor
        How far each magnitude lies above its threshold.

    Returns
    -------
    torch.Tensor
        0 or 1, in the shape and dtype of `distance`.

    Examples
    --------
    >>> x = torch.tensor([-2.0, -0.5, 0.0, 0.1], requires_grad=True)
    >>> y = step(x)
    >>> y.sum().backward()
    >>> y.tolist(), [round(value, 2) for value in x.grad.tolist()]
    ([0.0, 0.0, 1.0, 1.0], [0.0, 0.4, 2.0, 1.6])
    """
    result: Tensor = _Step.apply(distance)  # type: ignore[no-untyped-call]
    return result


def step_derivative(distance: Tensor) -> Tensor:
    """Return H(x) entry by entry."""
    size = distance.abs()
    tail = 0.4 * (size <= 1).to(size.dtype)
    return torch.where(size <= 0.4, 2 - 4 * size, tail)


class _Step(torch.autograd.Function):
    """The step forward, H backward."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (distance,) = ctx.saved_tensors
        return gradient * step_derivative(distance)
