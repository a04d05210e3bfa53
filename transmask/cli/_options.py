"""Options that several commands share, each spelled and explained once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ..errors import InvalidArgumentError

if TYPE_CHECKING:
    from ..checkpoint import Recipe

__all__ = [
    "AxesOption",
    "ConstraintOption",
    "ExcludeOption",
    "IncludeOption",
    "JsonOption",
    "PatternOption",
    "PatternsOption",
    "RecipeOption",
    "SolverOption",
    "ThreadsOption",
    "axes_by_name",
    "given_recipe",
]

PatternOption: TypeAlias = Annotated[
    str, typer.Option("--pattern", "-p", metavar="N:M", help="N entries kept of every M, such as 2:4.")
]
PatternsOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--pattern",
        "-p",
        metavar="[RE=]N:M",
        help="N entries kept of every M, such as 2:4. May be repeated, with a regular expression for the names of the "
        "tensors that it is for: --pattern 2:4 --pattern 'mlp=4:8'.",
    ),
]
RecipeOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="FILE", help="A TOML file with the patterns, instead of --pattern."),
]
ConstraintOption: TypeAlias = Annotated[
    str,
    typer.Option("--constraint", metavar="NAME", help="Keep 'exactly' N in every row and column, or 'at_most' N."),
]
SolverOption: TypeAlias = Annotated[
    str, typer.Option("--solver", metavar="NAME", help="A name from `transmask solvers`; 'auto' is exact.")
]
ThreadsOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="K",
        help="From 1 on; above 1024 counts as 1024. Default: TRANSMASK_NUM_THREADS, else every core.",
    ),
]
IncludeOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--include", metavar="RE", help="Take only tensors whose name matches, even embeddings and norms."),
]
ExcludeOption: TypeAlias = Annotated[
    str | None, typer.Option("--exclude", metavar="RE", help="Skip tensors whose name matches.")
]
AxesOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--axes",
        metavar="RE=I,J",
        help="The axes that form the matrices of tensors whose name matches, such as 'experts=1,2'; repeatable.",
    ),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]


def axes_by_name(options: list[str] | None) -> dict[str, tuple[int, int]]:
    """Parse the values of --axes.

    Raises
    ------
    InvalidArgumentError
        If one does not read RE=I,J, or two have the same expression.
    """
    rules: dict[str, tuple[int, int]] = {}
    for option in options or ():
        expression, _, pair = option.rpartition("=")
        match = re.fullmatch(r"\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*", pair, re.ASCII)
        if not expression or match is None:
            raise InvalidArgumentError(
                f"`--axes` must be a regular expression, = and two axes, got {option!r}. Such as 'experts=1,2'."
            )
        if expression in rules:
            raise InvalidArgumentError(f"`--axes` must have one rule for a tensor, got two for {expression!r}.")
        rules[expression] = (int(match[1]), int(match[2]))
    return rules


def given_recipe(patterns: list[str] | None, file: Path | None) -> Recipe | None:
    """Read what `PatternsOption` or `RecipeOption` gives; None if neither is there."""
    from ..checkpoint import Recipe

    if file is not None and patterns:
        raise InvalidArgumentError("`--recipe` must not be given with --pattern. Write all patterns in one place.")
    if file is not None:
        return Recipe.read(file)
    return Recipe.parse(patterns) if patterns else None
