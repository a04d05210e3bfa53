"""Load masks, checked before anything changes, in either of the two styles that torch has for them.

parametrize   <module>.parametrizations.<name>.original, ....0.mask, ....0.step, ...     (`sparsify`)
prune         <module>.<name>_orig, <module>.<name>_mask                                 (`transposable`)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..._arguments import as_mask, tensor_on_cpu
from ...blocks import Array
from ...check import check_mask
from ...errors import CheckpointError, TransmaskError
from ..layouts import Layout
from ..mask_rule import MaskRule
from .mask_state import MaskState
from .masked_weight import MaskedWeight

__all__ = [
    "MaskT",
    "MaskedEntry",
    "StateDict",
    "check_loaded_mask",
    "check_masked_weights",
    "first_offender",
    "load_masks",
    "masked_entries",
    "refuse_meta",
]

MaskT = TypeVar("MaskT", bound=MaskState)
StateDict = MutableMapping[str, Any]

_MASK_KEY = re.compile(r"(.*\.|)parametrizations\.([^.]+)\.0\.mask")
"""The key of a mask, in groups: what leads to its module, and the name of the weight there."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskedEntry(Generic[MaskT]):
    """One masked weight of a model.

    Attributes
    ----------
    name : str
        The name the parameter had in the dense model.
    module : torch.nn.Module
    attribute : str
    original : torch.nn.Parameter
        The dense weight that the optimizer trains.
    masked : MaskedWeight or ThresholdedWeight
    """

    name: str
    module: nn.Module
    attribute: str
    original: nn.Parameter
    masked: MaskT


def masked_entries(model: nn.Module, kind: type[MaskT]) -> Iterator[MaskedEntry[MaskT]]:
    """Yield the weights of a model whose mask is of a kind, in the order of its modules."""
    for module_name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for attribute, chain in module.parametrizations.items():
            if isinstance(chain[0], kind):
                name = f"{module_name}.{attribute}" if module_name else attribute
                yield MaskedEntry(name, module, attribute, chain.original, chain[0])


def load_masks(module: nn.Module, state_dict: StateDict, prefix: str, *_: object) -> None:
    """Check the masks of a state_dict before a sparsified model loads it, and translate those of the prune style.

    Raises
    ------
    CheckpointError
        If a mask has another pattern or shape, or a weight is masked on one side and dense on the other; the model is
        unchanged.
    """
    entries = list(masked_entries(module, MaskedWeight))
    check_masked_weights(module, {entry.name for entry in entries}, state_dict, prefix, maker="sparsify")
    for entry in entries:
        attribute = entry.attribute
        stem = (prefix + entry.name).removesuffix(attribute)
        base = f"{stem}parametrizations.{attribute}."
        if f"{stem}{attribute}_orig" in state_dict and f"{stem}{attribute}_mask" in state_dict:
            state_dict[f"{base}original"] = state_dict.pop(f"{stem}{attribute}_orig")
            state_dict[f"{base}0.mask"] = state_dict.pop(f"{stem}{attribute}_mask")
            for name in ("step", "frozen", "pattern"):
                state_dict[f"{base}0.{name}"] = getattr(entry.masked, name).clone()
        _check_entry(entry, state_dict, f"{base}0.")


def check_masked_weights(
    module: nn.Module, wanted: set[str], state_dict: StateDict, prefix: str, *, maker: str
) -> None:
    """Raise CheckpointError if a weight is masked in the model and dense in the state_dict, or the other way round.

    `maker` names the function that made the masks. A missing weight is not an error here: torch hides from hooks
    whether loading is strict.
    """
    held = {_masked_weight(key, state_dict, prefix) for key in state_dict}
    plain = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    dense = sorted(name for name in wanted - held if f"{prefix}{name}" in state_dict)
    foreign = sorted(held & plain)
    if dense or foreign:
        got = [
            f"{kind} for {_listed(names)}" for kind, names in (("dense weights", dense), ("masks", foreign)) if names
        ]
        again, before = f"Call {maker}(layers=...) as in the run that saved it.", f"Load it before {maker}."
        remedy = again if held - {""} else before
        raise CheckpointError(
            f"`state_dict` must hold masks for the weights that the model masks, got {' and '.join(got)}. {remedy}"
        )


