"""Stored tensors that are not the weights themselves: 8-bit ones with scales, weight norms, packed integers.

What a layer multiplies with is entry times scale. `scaling_of` finds the scales of a tensor in 8 bits by the names that
libraries give them, so that scores are magnitudes of the effective weights, and zeros go into what is stored:

* ``weight_scale`` (compressed-tensors, ModelOpt; transformers for FBGEMM): one for the tensor, for each row, or for
  each group of a row;
* ``weight_scale_inv`` (DeepSeek-V3, transformers' finegrained FP8): one for each block of 128 x 128, a factor in spite
  of its name;
* ``scale_weight`` (ComfyUI's scaled FP8);
* ``SCB`` (bitsandbytes LLM.int8()): the largest magnitude of each row, which stands for 127.

The v of a weight norm is scaled by g / |v|. `unscalable` says why others are skipped: where a stored zero is no zero of
the weight, and where several weights share an integer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._typing import Array
from ..errors import InvalidArgumentError
from ._base import Checkpoint, TensorInfo
from .weight_norm import lengths, norm_of_direction

__all__ = ["Scaling", "scales_of", "scaling_of", "unscalable"]

BLOCKS = (128, 64, 32, 16, 256, 512)
"""Sides of blocks that share a scale; that of DeepSeek-V3 first."""

PACKED = re.compile(r"(^|[./])(qweight|weight_packed|W_q|\w+_blocks)$")
"""GPTQ and AWQ, compressed-tensors, HQQ, gpt-oss."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """What the entries of a tensor are multiplied with.

    Attributes
    ----------
    scales : TensorInfo
    shape : tuple of int
        Theirs, with as many axes as the tensor.
    spans : tuple of int
        How many entries of the tensor share a scale, along each axis.
    factor : float
        Multiplied in as well.
    direction : TensorInfo or None
        The tensor itself, if `scales` are the norms g of a weight norm and it is the v.
    """

    scales: TensorInfo
    shape: tuple[int, ...]
    spans: tuple[int, ...]
    factor: float = 1.0
    direction: TensorInfo | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the effective weights: float64 if the scales are, else float32."""
        return np.dtype(np.float64 if self.scales.numpy_dtype == np.float64 else np.float32)

    def load(self, checkpoint: Checkpoint) -> Array:
        """Read what to multiply the entries with, in `dtype` and with as many axes as the tensor has."""
        scales = checkpoint.read(self.scales).astype(np.float64).reshape(self.shape) * self.factor
        if self.direction is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                scales = scales / lengths(checkpoint, self.direction, self.shape)
        return scales.astype(self.dtype)

    def effective(self, entries: Array, start: int, whole: tuple[int, ...], scales: Array) -> Array:
        """Return the effective weights of a part of the tensor.

        Parameters
        ----------
        entries : ndarray
            A box of the tensor, with as many axes.
        start : int
            Where its first entry lies in the tensor, in C order.
        whole : tuple of int
            The tensor's shape.
        scales : ndarray
            From `load`.

        Returns
        -------
        ndarray of `dtype`, the shape of `entries`
        """
        origin = np.unravel_index(start, whole)
        index = [
            np.zeros(1, np.intp) if n == 1 else (int(first) + np.arange(length)) // span
            for n, first, length, span in zip(self.shape, origin, entries.shape, self.spans, strict=True)
        ]
        with np.errstate(over="ignore", invalid="ignore"):  # the solver refuses what is not finite, by its name
            weights: Array = entries.astype(self.dtype) * scales[np.ix_(*index)]
        return weights


def scales_of(tensor: TensorInfo, known: Mapping[str, TensorInfo]) -> TensorInfo | None:
    """Return the scales of a tensor that holds a number of 8 bits in each entry; None if it is another or has none."""
    dtype = tensor.numpy_dtype
    if dtype is None or dtype.itemsize != 1 or not (tensor.is_floating or dtype == np.int8):
        return None
    name = tensor.name
    names = [f"{name}_scale", f"{name}_scale_inv"]
    if re.search(r"(^|[./])weight$", name):
        names += [f"{name.removesuffix('weight')}{end}" for end in ("scale_weight", "SCB")]
    return next((known[other] for other in names if other in known), None)


