"""Which weights of a model get masks, and by which rule: one pattern for all, or one for each that is named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TypeAlias

from torch import nn

from ..errors import InvalidArgumentError
from ..pattern import PatternLike
from ..solvers import Solver
from .layouts import Allowed
from .mask_rule import MaskRule
from .selection import LayerFilter, Layouts, WeightChoice, select_weights

__all__ = ["Choices", "Patterns", "choose_weights"]

Choices: TypeAlias = list[tuple[WeightChoice, MaskRule]]
"""Every parameter of a model, taken or not, with the rule for its mask."""

Patterns: TypeAlias = PatternLike | Mapping[str, PatternLike]
"""A pattern, or patterns by names or wildcards of parameters or of their modules; of two that match, the later one."""


def choose_weights(
    model: nn.Module,
    patterns: Patterns,
    options: tuple[bool, str, str | Solver],
    *,
    layers: LayerFilter,
    skip_ends: bool,
    allow: Collection[Allowed],
    layouts: Layouts,
    refuse: Callable[[WeightChoice], str],
    shared: bool = False,
) -> Choices:
    """Pair every parameter with the rule for its mask, in the order of the model.

    Parameters
    ----------
    model, layers, skip_ends, allow, layouts, refuse, shared
        As in `select_weights`.
    patterns : Pattern, str, tuple of two int, or mapping of str to those
        A mapping leaves out what it does not name.
    options : tuple
        `transposable`, `constraint` and `solver` of every rule.

    Returns
    -------
    list of (WeightChoice, MaskRule)

    Raises
    ------
    InvalidTypeError, InvalidArgumentError, UnsupportedPatternError
        If an argument cannot be used, or no weight can take its pattern.
    """
    select = partial(
        select_weights, model, transposable=options[0], allow=allow, layouts=layouts, refuse=refuse, shared=shared
    )
    if not isinstance(patterns, Mapping):
        rule = MaskRule.of(patterns, *options)
        return [(choice, rule) for choice in select(rule.pattern, layers=layers, skip_ends=skip_ends)]
    if layers is not None or skip_ends:
        raise InvalidArgumentError("`layers` and `skip_ends` must be left out where `pattern` names the weights.")
    if not patterns:
        raise InvalidArgumentError("`pattern` must name at least one weight, got an empty mapping.")
    rules = {name: MaskRule.of(value, *options) for name, value in patterns.items()}
    chosen: dict[str, tuple[WeightChoice, MaskRule]] = {}
    for name, rule in rules.items():
        for choice in select(rule.pattern, layers=[name], named_by="pattern"):
            if choice.taken or choice.name not in chosen:
                chosen[choice.name] = choice, rule
    return list(chosen.values())