def _masked_weight(key: str, state_dict: StateDict, prefix: str) -> str:
    """Return the name of the weight whose mask a key stands for, in either style, or ""."""
    if not key.startswith(prefix):
        return ""
    if parametrized := _MASK_KEY.fullmatch(key, len(prefix)):
        return "".join(parametrized.groups())
    stem = key.removesuffix("_mask")
    return stem[len(prefix) :] if stem != key and f"{stem}_orig" in state_dict else ""


def _listed(names: list[str]) -> str:
    """Join the first few names."""
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")


def _check_entry(entry: MaskedEntry[MaskedWeight], state_dict: StateDict, base: str) -> None:
    """Raise CheckpointError unless the mask of one weight is of the right pattern, shape and structure."""
    masked = entry.masked
    pattern, mask = (state_dict.get(f"{base}{key}") for key in ("pattern", "mask"))
    weight = state_dict.get(f"{base.removesuffix('0.')}original")
    refuse_meta((pattern, mask, weight), entry.name)
    if pattern is not None and pattern.tolist() != masked.pattern.tolist():
        raise CheckpointError(
            f"`state_dict` must hold masks of {masked.mask_rule.pattern}, got {':'.join(map(str, pattern.tolist()))} "
            f"for {entry.name}. Sparsify the model with the pattern of the checkpoint."
        )
    if mask is not None:
        state_dict[f"{base}mask"] = check_loaded_mask(mask, masked.mask, masked.layout, masked.mask_rule, entry.name)
    if weight is not None and weight.shape != entry.original.shape:
        raise CheckpointError(
            f"`state_dict` must hold a weight of shape {tuple(entry.original.shape)} for {entry.name}, "
            f"got {tuple(weight.shape)}."
        )


def refuse_meta(values: Iterable[object], name: str) -> None:
    """Raise CheckpointError if one of the values that belong to a weight is a tensor without values."""
    if any(isinstance(value, Tensor) and value.is_meta for value in values):
        raise CheckpointError(
            f"`state_dict` must have values, got tensors on the meta device for {name}. Load them from a file."
        )


def check_loaded_mask(mask: Tensor, present: Tensor, layout: Layout, rule: MaskRule, name: str) -> Tensor:
    """Return a mask from a checkpoint as bool, if the rule could have made it.

    Raises
    ------
    CheckpointError
        If its shape differs from that of the `present` mask, it is not a mask, or it breaks the pattern.
    """
    if mask.shape != present.shape:
        raise CheckpointError(
            f"`state_dict` must hold a mask of shape {tuple(present.shape)} for {name}, got {tuple(mask.shape)}."
        )
    try:
        kept = as_mask(tensor_on_cpu(mask, argument="mask"))
    except TransmaskError as error:
        raise CheckpointError(f"`state_dict` must hold masks of 0 and 1, got another for {name}: {error}") from None
    if offender := first_offender(kept, layout, rule):
        raise CheckpointError(
            f"`state_dict` must hold masks that are {rule}, got another for {name}: {offender}. "
            "Sparsify the model with the pattern and constraint of the checkpoint."
        )
    return mask.bool()


def first_offender(kept: Array, layout: Layout, rule: MaskRule) -> str:
    """Say where a mask breaks its rule first, or return "" if it does not."""
    view, axes = (kept, (0, 1)) if layout.parts == 1 and not layout.stacked else (layout.matrices(kept), (1, 2))
    report = check_mask(view, rule.pattern, constraint=rule.constraint, axes=axes)
    bad_reduction = report.row_violations if layout.reduction == 1 else report.column_violations
    broken = not report.ok if rule.transposable else bool(bad_reduction)
    return str(report.first_offender) if broken else ""
