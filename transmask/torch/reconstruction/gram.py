"""Gram matrices of the inputs of layers, accumulated while a model runs; the inputs themselves are not kept.

A linear layer or a convolution computes, for each of its groups, W X with X of shape (D, samples): D is the input
channels of a group times the kernel positions, and an input of ones for the bias. The squared error of W'

    || W X - W' X ||^2 = trace( (W - W') G (W - W').T )

depends on X only through G = X X.T, of shape (D, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.hooks import RemovableHandle

from ...errors import InvalidArgumentError
from ..selection import WeightChoice, refuse_other_than_module, untrainable
from .calibration import Calibration

__all__ = ["SupportedLayer", "collect_grams", "execution_order", "layer_rows", "unobservable"]

SupportedLayer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

_CHUNK_ENTRIES = 1 << 22  # 32 MB of float64 at a time


def unobservable(model: nn.Module) -> Callable[[WeightChoice], str]:
    """Return a function that tells why no hook sees the inputs of a weight of `model`, or "" if one does."""
    refuse_other_than_module(model, "model")
    attended = {id(module.out_proj) for module in model.modules() if isinstance(module, nn.MultiheadAttention)}

    def why(choice: WeightChoice) -> str:
        if isinstance(choice.module, nn.MultiheadAttention) or id(choice.module) in attended:
            return "inside MultiheadAttention, where its inputs cannot be observed"
        if not isinstance(choice.module, SupportedLayer):
            return "neither a linear layer nor a convolution"
        return untrainable(choice)

    return why


def collect_grams(
    model: nn.Module, layers: Sequence[tuple[str, SupportedLayer]], calibration: Calibration
) -> list[Tensor]:
    """Run the model on the calibration data and accumulate the Gram matrix of the inputs of each layer.

    Parameters
    ----------
    model : torch.nn.Module
    layers : sequence of (str, torch.nn.Module)
        Names, for error messages, and layers of the model.
    calibration : Calibration

    Returns
    -------
    list of torch.Tensor of float64, shape (groups, D, D)
        On the device of the layer. The last of D is the input of ones, if the layer has a bias.

    Raises
    ------
    InvalidArgumentError
        As `Calibration.run`; also if a layer saw no input, or one that is NaN or infinite.
    """
    grams: list[Tensor | None] = [None] * len(layers)

    def watch(index: int, layer: SupportedLayer) -> RemovableHandle:
        # After the forward, so that the layer itself complains about an input that does not fit.
        def accumulate(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
            for rows in layer_rows(layer, args[0] if args else kwargs["input"]):
                values = rows.to(torch.float64)
                product = values.mT @ values
                total = grams[index]
                grams[index] = product if total is None else total.add_(product)

        return layer.register_forward_hook(accumulate, with_kwargs=True)

    with _removing(watch(index, layer) for index, (_, layer) in enumerate(layers)):
        calibration.run(model)
    for (name, _), gram in zip(layers, grams, strict=True):
        if gram is None:
            raise InvalidArgumentError(
                f"`calibration` must reach every layer, got no input for {name}. Leave it out with `layers`."
            )
        if not torch.isfinite(gram).all():
            raise InvalidArgumentError(
                f"`calibration` must give finite activations, got NaN or infinite inputs of {name}."
            )
    return [gram for gram in grams if gram is not None]


def execution_order(
    model: nn.Module, layers: Sequence[SupportedLayer], calibration: Calibration
) -> list[SupportedLayer]:
    """Sort layers by their first call on the first batch; those that are not called come last.

    Parameters
    ----------
    model : torch.nn.Module
    layers : sequence of torch.nn.Module
    calibration : Calibration

    Returns
    -------
    list of torch.nn.Module

    Raises
    ------
    InvalidArgumentError
        As `Calibration.run`.
    """
    called: dict[SupportedLayer, None] = {}

    def watch(layer: SupportedLayer) -> RemovableHandle:
        return layer.register_forward_pre_hook(lambda *_: called.setdefault(layer))

    with _removing(map(watch, layers)):
        calibration.run(model, only_first=True)
    return [*called, *(layer for layer in layers if layer not in called)]


@contextmanager
def _removing(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks for a while."""
    made = list(handles)
    try:
        yield
    finally:
        for handle in made:
            handle.remove()


def layer_rows(layer: SupportedLayer, value: Tensor) -> Iterator[Tensor]:
    """Yield the inputs of a layer as rows that its weights are multiplied with, a chunk at a time.

    Parameters
    ----------
    layer : torch.nn.Linear or convolution
    value : torch.Tensor
        What the layer is called with.

    Yields
    ------
    torch.Tensor, shape (groups, samples, D)
        In the dtype of `value`; a last column of ones if the layer has a bias.
    """
    if isinstance(layer, nn.Linear):
        flat = value.reshape(1, -1, value.shape[-1])
        chunks = torch.split(flat, max(1, _CHUNK_ENTRIES // max(1, flat.shape[2])), dim=1)
        yield from (_with_ones(layer, chunk) for chunk in chunks)
        return
    batch = value if value.ndim == len(layer.kernel_size) + 2 else value.unsqueeze(0)
    entries = max(1, batch[0].numel() * math.prod(layer.kernel_size) // math.prod(layer.stride))
    for images in torch.split(batch, max(1, _CHUNK_ENTRIES // entries)):
        yield _with_ones(layer, _patches(layer, images))


def _with_ones(layer: SupportedLayer, rows: Tensor) -> Tensor:
    """Append a column of ones for the bias, if there is one."""
    return rows if layer.bias is None else pad(rows, (0, 1), value=1.0)


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, images: Tensor) -> Tensor:
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


def _padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    """Return the padding in the order of `torch.nn.functional.pad`: last axis first, before and after."""
    both: list[int] = []
    for axis in reversed(range(len(layer.kernel_size))):
        if isinstance(layer.padding, str):
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1) if layer.padding == "same" else 0
            both += [total // 2, total - total // 2]
        else:
            both += [layer.padding[axis]] * 2
    return both
