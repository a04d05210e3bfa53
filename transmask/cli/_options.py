"""Options that several commands share, each spelled and explained once."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

__all__ = [
    "ConstraintOption",
    "ExcludeOption",
    "IncludeOption",
    "JsonOption",
    "PatternOption",
    "SolverOption",
    "ThreadsOption",
]

PatternOption: TypeAlias = Annotated[
    str, typer.Option("--pattern", "-p", metavar="N:M", help="N entries kept of every M, such as 2:4.")
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
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
