"""Which tensors of a checkpoint are pruned, along which axes, and why the others are not.

A tensor is pruned if it is floating-point, or has 8-bit integers and scales; has at least two axes, with at least M
entries along both axes of its matrix; and if its name is not that of an embedding, a norm, a router or whatever else
`kinds` knows to be no weight of a layer.

The axes come from `layouts.CONVENTIONS`, or from the caller. A tensor that could be read along several is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from ..pattern import Pattern
from ._axes_rules import AxesRules, compiled
from ._base import TensorInfo
from .aliases import aliases_in, tied
from .kinds import kind_by_name
from .layouts import readings_of
from .scaling import Scaling, scales_of, scaling_of, unscalable
from .weight_norm import weight_name

__all__ = ["Selection", "matching_names", "select_tensors"]


@dataclass(frozen=True, slots=True)
class Selection:
    """A tensor, and whether it is pruned.

    Attributes
    ----------
    tensor : TensorInfo
    axes : tuple of two int or None
        The axes that form its matrix; None if it is not pruned.
    reason : str
        Why it is not pruned; empty if it is.
    scaling : Scaling or None
        What its entries are multiplied with to be the weights; None if they are the weights, or it is not pruned.
    """

    tensor: TensorInfo
    axes: tuple[int, int] | None
    reason: str
    scaling: Scaling | None = None


def select_tensors(
    tensors: Iterable[TensorInfo],
    pattern: Pattern,
    *,
    include: str | None = None,
    exclude: str | None = None,
    axes: Mapping[str, Sequence[int]] | None = None,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Selection, ...]:
    """Decide for every tensor whether it is pruned.

    Parameters
    ----------
    tensors : iterable of TensorInfo
    pattern : Pattern
    include : str, optional
        Regular expression, searched for in the name. Only tensors that match are pruned, even those whose name is that
        of an embedding, a normalisation or another kind that is normally skipped.
    exclude : str, optional
        Regular expression, searched for in the name. Tensors that match are not pruned.
    axes : mapping of str to pair of int, optional
        Regular expressions, searched for in the names, and the axes that form the matrices of the tensors that match.
        The others are read as `layouts.CONVENTIONS` says.
    metadata : mapping of str to str, optional
        That of their file; its entry "format" tells torch, MLX and other layouts apart, and the entries that
        ``safetensors.torch.save_model`` makes for tied tensors give a tensor other names, by which it is judged, too.

    Returns
    -------
    tuple of Selection
        One for each tensor, in their order.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `include` or `exclude` is not a regular expression. Or if a rule of `axes` is not one, matches no tensor that
        can be pruned, names axes that a tensor does not have, or matches a tensor that another rule matches, too.

    Examples
    --------
    >>> import numpy as np
    >>> from transmask import Pattern
    >>> tensor = TensorInfo("model.embed_tokens.weight", (100, 8), "float32", np.dtype("float32"))
    >>> select_tensors([tensor], Pattern(2, 4))[0].reason
    'embedding by its name'
    """
    rules = AxesRules(axes)
    wanted, unwanted = compiled(include, "include"), compiled(exclude, "exclude")
    tensors, selections = tuple(tensors), []
    known = {tensor.name: tensor for tensor in tensors}
    aliases = aliases_in(metadata, known)
    for tensor in tensors:
        names = (tensor.name, *aliases.get(tensor.name, ()))
        reason = _reason_by_kind(tensor, names, known, wanted, unwanted)
        choice = Selection(tensor, None, reason) if reason else _laid_out(tensor, names, pattern.m, rules, metadata)
        selections.append(choice if choice.axes is None else replace(choice, scaling=scaling_of(tensor, known)))
    rules.refuse_unused()
    norms = {c.scaling.scales.name: c.tensor.name for c in selections if c.scaling and c.scaling.direction}
    return tuple(
        Selection(choice.tensor, None, f"norm of {norms[choice.tensor.name]!r}, shortened where that is pruned")
        if choice.tensor.name in norms
        else choice
        for choice in selections
    )


def matching_names(
    names: Iterable[str],
    *,
    include: str | None,
    exclude: str | None,
    aliases: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[str]:
    """Return the names in which `include` is found, if it is given, and `exclude` is not; or in one of their aliases.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `include` or `exclude` is not a regular expression.
    """
    wanted, unwanted = compiled(include, "include"), compiled(exclude, "exclude")
    return [name for name in names if not _reason_by_options((name, *aliases.get(name, ())), wanted, unwanted)]


def _reason_by_options(names: Sequence[str], wanted: re.Pattern[str] | None, unwanted: re.Pattern[str] | None) -> str:
    """Say whether the caller leaves a tensor out, by any of its names; empty if not."""
    if unwanted is not None and any(map(unwanted.search, names)):
        return "excluded"
    return "not included" if wanted is not None and not any(map(wanted.search, names)) else ""


def _reason_by_kind(
    tensor: TensorInfo,
    names: Sequence[str],
    known: Mapping[str, TensorInfo],
    wanted: re.Pattern[str] | None,
    unwanted: re.Pattern[str] | None,
) -> str:
    """Say why a tensor is not pruned, whatever its layout; empty if nothing speaks against it."""
    if not tensor.is_floating and scales_of(tensor, known) is None:
        return unscalable(tensor, known) or f"{tensor.dtype} is not floating"
    if len(tensor.shape) < 2:
        return f"{len(tensor.shape)}-d, not a matrix"
    if reason := _reason_by_options(names, wanted, unwanted):
        return reason
    for name in names if wanted is None else ():
        if kind := kind_by_name(weight_name(name)):
            return f"{kind} by its name" if name == tensor.name else f"{tied(kind)}, {name!r}"
    return unscalable(tensor, known) if tensor.size else "empty"


def _laid_out(
    tensor: TensorInfo, names: Sequence[str], m: int, rules: AxesRules, metadata: Mapping[str, str]
) -> Selection:
    """Find the matrix of a tensor, which must have a side of at least M in each direction."""
    given = rules.axes_of(tensor.name, tensor.shape, names[1:])
    readings = readings_of(weight_name(tensor.name), tensor.shape, metadata) if given is None else (given,)
    sides = [(tensor.shape[first], tensor.shape[second]) for first, second in readings]
    if sides and all(min(pair) < m for pair in sides):
        return Selection(tensor, None, f"{sides[0][0]} x {sides[0][1]} is smaller than M = {m}")
    if len(readings) == 1:
        return Selection(tensor, readings[0], "")
    listed = " or ".join(f"{first},{second}" for first, second in readings) or "I,J"
    return Selection(tensor, None, f"which axes form its matrix is unclear: --axes 'NAME_RE={listed}' says it")
