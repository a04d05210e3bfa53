"""Merge low-rank adapters into a masked model, so that its patterns stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InvalidArgumentError, InvalidTypeError
from .loading import MaskedEntry, masked_entries
from .masked_weight import MaskedWeight

__all__ = ["merge_adapters"]


@torch.no_grad()
def merge_adapters(model: nn.Module) -> nn.Module:
    """Merge the LoRA adapters of peft and unload them; a weight with a mask S becomes S * (W + B A), scaled as usual.

    peft's own `merge_and_unload` loses what it adds to a masked weight, because that is computed anew at every access;
    after `MaskController.remove` it keeps it, and the weight is dense.

    Parameters
    ----------
    model : peft.PeftModel
        With plain LoRA adapters on layers whose weights carry masks, and any that peft can merge on others. Modified
        in place; unchanged if an error is raised.

    Returns
    -------
    torch.nn.Module
        The base model, as `merge_and_unload` returns it, with its masks. `MaskController` controls them.

    Raises
    ------
    InvalidTypeError
        If `model` is not a model of peft.
    InvalidArgumentError
        If an adapter on a masked weight is merged already or is not plain LoRA, or what it adds is NaN or infinite.

    References
    ----------
    Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
    """
    merge = getattr(model, "merge_and_unload", None)
    if not callable(merge):
        raise InvalidTypeError(f"`model` must be a peft.PeftModel, got {type(model).__name__}.")
    masked = {id(entry.module): entry for entry in masked_entries(model, MaskedWeight)}
    found = [
        (entry, _added(module, entry))
        for module in model.modules()
        if (entry := masked.get(id(getattr(module, "base_layer", None)))) is not None
    ]
    for entry, added in found:
        entry.original.add_(added)
    merged: nn.Module = merge()
    return merged


def _added(module: Any, entry: MaskedEntry[MaskedWeight]) -> Tensor:
    """Return what the active adapters of a layer add to its weight."""
    adapters = [name for name in getattr(module, "active_adapters", ()) if name in getattr(module, "lora_A", ())]
    plain = adapters and not any(getattr(module, "use_dora", {}).get(name) for name in adapters)
    if not plain or entry.attribute != "weight":
        raise InvalidArgumentError(
            f"`model` must have plain LoRA on a masked weight, got a {type(module).__name__} without or with DoRA on "
            f"{entry.name}. Unload it, or remove the masks first."
        )
    if module.merged:
        raise InvalidArgumentError(
            f"`model` must have adapters that are not merged, got {', '.join(module.merged_adapters)} in {entry.name}, "
            "where merging was lost. Call unmerge_adapter() first."
        )
    added: Tensor = sum(module.get_delta_weight(name) for name in adapters)
    if not torch.isfinite(added).all():
        raise InvalidArgumentError(f"`model` must have finite adapters, got NaN or infinity for {entry.name}.")
    return added.to(entry.original)
