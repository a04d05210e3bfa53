"""How a parameter of a layer is seen as a stack of matrices, and why some cannot be."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn
from torch.nn.utils import parametrize

from ..blocks import Array
from ..errors import InvalidArgumentError

__all__ = ["ALLOWED", "PRUNED_LIVE", "Allowed", "Layout", "declared_layout", "holds_inputs_first", "layout_of"]

Allowed: TypeAlias = Literal["grouped", "depthwise", "transposed"]
"""Kinds of convolutions that are taken only on request."""

PRUNED_LIVE = "pruned by torch.nn.utils.prune; make it permanent with prune.remove first"
"""Why a weight that still carries its own mask is skipped."""

ALLOWED: tuple[Allowed, ...] = ("grouped", "depthwise", "transposed")

_PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a parameter is seen as a stack of matrices.

    Attributes
    ----------
    parts : int
        Number of equal parts of axis 0 that are separate matrices: the groups of a convolution, the three projections
        of an attention layer.
    reduction : {0, 1}
        The axis of the parameter that the forward product sums over: 0 for transposed convolutions and for the Conv1D
        of transformers, else 1. Of a stack, the axis of its matrices.
    stacked : bool
        Whether the parameter is a stack of matrices, (E, R, C), as experts are; `parts` is 1 then.
    declared : bool
        Whether the caller said so, of a module that is not known.
    """

    parts: int = 1
    reduction: Literal[0, 1] = 1
    stacked: bool = False
    declared: bool = False

    def matrices(self, array: Array) -> Array:
        """View an array of the parameter's shape as (parts, R, C, ...) or (E, R, C): matrices on axes (1, 2)."""
        if self.stacked:
            return array
        return array.reshape(self.parts, array.shape[0] // self.parts, *array.shape[1:], copy=False)

    def sides(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return R and C of each matrix of a parameter of this shape."""
        return (shape[1], shape[2]) if self.stacked else (shape[0] // self.parts, shape[1])

    def batch(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of what is left of `matrices` without the axes (1, 2)."""
        return (shape[0],) if self.stacked else (self.parts, *shape[2:])


def declared_layout(axes: tuple[int, int], shape: Sequence[int], name: str) -> Layout:
    """Return the layout of a parameter of which the caller says what its axes are.

    Parameters
    ----------
    axes : tuple of two int
        That of the outputs and that of the inputs: (0, 1), (1, 0), or in a stack (1, 2), (2, 1).
    shape : sequence of int
    name : str
        The parameter.

    Raises
    ------
    InvalidArgumentError
        If the parameter has no such matrices.
    """
    stacked = set(axes) == {1, 2} and len(shape) == 3
    if not stacked and not (set(axes) == {0, 1} and len(shape) >= 2):
        raise InvalidArgumentError(
            f"`layouts` must give the axes of outputs and inputs, (0, 1) or (1, 0), of a stack of matrices (1, 2) or "
            f"(2, 1), got {axes} for {name!r} of shape {tuple(shape)}."
        )
    return Layout(reduction=1 if axes[0] < axes[1] else 0, stacked=stacked, declared=True)


def layout_of(
    module: nn.Module, attribute: str, *, allow: Collection[Allowed] = ALLOWED, declared: Layout | None = None
) -> Layout | str:
    """Return how a parameter is seen as matrices, or why it cannot be.

    Parameters
    ----------
    module : torch.nn.Module
        The module that owns it.
    attribute : str
        Its name there.
    allow : collection of {"grouped", "depthwise", "transposed"}
        Kinds of convolutions to take.
    declared : Layout, optional
        What the caller says of it, if no rule here is for its module.

    Returns
    -------
    Layout or str

    Examples
    --------
    >>> layout_of(nn.MultiheadAttention(8, 2), "in_proj_weight")
    Layout(parts=3, reduction=1, stacked=False, declared=False)
    >>> layout_of(nn.Embedding(8, 2), "weight")
    'a look-up table: its rows are picked, not multiplied'
    """
    parameter = getattr(module, attribute)
    if attribute.startswith("original") and isinstance(module, parametrize.ParametrizationList):
        return "already parametrised; remove that first"
    if attribute.endswith("_orig") and hasattr(module, attribute.removesuffix("_orig") + "_mask"):
        return PRUNED_LIVE
    if parameter.ndim < 2:
        return f"{parameter.ndim} axis: not a matrix" if parameter.ndim else "a number: not a matrix"
    if not parameter.is_floating_point():
        return f"dtype {parameter.dtype}: not trained"
    if isinstance(module, nn.MultiheadAttention):
        if attribute == "in_proj_weight":
            return Layout(parts=3)
        return Layout() if attribute in _PROJECTIONS else "a learned bias of the attention, not a weight"
    if isinstance(module, nn.Linear) and attribute == "weight":
        return Layout()
    if holds_inputs_first(module) and attribute == "weight":
        return Layout(reduction=0)
    if isinstance(module, _CONVOLUTIONS + _TRANSPOSED) and attribute == "weight":
        return _convolution_layout(module, allow)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "a look-up table: its rows are picked, not multiplied"
    if isinstance(module, nn.RNNBase):
        return "recurrent weights: torch reads them without the mask"
    if declared is not None:
        return declared
    return f"{attribute} of {type(module).__name__}: not known to be a matrix product"


def holds_inputs_first(module: nn.Module) -> bool:
    """Tell whether a module is the Conv1D of transformers: a linear layer, as in GPT-2, whose weight is (in, out)."""
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__]
    return "transformers.pytorch_utils.Conv1D" in names


def _convolution_layout(
    module: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d,
    allow: Collection[Allowed],
) -> Layout | str:
    """Apply the rules for grouped, depthwise and transposed convolutions."""
    transposed = isinstance(module, _TRANSPOSED)
    needed: list[Allowed] = ["transposed"] if transposed else []
    if module.groups > 1:
        needed.append("depthwise" if module.groups == module.in_channels else "grouped")
    for kind in needed:
        if kind not in allow:
            return f"a {kind} convolution; taken only with allow=({kind!r},)"
    return Layout(parts=module.groups, reduction=0 if transposed else 1)
