"""Weights that processes share, as FSDP2 and tensor parallelism leave them: masks are whole on every process."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...errors import InvalidArgumentError

__all__ = ["part_of", "refuse_sharded", "whole"]


def whole(tensor: Tensor) -> Tensor:
    """Return all entries of a tensor; of one that processes share, every one of them must call this."""
    return cast(Tensor, tensor.full_tensor()) if _is_shared(tensor) else tensor  # type: ignore[attr-defined]


def part_of(mask: Tensor, tensor: Tensor) -> Tensor:
    """Return a mask as `tensor` is: whole, or a DTensor of which this process holds the same part."""
    if not _is_shared(tensor):
        return mask
    from torch.distributed.tensor import DTensor, distribute_tensor

    shared = cast(DTensor, tensor)
    # Every process has the whole mask already: nothing is sent.
    return distribute_tensor(mask, shared.device_mesh, shared.placements, src_data_rank=None)


def refuse_sharded(model: nn.Module, demand: str, remedy: str) -> None:
    """Refuse a model that FSDP2 has sharded: it keeps track of where parameters are.

    Parameters
    ----------
    model : torch.nn.Module
    demand, remedy : str
        For the message: what the model must do before, and what to do.

    Raises
    ------
    InvalidArgumentError
    """
    if not torch.distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule

    if any(isinstance(module, FSDPModule) for module in model.modules()):
        raise InvalidArgumentError(f"`model` must {demand}, got a {type(model).__name__} under fully_shard. {remedy}")


def _is_shared(tensor: Tensor) -> bool:
    """Tell whether a tensor is a DTensor, without importing what makes one."""
    return type(tensor) is not Tensor and hasattr(tensor, "full_tensor")