def unscalable(tensor: TensorInfo, known: Mapping[str, TensorInfo]) -> str:
    """Say why the effective weights of a tensor cannot be pruned by zeros in what is stored; empty if they can.

    Parameters
    ----------
    tensor : TensorInfo
    known : mapping of str to TensorInfo
        The tensors of its file by name.

    Returns
    -------
    str
    """
    if tensor.name.endswith(".original1") and norm_of_direction(tensor, known) is None:
        return "part of a parametrisation, which is not known to be a weight norm"
    scales = scales_of(tensor, known)
    if not tensor.is_floating and scales is None:
        packed = PACKED.search(tensor.name) is not None or _has_packed_siblings(tensor.name, known)
        return f"{tensor.dtype}, packed integers: prune the weight before it is quantised" if packed else ""
    if scales is None:
        return ""
    if any(f"{tensor.name}{end}" in known for end in ("_zero_point", "_zero_points")):
        return "quantised with a zero point: a stored zero is no zero of the weight"
    return "" if scales.is_floating else f"its scales, {scales.name!r}, are {scales.dtype}, not floating"


def scaling_of(tensor: TensorInfo, known: Mapping[str, TensorInfo]) -> Scaling | None:
    """Return what the entries of a tensor are multiplied with; None if they are the weights themselves.

    Parameters
    ----------
    tensor : TensorInfo
    known : mapping of str to TensorInfo
        The tensors of its file by name.

    Returns
    -------
    Scaling or None

    Raises
    ------
    InvalidArgumentError
        If the shape of its scales cannot fit.

    Examples
    --------
    >>> weight = TensorInfo("fc.weight", (256, 512), "float8_e4m3fn", np.dtype("int8"))
    >>> scales = TensorInfo("fc.weight_scale_inv", (2, 4), "float32", np.dtype("float32"))
    >>> scaling_of(weight, {tensor.name: tensor for tensor in (weight, scales)}).spans
    (128, 128)
    """
    scales = scales_of(tensor, known)
    norm = norm_of_direction(tensor, known) if scales is None else None
    if norm is not None:
        shape = (1,) * len(tensor.shape) if norm.size == 1 else norm.shape
        spans = tuple(length // n for length, n in zip(tensor.shape, shape, strict=True))
        return Scaling(norm, shape, spans, direction=tensor)
    if scales is None:
        return None
    whole, shape = tensor.shape, scales.shape
    if scales.size == 1:
        shape = (1,) * len(whole)
    while len(shape) > len(whole) and shape[-1] == 1:
        shape = shape[:-1]
    shape += (1,) * (len(whole) - len(shape))
    fitting = _spans(whole, shape, in_blocks=scales.name.endswith("_inv"))
    if fitting is None:
        raise InvalidArgumentError(
            f"`model` must hold scales that fit their tensor, got {scales.name!r} of shape {scales.shape} for "
            f"{tensor.name!r} of shape {whole}. Exclude that tensor, or correct the file."
        )
    return Scaling(scales, shape, fitting, 1 / 127 if scales.name.endswith("SCB") else 1.0)


def _spans(whole: tuple[int, ...], shape: tuple[int, ...], *, in_blocks: bool) -> tuple[int, ...] | None:
    """Return how many entries share a scale along each axis; None if the shapes do not fit.

    Where some axis has a scale for each of its entries, the others are cut into equal groups; else all of them are cut
    into blocks of one side, the last of which may be shorter.
    """
    if len(shape) != len(whole) or not all(1 <= n <= length for n, length in zip(shape, whole, strict=True)):
        return None
    pairs = list(zip(whole, shape, strict=True))
    cut = [(length, n) for length, n in pairs if 1 < n < length]
    has_lines = any(n == length > 1 for length, n in pairs[-2:])
    if has_lines and not in_blocks and all(length % n == 0 for length, n in cut):
        return tuple(length // n for length, n in pairs)
    side = next((side for side in BLOCKS if all(-(-length // side) == n for length, n in cut)), None)
    if side is None:
        return None
    return tuple(side if 1 < n < length else -(-length // n) for length, n in pairs)


def _has_packed_siblings(name: str, known: Mapping[str, TensorInfo]) -> bool:
    """Whether the integers of a tensor called weight have the scales of MLX, bitsandbytes or BitNet beside them."""
    stem = name.removesuffix("weight")
    return stem != name and any(other in known for other in (f"{stem}scales", f"{name}_scale", f"{name}.absmax"))
