"""The problem that reconstruction solves, layer by layer, and the contract of the methods that solve it.

With G the Gram matrix of the layer's inputs (see `gram`), S the mask and W the dense weights,

    minimise over W'   || W X - (S * W') X ||^2 = trace( (W - S * W') G (W - S * W').T )

The rows of W are independent of each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Fit", "LayerProblem", "ReconstructionMethod", "input_gram", "penalties"]


@dataclass(frozen=True, slots=True, eq=False)
class LayerProblem:
    """One layer. The last of D is the bias, always kept, if `has_bias`.

    Attributes
    ----------
    weight : torch.Tensor of float64, shape (groups, K, D)
        Dense.
    mask : torch.Tensor of bool, shape (groups, K, D)
    gram : torch.Tensor of float64, shape (groups, D, D)
    has_bias : bool
    find_mask : callable, optional
        The best mask under the layer's pattern for scores of shape (groups, K, D - has_bias), as `mask` without the
        bias: for methods that choose masks themselves.
    """

    weight: Tensor
    mask: Tensor
    gram: Tensor
    has_bias: bool
    find_mask: Callable[[Tensor], Tensor] | None = None

    def masked(self) -> Tensor:
        """Return S * W."""
        return self.weight.masked_fill(~self.mask, 0)

    def error(self, weight: Tensor) -> float:
        """Return the squared error of (groups, K, D) weights, relative to || W X ||^2; 0 if that is 0."""
        difference = self.weight - weight
        scale = float((self.weight @ self.gram * self.weight).sum())
        return max(0.0, float((difference @ self.gram * difference).sum())) / scale if scale > 0 else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """What a method found.

    Attributes
    ----------
    weight : torch.Tensor of float64, shape (groups, K, D)
        Zero where the mask is.
    note : str
        Anything the caller should know, such as a singular Gram matrix; otherwise empty.
    mask : torch.Tensor of bool, shape (groups, K, D), optional
        The mask, if the method chose one in place of the problem's.
    """

    weight: Tensor
    note: str = ""
    mask: Tensor | None = None


class ReconstructionMethod(ABC):
    """Base class of the methods, which take their options in the constructor."""

    @abstractmethod
    def fit(self, problem: LayerProblem, *, name: str) -> Fit:
        """Solve one layer.

        Parameters
        ----------
        problem : LayerProblem
            Not modified.
        name : str
            What warnings call the layer.

        Returns
        -------
        Fit
        """


def penalties(gram: Tensor, inputs: int, ridge: float) -> Tensor:
    """Return what a ridge adds to the diagonals of Gram matrices.

    Parameters
    ----------
    gram : torch.Tensor of float64, shape (groups, D, D)
    inputs : int
        D without the bias.
    ridge : float
        Relative to the mean of the diagonal over the inputs, or to 1 if they are all zero.

    Returns
    -------
    torch.Tensor of float64, shape (groups, D)
        0 for the bias, unless nothing else holds it because there was no sample.
    """
    diagonal = gram.diagonal(dim1=1, dim2=2)
    mean = diagonal[:, :inputs].mean(dim=1, keepdim=True)
    added = (ridge * torch.where(mean > 0, mean, 1.0)).repeat(1, diagonal.shape[1])
    added[:, inputs:] = (diagonal[:, inputs:] == 0).to(added.dtype)
    return added


def input_gram(gram: Tensor, inputs: int, ridge: float) -> Tensor:
    """Return Gram matrices of the inputs alone: the ridge added, the bias eliminated.

    A bias refitted after every change of the weights leaves G_xx - g g.T / samples of the Gram matrix, with g the sums
    of the inputs over the samples.

    Parameters
    ----------
    gram, inputs, ridge
        As in `penalties`.

    Returns
    -------
    torch.Tensor of float64, shape (groups, inputs, inputs)
        Positive definite if `ridge` is positive.
    """
    alone = gram[:, :inputs, :inputs]
    if inputs < gram.shape[1]:
        sums, samples = gram[:, :inputs, inputs:], gram[:, inputs:, inputs:]
        alone = alone - sums @ sums.mT / torch.where(samples > 0, samples, 1.0)
        alone.diagonal(dim1=1, dim2=2).clamp_(min=0)  # inputs that never change leave rounding
    return alone + torch.diag_embed(penalties(gram, inputs, ridge)[:, :inputs])
