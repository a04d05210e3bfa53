r"""A recipe: which tensor of a checkpoint gets which pattern.

In a file it is TOML: the key ``pattern`` is for every tensor that no rule names, and may be missing; the table
``patterns`` holds the rules, regular expressions that are searched for in the tensors' names::

    pattern = "2:4"

    [patterns]
    'mlp\..*' = "4:8"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..errors import InvalidArgumentError, InvalidTypeError
from ..pattern import Pattern, PatternLike
from ._base import TensorInfo
from ._open import PathLike, as_path
from .selection import Selection, matching_names, select_tensors

__all__ = ["Recipe", "select_by_recipe"]


@dataclass(frozen=True, slots=True)
class Recipe:
    r"""A pattern for each tensor, by its name.

    Parameters
    ----------
    default : Pattern, str, tuple of two int or None, default None
        For the tensors that no rule names; None leaves them as they are.
    rules : mapping of str to Pattern, str or tuple of two int, optional
        From regular expressions, searched for in the names, to patterns. A name that two of them match is refused.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If there is neither a default nor a rule, or one of them cannot be used.

    Examples
    --------
    >>> recipe = Recipe("2:4", {r"mlp\.": "4:8"})
    >>> {name: str(pattern) for name, pattern in recipe.assign(["attn.q.weight", "mlp.up.weight"]).items()}
    {'attn.q.weight': '2:4', 'mlp.up.weight': '4:8'}
    """

    default: Pattern | None = None
    rules: Mapping[str, Pattern] = field(default_factory=dict)

    def __init__(self, default: PatternLike | None = None, rules: Mapping[str, PatternLike] | None = None) -> None:
        given = {} if rules is None else rules
        if not isinstance(given, Mapping):
            raise InvalidTypeError(
                f"`rules` must be a mapping from regular expressions to patterns, got {type(given).__name__}."
            )
        for expression in given:
            _check_expression(expression)
        if default is None and not given:
            raise InvalidArgumentError("`pattern` must be given, got no pattern and no rule. For example '2:4'.")
        object.__setattr__(self, "default", None if default is None else Pattern.of(default))
        object.__setattr__(self, "rules", {rule: Pattern.of(pattern) for rule, pattern in given.items()})

    @classmethod
    def of(cls, value: PatternLike | Recipe) -> Recipe:
        """Return a recipe as it is, and make one of a single pattern."""
        return value if isinstance(value, cls) else cls(Pattern.of(value))  # type: ignore[arg-type]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Recipe:
        r"""Read patterns as the command line takes them: "N:M" for all tensors, "RE=N:M" for those that RE names.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If there is none, two are for the same tensors, or one cannot be used.

        Examples
        --------
        >>> Recipe.parse(["2:4", r"mlp\..*=4:8"]).rules
        {'mlp\\..*': Pattern(n=4, m=8)}
        """
        default: str | None = None
        rules: dict[str, PatternLike] = {}
        for text in texts:
            expression, is_rule, pattern = text.rpartition("=")
            if is_rule and expression in rules:
                raise InvalidArgumentError(f"`pattern` must name {expression!r} once, got it twice.")
            if is_rule:
                rules[expression] = pattern
            elif default is not None:
                raise InvalidArgumentError(
                    f"`pattern` must be given once for all tensors, got {default!r} and {text!r}. "
                    f"Say which tensors one is for, such as 'mlp={text}'."
                )
            else:
                default = text
        return cls(default, rules)

    @classmethod
    def read(cls, path: PathLike) -> Recipe:
        """Read a recipe from a TOML file; the format is in the docstring of this module.

        Parameters
        ----------
        path : str or path-like

        Returns
        -------
        Recipe

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If `path` is not a path, or the file is not such a recipe; the message names the file.
        OSError
            If it cannot be read.
        """
        file = as_path(path, "recipe")
        try:
            fields = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"`recipe` must be TOML, got {str(file)!r}: {error}.") from None
        return cls._from_fields(fields, str(file))

    @classmethod
    def _from_fields(cls, fields: dict[str, Any], file: str) -> Recipe:
        """Make a recipe of what stands in a file."""
        unknown = [key for key in fields if key not in ("pattern", "patterns")]
        rules = fields.get("patterns", {})
        if unknown or not isinstance(rules, dict):
            raise InvalidArgumentError(
                f"`recipe` must have the keys 'pattern' and 'patterns' only, got {(unknown or ['patterns'])[0]!r} "
                f"{'' if unknown else 'that is no table '}in {file!r}. Rules stand in the table [patterns]."
            )
        try:
            return cls(fields.get("pattern"), rules)
        except (InvalidArgumentError, InvalidTypeError) as error:
            raise type(error)(f"`recipe` {file!r}: {error}") from None

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """Its different patterns, the default first."""
        first = [] if self.default is None else [self.default]
        return tuple(dict.fromkeys([*first, *self.rules.values()]))

    def assign(self, names: Iterable[str]) -> dict[str, Pattern]:
        """Give every name its pattern; names without one are left out.

        Parameters
        ----------
        names : iterable of str

        Returns
        -------
        dict of str to Pattern

        Raises
        ------
        InvalidArgumentError
            If two rules match a name, or a rule matches none.
        """
        patterns, idle = {}, set(self.rules)
        for name in names:
            rule = self._only_rule(name, self._rules_for(name))
            pattern = self.default if rule is None else self.rules[rule]
            idle.discard(rule or "")
            if pattern is not None:
                patterns[name] = pattern
        for rule in self.rules:
            if rule in idle:
                raise InvalidArgumentError(_names_nothing(rule, self.rules[rule]))
        return patterns

    def _rules_for(self, name: str) -> list[str]:
        """Return the rules that match a name."""
        return [rule for rule in self.rules if re.search(rule, name)]

    def _only_rule(self, name: str, rules: list[str]) -> str | None:
        """Return the rule for a name, if there is one."""
        if len(rules) > 1:
            first, second = (f"{rule!r} = {self.rules[rule]}" for rule in rules[:2])
            raise InvalidArgumentError(
                f"`pattern` must have one rule for each tensor, got {first} and {second} for {name!r}. "
                "Narrow one of them."
            )
        return rules[0] if rules else None


def select_by_recipe(
    tensors: Iterable[TensorInfo],
    recipe: Recipe,
    *,
    include: str | None = None,
    exclude: str | None = None,
    axes: Mapping[str, Sequence[int]] | None = None,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> tuple[tuple[Selection, ...], dict[str, Pattern]]:
    """Decide for every tensor whether it is pruned, and to which pattern.

    Parameters
    ----------
    tensors : iterable of TensorInfo
    recipe : Recipe
    include, exclude, axes, metadata
        See `select_tensors`.

    Returns
    -------
    selections : tuple of Selection
        One for each tensor, in their order.
    patterns : dict of str to Pattern
        By the name of each tensor that is pruned.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        As `select_tensors`. Or if two rules match the name of a tensor that could be pruned, or a rule matches none:
        those that `include` and `exclude` leave out count as matched.
    """
    tensors = tuple(tensors)
    # A selection may depend on other tensors: each pattern is asked about all of them.
    by_pattern = {
        pattern: select_tensors(tensors, pattern, include=include, exclude=exclude, axes=axes, metadata=metadata)
        for pattern in recipe.patterns
    }
    any_of_them = by_pattern[recipe.patterns[0]]
    selections, patterns = [], {}
    idle = dict.fromkeys(recipe.rules, "")
    for index, anyhow in enumerate(any_of_them):
        name = anyhow.tensor.name
        rules = recipe._rules_for(name)
        possible = [recipe.rules[rule] for rule in rules] or ([] if recipe.default is None else [recipe.default])
        options = [by_pattern[pattern][index] for pattern in possible]
        if not options and anyhow.axes is not None:
            anyhow = Selection(anyhow.tensor, None, "no pattern is given for it")
        chosen = next((option for option in options if option.axes is not None), options[0] if options else anyhow)
        selections.append(chosen)
        if chosen.axes is not None:
            rule = recipe._only_rule(name, rules)
            patterns[name] = possible[0]
            idle.pop(rule or "", None)
        for rule in rules:
            if rule in idle and (chosen.axes is not None or not idle[rule]):
                idle[rule] = f"{name}: {chosen.reason}"
                if not matching_names([name], include=include, exclude=exclude):
                    del idle[rule]  # it was the caller who left it out
    for rule, reason in idle.items():
        raise InvalidArgumentError(_names_nothing(rule, recipe.rules[rule], reason))
    return tuple(selections), patterns


def _check_expression(expression: object) -> None:
    """Refuse what is no regular expression."""
    try:
        re.compile(expression)  # type: ignore[call-overload]
    except (re.error, TypeError) as error:
        kind = InvalidTypeError if isinstance(error, TypeError) else InvalidArgumentError
        raise kind(f"`pattern` must have regular expressions as rules, got {expression!r}: {error}.") from None


def _names_nothing(rule: str, pattern: Pattern, reason: str = "") -> str:
    """Say that a rule is idle."""
    skipped = f"Skipped: {reason}." if reason else "No name matches."
    return f"`pattern` must name a tensor, got {rule!r} = {pattern}, which names none that can be pruned. {skipped}"
