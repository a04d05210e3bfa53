"""Let hooks see what is multiplied with weights that are no layer's, such as the experts of a mixture in one tensor.

Each matrix of such a parameter is an `Operand`. While `watched` lasts, a mode of torch looks at every product: if its
second factor is a view of one of them, the operand is called with the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...errors import InvalidArgumentError

__all__ = ["Operand", "watching"]

_PRODUCTS: set[object] = {nn.functional.linear, torch.matmul, torch.mm, torch.bmm}
_PRODUCTS |= {getattr(Tensor, name) for name in ("matmul", "__matmul__", "mm", "bmm")}
_OTHERS: set[object] = {torch.einsum, torch.addmm, torch.baddbmm, getattr(torch, "_grouped_mm", None)}
_OTHERS |= {getattr(nn.functional, "grouped_mm", None)}


class Operand(nn.Module):
    """A matrix of a parameter as a layer of its own, which computes nothing: its hooks see what is multiplied with it.

    Parameters
    ----------
    weight : torch.Tensor
        A view of the parameter, (out, in) or (in, out).

    Attributes
    ----------
    weight : torch.Tensor
    bias : None
    """

    weight: Tensor
    bias: None

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.__dict__ |= {"weight": weight.detach(), "bias": None}

    def forward(self, value: Tensor) -> None:
        """Compute nothing."""


def watching(operands: Iterable[Operand]) -> Callable[[], AbstractContextManager[object]]:
    """Return what makes the mode for a thread."""
    places = {_place(operand.weight): operand for operand in operands}
    return (lambda: _Watch(places)) if places else nullcontext


class _Watch(TorchFunctionMode):
    """Calls operands with what is multiplied with them."""

    def __init__(self, places: dict[tuple[int, int], Operand]) -> None:
        super().__init__()
        self._places = places
        self._storages = {storage for storage, _ in places}

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            first, second, *_ = *args, *kwargs.values()
            if _place(second)[0] in self._storages:
                self._show(first, second)
        elif func in _OTHERS and any(_place(one)[0] in self._storages for one in args if isinstance(one, Tensor)):
            raise InvalidArgumentError(
                f"`layouts` must name weights that linear, matmul, mm or bmm multiplies, got one for {func.__name__}. "
                "In a model of transformers call model.set_experts_implementation('eager')."
            )
        return func(*args, **kwargs)

    def _show(self, value: Tensor, weight: Tensor) -> None:
        """Call the operand that a factor is, or each of those of which it is a stack."""
        if weight.ndim == 2:
            pairs = [(value, weight)]
        else:
            pairs = list(zip(value.expand(len(weight), *value.shape[-2:]), weight, strict=True))
        for rows, matrix in pairs:
            operand = self._places.get(_place(matrix))
            if operand is not None and sorted(matrix.shape) == sorted(operand.weight.shape):
                operand(rows)


def _place(tensor: Tensor) -> tuple[int, int]:
    """Return where a tensor lies in memory."""
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())
