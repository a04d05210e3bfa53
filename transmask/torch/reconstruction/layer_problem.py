"""The problem that reconstruction solves, layer by layer, and the contract of the methods that solve it.

With G the Gram matrix of the layer's inputs (see `gram`), S the mask and W the dense weights,

    minimise over W'   || W X - (S * W') X ||^2 = trace( (W - S * W') G (W - S * W').T )

The rows of W are independent of each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Fit", "LayerProblem", "ReconstructionMethod"]


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
    """

    weight: Tensor
    mask: Tensor
    gram: Tensor
    has_bias: bool

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
    """

    weight: Tensor
    note: str = ""


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
