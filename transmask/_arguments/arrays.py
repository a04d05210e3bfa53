"""Validate weights and masks: arrays, nested sequences, torch tensors."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._typing import Array
from ..errors import InvalidArgumentError, InvalidTypeError
from .tensors import is_tensor, tensor_to_numpy

__all__ = ["LARGEST_MAGNITUDE", "as_mask", "as_weights"]

LARGEST_MAGNITUDE = 1e300
"""Sums of up to 10^8 of these, and everything computed from them, fit in float64."""

_HALF_INFINITIES = {"float16": 0x7C00, "bfloat16": 0x7F80}
"""As bits, without the sign; everything above them is NaN."""

_REAL_EXTENSIONS = ("bfloat16", "float8", "float6", "float4", "int4", "uint4", "int2", "uint2", "int1", "uint1")


def as_weights(weights: ArrayLike, *, argument: str = "weights") -> Array:
    """Return `weights` as an array of finite real numbers with at least two axes, without a copy where possible.

    A torch tensor on the CPU is viewed, whether it requires a gradient or not.

    Raises
    ------
    InvalidTypeError
        If the dtype is complex, object, string or anything else that is not real, or has no zero.
    InvalidArgumentError
        If there are fewer than two axes; if entries are NaN or infinite (the message counts them and names the first);
        or if an entry is so large that sums overflow.
    """
    array = _as_array(weights, argument)
    if array.dtype.kind not in "biuf" and not array.dtype.name.startswith(_REAL_EXTENSIONS):
        raise InvalidTypeError(
            f"`{argument}` must hold real numbers, got dtype {array.dtype}. "
            + ("Pass its absolute value as scores." if array.dtype.kind == "c" else "Convert it with .astype(float).")
        )
    if array.dtype.type.__name__ == "float8_e8m0fnu":  # dtype.name takes 2 us
        raise InvalidTypeError(
            f"`{argument}` must hold a dtype that has a zero, got {array.dtype}. Convert it with .astype(np.float32)."
        )
    if array.ndim < 2:
        raise InvalidArgumentError(
            f"`{argument}` must have at least 2 axes, got shape {array.shape}. A mask is made for matrices."
        )
    _refuse_nonfinite(array, argument)
    return array


def _as_array(values: ArrayLike, argument: str) -> Array:
    """View or convert to an array of any dtype."""
    if is_tensor(values):
        return tensor_to_numpy(values, argument=argument)
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise InvalidArgumentError(
            f"`{argument}` must be an array without masked entries, got {int(np.sum(values.mask))} of {values.size} "
            "masked. Fill them first, with .filled(0) to give them no worth."
        )
    try:
        return np.asarray(values)
    except ValueError:
        raise InvalidArgumentError(
            f"`{argument}` must be an array, got nested sequences of different lengths. Make all rows equally long."
        ) from None


def _refuse_nonfinite(array: Array, argument: str) -> None:
    """Raise if an entry is NaN, infinite, or so large that sums of entries overflow float64."""
    name = array.dtype.type.__name__
    if array.dtype.kind in "biu" or name.startswith(("int", "uint")) or array.size == 0:
        return
    if name in _HALF_INFINITIES and array.dtype.isnative and _halves_are_finite(array, _HALF_INFINITIES[name]):
        return
    with np.errstate(over="ignore", invalid="ignore"):
        if array.dtype.itemsize > 4:
            limit = LARGEST_MAGNITUDE / max(1.0, array.size / 1e8)
            largest = np.maximum(-np.min(array), np.max(array))  # NaN if an entry is
            if largest <= limit:
                return
        elif np.isfinite(np.add.reduce(array, axis=None, dtype=np.float32)):
            return  # a NaN or an infinity would have reached the sum; an overflow is looked at below
        finite = np.isfinite(array)  # a signalling NaN in bfloat16 warns here
    bad = array.size - int(np.count_nonzero(finite))
    if bad:
        first = tuple(int(index) for index in np.unravel_index(int(np.argmin(finite)), array.shape))
        raise InvalidArgumentError(
            f"`{argument}` must be finite, got {bad} of {array.size} entries NaN or infinite, "
            f"the first at index {first}: {array[first]}. Replace them before a mask is made."
        )
    if array.dtype.itemsize > 4:
        raise InvalidArgumentError(
            f"`{argument}` must be at most {limit:g} in magnitude, or sums overflow, got {largest}. "
            "Divide them by a power of two, which changes no mask."
        )


def _halves_are_finite(array: Array, infinity: int) -> bool:
    """Tell whether float16 or bfloat16 is finite, by its bits: numpy would convert entry by entry."""
    positive, with_a_sign = int(np.max(array.view(np.int16))), int(np.max(array.view(np.uint16)))
    return positive < infinity and with_a_sign < infinity | 1 << 15


def as_mask(mask: ArrayLike, *, argument: str = "mask") -> NDArray[np.bool_]:
    """Return `mask` as bool with at least two axes; numbers are accepted if all are 0 or 1.

    Raises
    ------
    InvalidTypeError
        If the dtype is neither bool nor real.
    InvalidArgumentError
        If there are fewer than two axes or an entry is neither 0 nor 1.
    """
    array = _as_array(mask, argument)
    if array.dtype.kind not in "biuf" and not array.dtype.name.startswith(_REAL_EXTENSIONS):
        raise InvalidTypeError(f"`{argument}` must be bool, got dtype {array.dtype}. True means kept.")
    if array.ndim < 2:
        raise InvalidArgumentError(f"`{argument}` must have at least 2 axes, got shape {array.shape}.")
    if array.dtype == np.bool_:  # memory that became a bool array by a view may hold other bytes than 0 and 1
        return array if array.view(np.uint8).max(initial=0) <= 1 else array.view(np.uint8) != 0
    kept: NDArray[np.bool_] = array == 1
    other = ~(kept | (array == 0))
    if other.any():
        first = tuple(int(index) for index in np.unravel_index(int(np.argmax(other)), array.shape))
        raise InvalidArgumentError(
            f"`{argument}` must hold only 0 and 1, got {array[first]} at index {first}. True or 1 means kept."
        )
    return kept
