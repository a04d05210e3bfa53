"""``transmask demo``: prune a small trained network that ships with the package, and show what it costs."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import Annotated, Any

import typer

from ._options import JsonOption, PatternOption, ThreadsOption
from ._output import Column, gap, percent, print_json, print_line, print_table, seconds

__all__ = ["demo"]

COLUMNS = (
    Column("solver", "solver"),
    Column("constraint", "constraint", lambda constraint: constraint or "rows only"),
    Column("kept", "kept weight", percent, right=True),
    Column("gap", "proven gap", lambda value: "-" if value is None else gap(value), right=True),
    Column("seconds", "time", lambda value: "-" if value is None else seconds(value), right=True),
    Column("accuracy", "accuracy", percent, right=True),
    Column("transposable", "W.T sparse too", lambda holds: "yes" if holds else "no"),
)


def demo(
    *,
    pattern: PatternOption = "2:4",
    solver: Annotated[
        list[str] | None,
        typer.Option("--solver", metavar="NAME", help="A name from `transmask solvers`; may be repeated."),
    ] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prune a small trained network with several solvers: kept weight, proven gap, time, accuracy."""
    from ..data import DIGITS
    from ..demo import run_demo

    found = run_demo(pattern, solvers=solver or (), threads=threads)
    rows = [asdict(row) for row in found.rows]
    if as_json:
        record: dict[str, Any] = asdict(found) | {"pattern": str(found.pattern), "checkpoint": str(DIGITS)}
        record["dense"] = dict(found.dense)
        record["refused"] = [dict(zip(("solver", "constraint", "reason"), item, strict=True)) for item in found.refused]
        print_json(record)
        return
    print_line(f"A network that reads digits of 8 x 8 pixels: {percent(found.dense_accuracy)} of {found.images} images")
    print_line(f"it was never shown. {', '.join(found.pruned)} pruned to {found.pattern},")
    print_line("without any training afterwards:")
    print_line()
    print_table(rows, COLUMNS)
    for name, reason in {name: reason for name, _, reason in reversed(found.refused)}.items():
        print_line(f"{name} was left out: {reason}")
    print_line()
    print_line("The first block of fc1.weight, in percent of its largest magnitude; what is kept stands in brackets:")
    print_line()
    print_line(found.block)
    print_line()
    print_line("This writes such a network; any .safetensors, .npz or .npy file will do in its place:")
    print_line(f"transmask prune {shlex.quote(str(DIGITS))} -o pruned.safetensors --pattern {found.pattern}")
