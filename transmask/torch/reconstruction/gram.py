"""Gram matrices of the inputs of layers, accumulated while a model runs; the inputs themselves are not kept.

A linear layer or a convolution computes, for each of its groups, W X with X of shape (D, samples): D is the input
channels of a group times the kernel positions, and an input of ones for the bias. The squared error of W'

    || W X - W' X ||^2 = trace( (W - W') G (W - W').T )

depends on X only through G = X X.T, of shape (D, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..layouts import holds_inputs_first
from ..selection import WeightChoice, refuse_other_than_module, untrainable
from .attention import Projection, can_be_observed
from .calibration import Calibration
from .operands import Operand

__all__ = ["Gram", "SupportedLayer", "collect_gram", "layer_input", "layer_rows", "sees_as", "unobservable", "uses_of"]

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

SupportedLayer = nn.Linear | Convolution | Projection | Operand
"""What can be observed and refitted; also the Conv1D of transformers, which has the attributes of no class of torch."""

_CHUNK_ENTRIES = 1 << 22  # 32 MB of float64 at a time


def unobservable(model: nn.Module) -> Callable[[WeightChoice], str]:
    """Return a function that tells why no hook sees the inputs of a weight of `model`, or "" if one does."""
    refuse_other_than_module(model, "model")
    hidden = [
        module
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) and not can_be_observed(module)
    ]
    uses = uses_of(model)
    closed = {id(module) for attention in hidden for module in (attention, attention.out_proj)}

    def why(choice: WeightChoice) -> str:
        if id(choice.module) in closed:
            return "inside an attention with a forward of its own, where its inputs cannot be observed"
        known = isinstance(choice.module, SupportedLayer | nn.MultiheadAttention) or holds_inputs_first(choice.module)
        if not known and not (choice.layout is not None and choice.layout.declared):
            return "neither a linear layer nor a convolution"
        first, *others = uses[id(getattr(choice.module, choice.attribute))]
        if not all(_is_used_alike(first, other) for other in others):
            return "shared with a layer of another kind or with another bias"
        return untrainable(choice)

    return why


def uses_of(model: nn.Module) -> dict[int, list[nn.Module]]:
    """Return the modules that hold each parameter, by its id."""
    uses: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses.setdefault(id(parameter), []).append(module)
    return uses


def _is_used_alike(layer: nn.Module, other: nn.Module) -> bool:
    """Tell whether two layers that share a weight are one layer at two places."""
    if type(layer) is not type(other) or not (isinstance(layer, nn.Linear | Convolution) or holds_inputs_first(layer)):
        return False
    return layer.bias is other.bias and sees_as(cast(SupportedLayer, layer), cast(SupportedLayer, other))


class Gram:
    """The Gram matrix of the inputs of a layer, as a sum over its calls.

    Attributes
    ----------
    matrix : torch.Tensor of float64, shape (groups, D, D), or None
        On the device of the inputs; None before the first call. The last of D is the input of ones, if the layer has a
        bias. Of an attention layer whose queries, keys and values are one tensor, (1, D, D).
    rows : int
        How many rows have been added, those of weight 0 left out.
    seconds : float
        What that took.
    """

    def __init__(self, layer: SupportedLayer) -> None:
        self._layer = layer
        self.matrix: Tensor | None = None
        self.rows = 0
        self.seconds = 0.0

    @torch.no_grad()
    def add(self, value: Tensor, row_weights: Tensor | None = None) -> None:
        """Add the inputs of one call.

        Parameters
        ----------
        value : torch.Tensor
            What the layer is called with.
        row_weights : torch.Tensor, optional
            How much each row counts. Used by a linear layer if its shape is that of `value` without the last axis, or
            if `value` is a matrix of as many rows.
        """
        begin = _clock(value)
        weights = _weights_of(self._layer, value, row_weights)
        if weights is not None:
            value = value.reshape(-1, value.shape[-1])[weights > 0][None]
            roots = weights[weights > 0].to(torch.float64).sqrt()[:, None]
        start = 0
        for rows in layer_rows(self._layer, value):
            values = rows.to(torch.float64)
            if weights is not None:
                values = values * roots[start : start + values.shape[1]]
            start += values.shape[1]
            product = values.mT @ values
            self.matrix = product if self.matrix is None else _added(self.matrix, product)
        self.rows += start
        self.seconds += _clock(value) - begin


def _added(matrix: Tensor, product: Tensor) -> Tensor:
    """Add in place, unless a call of an attention layer had one tensor for all of its inputs, and another has three."""
    return matrix.add_(product) if len(matrix) >= len(product) else matrix + product


def _clock(value: Tensor) -> float:
    """Return the time in seconds at which everything that was asked of the device of a tensor is done."""
    if value.device.type != "cpu":
        torch.accelerator.synchronize(value.device)
    return perf_counter()


def _weights_of(layer: SupportedLayer, value: Tensor, row_weights: Tensor | None) -> Tensor | None:
    """Return the weight of each row of a linear layer, (rows,), on its device; None if each counts once."""
    if row_weights is None or isinstance(layer, Convolution):
        return None
    rows = value.shape[:-1]
    if isinstance(layer, Projection):
        if len(value) > 1:
            return None
        rows = rows[1:]
    if rows != row_weights.shape and (len(rows) != 1 or rows[0] != row_weights.numel()):
        return None
    weights = row_weights.reshape(-1).to(value.device)
    return None if (weights == 1).all() else weights


def sees_as(layer: SupportedLayer, other: SupportedLayer) -> bool:
    """Tell whether two layers make the same rows of the same input."""
    if (layer.bias is None) != (other.bias is None):
        return False
    if not isinstance(layer, Convolution) or not isinstance(other, Convolution):
        return not isinstance(layer, Convolution) and not isinstance(other, Convolution)
    geometry = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return all(getattr(layer, name) == getattr(other, name) for name in geometry)


def layer_input(layer: SupportedLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the tensor that a layer is called with, or None if the layer will complain about it."""
    if isinstance(layer, Projection | Operand):
        return args[0]  # type: ignore[no-any-return]
    value = args[0] if args else kwargs.get("x" if holds_inputs_first(layer) else "input")
    if not isinstance(value, Tensor) or value.ndim == 0:
        return None
    if not isinstance(layer, Convolution):
        if value.is_nested:  # as nn.TransformerEncoder packs sequences of which padding is left out
            value = torch.cat([part.reshape(-1, part.shape[-1]) for part in value.unbind()])
        inputs = layer.weight.shape[0 if holds_inputs_first(layer) else 1]
        return value if value.shape[-1] == inputs else None
    axes = len(layer.kernel_size)
    fits = value.ndim in (axes + 1, axes + 2) and value.shape[-axes - 1] == layer.in_channels
    return value if fits else None


