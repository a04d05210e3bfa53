"""Checkpoints in training: weights that are stored as two tensors, the entries and the mask they are multiplied by.

========================================  ======================================  ==============================
the weight                                its entries                             its mask
========================================  ======================================  ==============================
``fc.weight`` of torch.nn.utils.prune     ``fc.weight_orig``                      ``fc.weight_mask``
``fc.weight`` under a parametrisation     ``fc.parametrizations.weight.original`` ``fc.parametrizations.weight.0.mask``
========================================  ======================================  ==============================

`transmask.torch.sparsify` stores the second, with more tensors beside the mask. torch.ao.pruning, which uses a
parametrisation too, leaves its masks out of the state_dict: nothing tells such a weight from a dense one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..errors import CheckpointError
from ._base import TensorInfo

__all__ = ["MaskedWeight", "find_masked_weights", "seen_as_weights"]

PARAMETRISED = re.compile(
    r"(?P<module>(?:.*\.)?)parametrizations\.(?P<name>[^.]+)\.(?P<part>original|\d+\..+)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class MaskedWeight:
    """A weight, and the tensors that it is stored as.

    Attributes
    ----------
    name : str
        What the weight is called in a model without masks.
    original, mask : TensorInfo
        Its entries, and what they are multiplied by; of the same shape.
    beside : tuple of str
        Names of other tensors that are there for the mask alone.
    """

    name: str
    original: TensorInfo
    mask: TensorInfo
    beside: tuple[str, ...] = ()


def find_masked_weights(tensors: Iterable[TensorInfo]) -> dict[str, MaskedWeight]:
    """Find the weights of a checkpoint that are stored with a mask, by the names of the weights.

    Raises
    ------
    CheckpointError
        If a mask has another shape than its weight or is not the only parametrisation, or the weight is there under its
        own name as well.
    """
    known = {tensor.name: tensor for tensor in tensors}
    found = [*_hooked(known), *_parametrised(known)]
    for weight in found:
        if weight.mask.shape != weight.original.shape:
            raise CheckpointError(
                f"the mask {weight.mask.name!r} must have the shape of {weight.original.name!r}, "
                f"{weight.original.shape}, got {weight.mask.shape}. Save the model again."
            )
        if weight.mask.numpy_dtype is None:
            raise CheckpointError(
                f"the mask {weight.mask.name!r} must hold 0 and 1, got dtype {weight.mask.dtype}. Save it as bool."
            )
    by_name = {weight.name: weight for weight in found}
    twice = [name for name in by_name if name in known]
    if twice or len(by_name) < len(found):
        name = twice[0] if twice else next(w.name for w in found if by_name[w.name] is not w)
        raise CheckpointError(
            f"{name!r} must be stored once, got it with a mask and in another way. Remove one of them."
        )
    return by_name


def seen_as_weights(tensors: Iterable[TensorInfo], masked: dict[str, MaskedWeight]) -> list[TensorInfo]:
    """List the tensors as a model without masks has them: masked weights under their own names, nothing for masks."""
    own_names = {weight.original.name: name for name, weight in masked.items()}
    gone = {name for weight in masked.values() for name in (weight.mask.name, *weight.beside)}
    return [replace(t, name=own_names.get(t.name, t.name)) for t in tensors if t.name not in gone]


def _hooked(known: dict[str, TensorInfo]) -> list[MaskedWeight]:
    """Find what torch.nn.utils.prune stores."""
    stems = [name.removesuffix("_orig") for name in known if name.endswith("_orig") and name != "_orig"]
    return [MaskedWeight(s, known[f"{s}_orig"], known[f"{s}_mask"]) for s in stems if f"{s}_mask" in known]


def _parametrised(known: dict[str, TensorInfo]) -> list[MaskedWeight]:
    """Find weights under a parametrisation that is a mask."""
    parts: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in known.items():
        match = PARAMETRISED.fullmatch(name)
        if match is not None:
            parts.setdefault(match["module"] + match["name"], {})[match["part"]] = tensor
    found = []
    for name, part in parts.items():
        masks = [key for key in part if re.fullmatch(r"\d+\.mask", key)]
        if "original" not in part or not masks:
            continue  # another parametrisation, such as a weight norm
        others = [tensor.name for key, tensor in part.items() if key != "original" and not key.startswith("0.")]
        if others:
            raise CheckpointError(
                f"{name!r} must have no parametrisation but its mask, got {others[0]!r}. "
                "Remove the other where the model was trained."
            )
        beside = tuple(tensor.name for key, tensor in part.items() if key not in ("original", "0.mask"))
        found.append(MaskedWeight(name, part["original"], part["0.mask"], beside))
    return found
