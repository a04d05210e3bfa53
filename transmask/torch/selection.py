"""Which parameters of a model are taken, and why the others are not.

`sparsify` and `reconstruct` both ask here, so that one rule and one wording serve them all.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import InvalidArgumentError, InvalidTypeError, unknown_choice
from ..pattern import Pattern
from ..shown import shown
from .layouts import ALLOWED, Allowed, Layout, declared_layout, layout_of

__all__ = [
    "LayerFilter",
    "Layouts",
    "SelectionReport",
    "WeightChoice",
    "matches",
    "refuse_other_than_module",
    "select_weights",
    "untrainable",
]

LayerFilter: TypeAlias = str | Iterable[str] | Callable[[str, nn.Module], bool] | None
"""Names or wildcards of parameters or of their modules, or a predicate of a parameter's name and its module."""

Layouts: TypeAlias = Mapping[str, tuple[int, int]] | None
"""Names or wildcards of parameters, and the axes of their outputs and inputs."""


_ADAPTER = re.compile(r"(^|\.)lora_(embedding_)?[AB](\.|$)")
"""In the names that peft gives."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightChoice:
    """One parameter of a model: taken or not, and why.

    Attributes
    ----------
    name : str
        As in ``model.named_parameters()``.
    shape : tuple of int
    taken : bool
    reason : str
        In words.
    module : torch.nn.Module
        The module that owns it.
    attribute : str
        Its name there.
    layout : Layout or None
        None if the parameter is not a stack of matrices.
    """

    name: str
    shape: tuple[int, ...]
    taken: bool
    reason: str
    module: nn.Module
    attribute: str
    layout: Layout | None

    def refused(self, reason: str) -> WeightChoice:
        """Turn the parameter down."""
        return replace(self, taken=False, reason=reason)


class SelectionReport(tuple[WeightChoice, ...]):
    """Every parameter of a model with what became of it; prints as a table."""

    __slots__ = ()

    @property
    def taken(self) -> tuple[WeightChoice, ...]:
        """The parameters that are taken."""
        return tuple(choice for choice in self if choice.taken)

    def __str__(self) -> str:
        names = [shown(choice.name) for choice in self]
        width = max(map(len, names), default=0)
        return "\n".join(
            f"{'+' if choice.taken else '-'} {name:{width}}  {shown(choice.reason)}"
            for name, choice in zip(names, self, strict=True)
        )


def select_weights(
    model: nn.Module,
    pattern: Pattern | None,
    *,
    transposable: bool = True,
    layers: LayerFilter = None,
    skip_ends: bool = False,
    allow: Collection[Allowed] = (),
    layouts: Layouts = None,
    shared: bool = False,
    refuse: Callable[[WeightChoice], str] = lambda choice: "",
    named_by: str = "layers",
) -> SelectionReport:
    """Go through every parameter of `model`.

    Parameters
    ----------
    model : torch.nn.Module
    pattern : Pattern or None
        None takes matrices of every size, for masks without a pattern.
    transposable : bool, default True
        Whether rows and columns are to hold the pattern, or only the groups along the reduction axis.
    layers : str, iterable of str, callable or None
        Names or wildcards ("encoder.*") of parameters or of their modules, or a predicate of a parameter's name and
        its module; None stands for every parameter that can be taken.
    skip_ends : bool, default False
        Leave out the first and the last weight, in the order in which the modules were registered.
    allow : collection of {"grouped", "depthwise", "transposed"}
        Kinds of convolutions to take as well; of a grouped one, each group is a matrix.
    layouts : mapping of str to tuple of two int, optional
        Names or wildcards of parameters that no layer of torch knows, such as the experts of a mixture in one tensor,
        and the axes of their outputs and inputs: (1, 2) for a stack of matrices (E, out, in).
    shared : bool, default False
        Take a parameter that several modules hold, under its first name.
    refuse : callable, optional
        Why the caller cannot take a parameter that could be taken otherwise, or "" if it can.
    named_by : str, default "layers"
        What error messages call the argument that `layers` comes from.

    Returns
    -------
    SelectionReport
        At least one parameter is taken.

    Raises
    ------
    InvalidTypeError
        If `model` is not a module, or `layers` has none of these types.
    InvalidArgumentError
        If a name in `layers` matches no weight that can be taken, one in `layouts` no parameter that can have them, or
        no weight can be taken at all; the message says why.
    """
    refuse_other_than_module(model, "model")
    for kind in allow:
        if kind not in ALLOWED:
            raise unknown_choice("allow", kind, ALLOWED)
    owned = list(_owned(model))
    declared = _declared(layouts, [choice for choice, _ in owned])
    choices = [
        _judge(choice, _refuse_shared(choice, other, shared), pattern, transposable, allow, declared)
        for choice, other in owned
    ]
    reasons = [refuse(choice) if choice.taken else "" for choice in choices]
    choices = [choice.refused(reason) if reason else choice for choice, reason in zip(choices, reasons, strict=True)]
    choices = _filter(choices, layers, named_by)
    if skip_ends:
        taken = [index for index, choice in enumerate(choices) if choice.taken]
        for index in {*taken[:1], *taken[-1:]}:
            choices[index] = choices[index].refused("the first or the last weight, left out by `skip_ends`")
    if not any(choice.taken for choice in choices):
        listed = "; ".join(f"{choice.name}: {choice.reason}" for choice in choices[:8])
        raise InvalidArgumentError(
            f"`model` must have a weight that can take {repr(str(pattern)) if pattern else 'a mask'}, got none: "
            f"{listed or 'no parameters'}{' ...' if len(choices) > 8 else ''}. "
            f"Choose other layers{' or another pattern' if pattern else ''}."
        )
    return SelectionReport(choices)


def refuse_other_than_module(value: object, argument: str) -> None:
    """Raise InvalidTypeError unless `value` is a module."""
    if not isinstance(value, nn.Module):
        raise InvalidTypeError(f"`{argument}` must be a torch.nn.Module, got {type(value).__name__}.")


def untrainable(choice: WeightChoice) -> str:
    """Say why torch can neither train nor refit a parameter, or return "" if it can."""
    parameter = getattr(choice.module, choice.attribute)
    if parameter.is_inference():
        return "made under torch.inference_mode; make the model outside of it"
    if parameter.is_floating_point() and parameter.dtype.itemsize == 1:
        return f"of {parameter.dtype}, in which torch cannot compute; convert it with .to(torch.bfloat16)"
    return ""


def _owned(model: nn.Module) -> Iterator[tuple[WeightChoice, list[str]]]:
    """Yield every parameter, as taken for now, and all of its names."""
    owners: dict[int, list[str]] = {}
    entries = []
    for module_name, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{module_name}.{attribute}" if module_name else attribute
            owners.setdefault(id(parameter), []).append(name)
            shape = () if is_lazy(parameter) else tuple(parameter.shape)
            entries.append((WeightChoice(name, shape, True, "", module, attribute, None), id(parameter)))
    for choice, key in entries:
        yield choice, owners[key]


def _declared(layouts: Layouts, choices: list[WeightChoice]) -> dict[str, Layout]:
    """Return the layouts that the caller declares, by parameter."""
    if not isinstance(layouts, Mapping | None):
        raise InvalidTypeError(
            f"`layouts` must be a mapping from names to axes, got {layouts!r}. Such as {{'experts.up': (1, 2)}}."
        )
    found: dict[str, Layout] = {}
    for pattern, axes in (layouts or {}).items():
        if not (isinstance(axes, tuple | list) and len(axes) == 2 and all(type(axis) is int for axis in axes)):
            raise InvalidTypeError(
                f"`layouts` must map names to two axes, such as (1, 2), got {axes!r} for {pattern!r}."
            )
        hits = [choice for choice in choices if matches(pattern, choice.name)]
        if not hits:
            raise InvalidArgumentError(_nothing_found(pattern, hits, choices, "layouts"))
        layouts_of_hits = {hit.name: declared_layout((axes[0], axes[1]), hit.shape, hit.name) for hit in hits}
        known = [layout_of(hit.module, hit.attribute, declared=layouts_of_hits[hit.name]) for hit in hits]
        if not any(isinstance(layout, Layout) and layout.declared for layout in known):
            why = known[0] if isinstance(known[0], str) else f"the layout of a {type(hits[0].module).__name__} is known"
            raise InvalidArgumentError(
                f"`layouts` must name weights that no layer of torch holds, got {pattern!r}: {hits[0].name}: {why}. "
                "Leave it out."
            )
        found |= layouts_of_hits
    return found


def _refuse_shared(choice: WeightChoice, names: list[str], shared: bool) -> str:
    """Say why a parameter is not taken under this of its names, or return "" if it is."""
    if shared:
        return "" if choice.name == names[0] else f"the same weight as {names[0]}"
    return next((f"shared with {name}" for name in names if name != choice.name), "")


def _judge(
    choice: WeightChoice,
    shared: str,
    pattern: Pattern | None,
    transposable: bool,
    allow: Collection[Allowed],
    declared: Mapping[str, Layout],
) -> WeightChoice:
    """Decide on one parameter, whatever `layers` says."""
    parameter = getattr(choice.module, choice.attribute)
    if _ADAPTER.search(choice.name):
        return choice.refused("a low-rank adapter: merge it first")
    if is_lazy(parameter):
        return choice.refused("not initialised yet; run a forward first")
    layout = layout_of(choice.module, choice.attribute, allow=allow, declared=declared.get(choice.name))
    if isinstance(layout, str):
        return choice.refused(layout)
    if shared:
        return choice.refused(shared)
    if parameter.is_meta:
        return choice.refused("on the meta device, without values")
    sides = layout.sides(choice.shape)
    longest = max(sides) if transposable else sides[layout.reduction]
    size = f"{sides[0]} x {sides[1]}"
    if parameter.numel() == 0 and pattern is None:
        return choice.refused("without an entry")
    if pattern is not None and (pattern.n == pattern.m or longest <= pattern.n or parameter.numel() == 0):
        return choice.refused(f"{pattern} would keep every entry of {size} matrices")
    stack = math.prod(layout.batch(choice.shape))
    reason = f"{pattern or 'a mask'} on {f'{stack} matrices' if stack > 1 else 'a matrix'} of {size}"
    return replace(choice, reason=reason, layout=layout)


def _filter(choices: list[WeightChoice], layers: LayerFilter, argument: str) -> list[WeightChoice]:
    """Refuse what `layers` does not name, and raise if one of its names matches nothing."""
    if layers is None:
        return choices
    if callable(layers):
        asked = {choice.name for choice in choices if choice.taken and layers(choice.name, choice.module)}
    else:
        asked = set()
        if not isinstance(layers, Iterable):
            raise InvalidTypeError(
                f"`{argument}` must be names, wildcards or a callable, got {layers!r}. "
                "Leave it out to take every layer."
            )
        for pattern in [layers] if isinstance(layers, str) else layers:
            if not isinstance(pattern, str):
                raise InvalidTypeError(
                    f"`{argument}` must hold strings, got {pattern!r}. Pass names, wildcards or a callable."
                )
            hits = [choice for choice in choices if matches(pattern, choice.name)]
            if not any(choice.taken for choice in hits):
                raise InvalidArgumentError(_nothing_found(pattern, hits, choices, argument))
            asked.update(choice.name for choice in hits)
    return [
        choice.refused(f"not in `{argument}`") if choice.taken and choice.name not in asked else choice
        for choice in choices
    ]


def matches(pattern: str, name: str) -> bool:
    """Tell whether a name or wildcard matches a parameter or a module that holds it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def _nothing_found(pattern: str, hits: list[WeightChoice], choices: list[WeightChoice], argument: str) -> str:
    """Say why a name matches no weight."""
    if hits:
        why = "; ".join(f"{choice.name}: {choice.reason}" for choice in hits[:4])
        return f"`{argument}` must name weights that can be taken, got {pattern!r}: {why}. Leave it out."
    close = difflib.get_close_matches(pattern, [choice.name for choice in choices], n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}?" if close else "model.named_parameters() lists the names."
    return f"`{argument}` must name parameters or modules of the model, got {pattern!r}, which matches none. {hint}"
