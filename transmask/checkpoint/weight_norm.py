"""Weights stored as a weight norm, w = g v / |v|: torch's ``weight_g`` and ``weight_v``, or ``original0`` and 1.

The norm is that of each slice of v along one axis, or of all of v where g is one number. Zeros in v shorten it, and a
loader would stretch what is kept by as much; so g is shortened, too, and the weights that are kept stay what they are.

Salimans and Kingma, "Weight normalization", NeurIPS 2016, equation 2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from .._typing import Array
from ..errors import InvalidArgumentError
from ._base import Checkpoint, TensorInfo

__all__ = ["lengths", "norm_of_direction", "shortened_norms", "squared_norms", "weight_name"]

_STRETCH = 1 << 20
"""Entries that are read at a time."""


def norm_of_direction(tensor: TensorInfo, known: Mapping[str, TensorInfo]) -> TensorInfo | None:
    """Return the g of a tensor that is the v of a weight norm; None if it is another."""
    name = tensor.name
    if re.search(r"(^|[./])weight\w*_v$", name):
        norm = known.get(f"{name[:-1]}g")
    else:
        norm = known.get(f"{name[:-1]}0") if name.endswith(".original1") else None
    if norm is None or len(tensor.shape) < 2 or not (tensor.is_floating and norm.is_floating):
        return None
    is_slices = len(norm.shape) == len(tensor.shape) and all(
        n in (1, length) for n, length in zip(norm.shape, tensor.shape, strict=True)
    )
    return norm if norm.size == 1 or (is_slices and norm.size == max(norm.shape)) else None


def weight_name(name: str) -> str:
    """Return what a parametrised weight was called: ``fc.parametrizations.weight.original1`` is ``fc.weight``."""
    return re.sub(r"(^|\.)parametrizations\.([^.]+)\.original\d?$", r"\1\2", name)


def squared_norms(stretches: Iterable[Array], whole: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Add up the squares of the entries of v, slice by slice.

    Parameters
    ----------
    stretches : iterable of ndarray
        Its entries in C order.
    whole, shape : tuple of int
        The shapes of v and of g, with as many axes.

    Returns
    -------
    ndarray of float64, shape `shape`
    """
    axis = next((axis for axis, n in enumerate(shape) if n > 1), 0)
    inner, start = math.prod(whole[axis + 1 :]), 0
    sums = np.zeros(math.prod(shape))
    for entries in stretches:
        squares = np.square(entries.reshape(-1).astype(np.float64))
        lines = np.arange(start, start + entries.size) // inner % len(sums) if len(sums) > 1 else None
        sums += squares.sum() if lines is None else np.bincount(lines, squares, len(sums))
        start += entries.size
    return sums.reshape(shape)


def lengths(checkpoint: Checkpoint, tensor: TensorInfo, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Read v and return the norms of its slices, in an array of the shape of g."""
    sizes = [min(_STRETCH, tensor.size - start) for start in range(0, tensor.size, _STRETCH)]
    return np.sqrt(squared_norms(checkpoint.stretches(tensor, sizes), tensor.shape, shape))


def shortened_norms(norms: Array, before: NDArray[np.float64], kept: NDArray[np.float64], name: str) -> Array:
    """Return g for a v in which only some entries are kept.

    Parameters
    ----------
    norms : ndarray
        The g that is stored.
    before, kept : ndarray of float64
        The squared norms of the slices of v, with and without the entries that are not kept.
    name : str
        That of v, for the error.

    Returns
    -------
    ndarray of the dtype and shape of `norms`

    Raises
    ------
    InvalidArgumentError
        If a slice keeps nothing: it has no direction, and torch makes NaN of it.
    """
    empty = np.flatnonzero(kept == 0)
    if empty.size:
        raise InvalidArgumentError(
            f"tensor {name!r}: slice {empty[0]} of a weight norm must keep a weight that is not zero, got none. "
            "Remove the weight norm from the model first, or exclude the tensor."
        )
    factors = np.sqrt(kept / before).reshape(norms.shape)
    return (norms.astype(np.float64) * factors).astype(norms.dtype)