def collect_gram(
    model: nn.Module, layers: Sequence[SupportedLayer], calibration: Calibration, *, watched: Collection[nn.Module]
) -> tuple[Gram, set[nn.Module]]:
    """Run the model on every batch and accumulate the Gram matrix of all inputs of layers that share their weight.

    Parameters
    ----------
    model : torch.nn.Module
    layers : sequence of torch.nn.Module
        Layers of the model, alike but for their places.
    calibration : Calibration
    watched : collection of torch.nn.Module
        Modules whose calls are counted.

    Returns
    -------
    Gram
    set of torch.nn.Module
        Those of `watched` that are called more than once on some batch.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        As `Calibration.run`.
    """
    gram = Gram(layers[0])
    called: set[nn.Module] = set()
    repeated: set[nn.Module] = set()
    row_weights: Tensor | None = None

    def start(weights: Tensor | None) -> None:
        nonlocal row_weights
        row_weights = weights
        called.clear()

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = layer_input(layers[0], args, kwargs)
        if value is not None:
            gram.add(value, row_weights)

    def count(module: nn.Module, args: object) -> None:
        (repeated if module in called else called).add(module)

    with ExitStack() as stack:
        handles = [layer.register_forward_pre_hook(add, with_kwargs=True) for layer in layers]
        handles += [module.register_forward_pre_hook(count) for module in watched]
        for handle in handles:
            stack.callback(handle.remove)
        calibration.run(model, before=start)
    return gram, repeated


def layer_rows(layer: SupportedLayer, value: Tensor) -> Iterator[Tensor]:
    """Yield the inputs of a layer as rows that its weights are multiplied with, a chunk at a time.

    Parameters
    ----------
    layer : torch.nn.Linear, convolution or Projection
    value : torch.Tensor
        What the layer is called with.

    Yields
    ------
    torch.Tensor, shape (groups, samples, D)
        In the dtype of `value`; a last column of ones if the layer has a bias.
    """
    if not value.numel():
        return
    if not isinstance(layer, Convolution):
        parts = len(value) if isinstance(layer, Projection) else 1
        flat = value.reshape(parts, -1, value.shape[-1])
        chunks = torch.split(flat, max(1, _CHUNK_ENTRIES // (parts * flat.shape[2])), dim=1)
        yield from (chunk if isinstance(layer, Projection) else _with_ones(layer, chunk) for chunk in chunks)
        return
    batch = value if value.ndim == len(layer.kernel_size) + 2 else value.unsqueeze(0)
    entries = max(1, batch[0].numel() * math.prod(layer.kernel_size) // math.prod(layer.stride))
    for images in torch.split(batch, max(1, _CHUNK_ENTRIES // entries)):
        yield _with_ones(layer, _patches(layer, images))


def _with_ones(layer: SupportedLayer, rows: Tensor) -> Tensor:
    """Append a column of ones for the bias, if there is one."""
    return rows if layer.bias is None else pad(rows, (0, 1), value=1.0)


def _patches(layer: Convolution, images: Tensor) -> Tensor:
    """Unfold (B, C, ...) images into (groups, B * positions, C / groups * kernel positions) patches."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    patches = pad(images, _padding(layer), mode=mode)
    dimensions = len(layer.kernel_size)
    for axis in range(dimensions):
        kernel, dilation = layer.kernel_size[axis], layer.dilation[axis]
        span = (kernel - 1) * dilation + 1
        patches = patches.unfold(2 + axis, span, layer.stride[axis])[..., ::dilation]
    # (B, C, positions..., kernel...) -> (groups, B, positions..., C / groups, kernel...)
    by_group = patches.reshape(len(patches), layer.groups, -1, *patches.shape[2:])
    patches = by_group.movedim(1, 0).movedim(2, 2 + dimensions)
    return patches.reshape(layer.groups, -1, math.prod(patches.shape[2 + dimensions :]))


def _padding(layer: Convolution) -> list[int]:
    """Return the padding in the order of `torch.nn.functional.pad`: last axis first, before and after."""
    both: list[int] = []
    for axis in reversed(range(len(layer.kernel_size))):
        if isinstance(layer.padding, str):
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1) if layer.padding == "same" else 0
            both += [total // 2, total - total // 2]
        else:
            both += [layer.padding[axis]] * 2
    return both
