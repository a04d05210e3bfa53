"""Which axes form a matrix, where a person says so: regular expressions on names, each with two axes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .._arguments import as_axis_pair
from ..errors import InvalidArgumentError, InvalidTypeError, TransmaskError

__all__ = ["AxesRules", "compiled"]


class AxesRules:
    """Rules from names to axes; each must decide for at least one tensor, and no two for the same.

    Parameters
    ----------
    axes : mapping of str to pair of int, or None
        Regular expressions, searched for in the names, and the axes they stand for; negative ones count from the end.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `axes` is no such mapping.
    """

    def __init__(self, axes: Mapping[str, Sequence[int]] | None) -> None:
        if axes is not None and not isinstance(axes, Mapping):
            raise InvalidTypeError(
                f"`axes` must be a mapping from regular expressions to two axes, got {type(axes).__name__}. "
                "Such as {'experts': (1, 2)}."
            )
        self._rules = []
        for expression, pair in (axes or {}).items():
            regex = compiled(expression, "axes")
            assert regex is not None
            try:
                self._rules.append((regex, as_axis_pair(pair)))
            except TransmaskError as error:
                raise type(error)(f"{error} It was given for {expression!r}.") from None
        self._used: set[str] = set()

    def axes_of(self, name: str, shape: tuple[int, ...], aliases: Sequence[str] = ()) -> tuple[int, int] | None:
        """Return the axes that a rule gives to a tensor, by any of its names; None if there is no rule.

        Raises
        ------
        InvalidArgumentError
            If two rules match, or the tensor has no such axes.
        """
        found = [(regex, pair) for regex, pair in self._rules if any(map(regex.search, (name, *aliases)))]
        if not found:
            return None
        if len(found) > 1:
            first, second = (regex.pattern for regex, _ in found[:2])
            raise InvalidArgumentError(
                f"`axes` must have one rule for a tensor, got {first!r} and {second!r}, which both match "
                f"{name!r}. Make one of them narrower."
            )
        [(regex, pair)] = found
        n_axes = len(shape)
        first_axis, second_axis = (axis % n_axes if -n_axes <= axis < n_axes else -1 for axis in pair)
        if min(first_axis, second_axis) < 0 or first_axis == second_axis:
            raise InvalidArgumentError(
                f"`axes` must name two different axes of {name!r}, whose shape is {shape}, "
                f"got {pair[0]},{pair[1]} for {regex.pattern!r}."
            )
        self._used.add(regex.pattern)
        return first_axis, second_axis

    def refuse_unused(self) -> None:
        """Raise InvalidArgumentError if a rule has decided for no tensor."""
        for regex, _ in self._rules:
            if regex.pattern not in self._used:
                raise InvalidArgumentError(
                    f"`axes` must match a tensor that can be pruned, got {regex.pattern!r}, which matches none. "
                    "`transmask prune --dry-run` lists them."
                )


def compiled(expression: str | None, argument: str) -> re.Pattern[str] | None:
    """Compile a regular expression given by the user; None stays None.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If it is not a regular expression.
    """
    if expression is None:
        return None
    if not isinstance(expression, str):
        raise InvalidTypeError(f"`{argument}` must be a regular expression, got {expression!r}.")
    try:
        return re.compile(expression)
    except re.error as error:
        raise InvalidArgumentError(
            f"`{argument}` must be a regular expression, got {expression!r}: {error}. Write a literal one with a \\."
        ) from None
