"""See torch tensors as numpy arrays, without importing torch.

Whoever passes a tensor has imported torch already, so it is looked up in ``sys.modules`` and never imported.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from .._imports import import_whole
from .._typing import Array
from ..errors import InvalidArgumentError, InvalidTypeError

if TYPE_CHECKING:
    import torch

__all__ = ["is_tensor", "tensor_on_cpu", "tensor_to_numpy"]


def is_tensor(value: Any) -> TypeGuard[torch.Tensor]:
    """Tell whether `value` is a torch tensor.

    Examples
    --------
    >>> is_tensor(np.ones(3))
    False
    """
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


def tensor_on_cpu(tensor: torch.Tensor, *, argument: str = "weights") -> torch.Tensor:
    """Detach a tensor and bring it to CPU memory.

    Raises
    ------
    InvalidArgumentError
        If it lies on the meta device, where tensors have no values.
    """
    _refuse_meta(tensor, argument)
    return tensor.detach().cpu()


def _refuse_meta(tensor: torch.Tensor, argument: str) -> None:
    if tensor.is_meta:
        raise InvalidArgumentError(
            f"`{argument}` must have values, got a tensor on the meta device. Load them onto another device first."
        )


def tensor_to_numpy(tensor: torch.Tensor, *, argument: str = "weights") -> Array:
    """View a tensor in CPU memory as a numpy array.

    Parameters
    ----------
    tensor : torch.Tensor
        Dense, on the CPU; it may require a gradient. bfloat16 and the float8 types become the types of ml_dtypes.
    argument : str
        What error messages call it.

    Returns
    -------
    ndarray
        Shares its memory with `tensor`.

    Raises
    ------
    InvalidArgumentError
        If the tensor lies on another device, or on the meta device, where it has no values.
    InvalidTypeError
        If it is sparse or quantised.
    """
    _refuse_meta(tensor, argument)
    if tensor.device.type != "cpu":
        raise InvalidArgumentError(
            f"`{argument}` must lie on the CPU, got a tensor on {tensor.device}. Move it with .cpu()."
        )
    name = str(tensor.dtype).removeprefix("torch.")
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized:
        raise InvalidTypeError(
            f"`{argument}` must be a dense tensor, got layout {tensor.layout} and dtype {tensor.dtype}. "
            "Convert it with .to_dense() or .dequantize()."
        )
    values = tensor.detach().resolve_conj().resolve_neg()
    if name != "bfloat16" and not name.startswith("float8"):
        array: Array = values.numpy()
        return array
    ml_dtypes = import_whole("ml_dtypes")  # here: `import transmask` loads numpy and nothing heavier

    torch = sys.modules["torch"]
    bits: Array = values.view(torch.int16 if tensor.dtype.itemsize == 2 else torch.uint8).numpy()
    return bits.view(np.dtype(getattr(ml_dtypes, name)))
