"""``transmask demo``: prune a small trained network that ships with the package, and show what it costs."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checkpoint.formats import listed_suffixes
from ..errors import SolverError, UnsupportedPatternError
from ..pattern import CONSTRAINTS
from ..tables import Column
from ._options import JsonOption, PatternOption, ThreadsOption
from ._output import gap, percent, print_json, print_line, print_lines, print_table, seconds
from ._progress import TensorProgress

if TYPE_CHECKING:
    from ..demo import Demo

__all__ = ["demo"]

ONE_CALL_A_BLOCK = ("network_simplex", "milp")
"""Reference solvers that call a library for every block, which takes seconds: run only on request."""

COLUMNS = (
    Column("solver", "solver"),
    Column("constraint", "constraint", lambda constraint: constraint or "rows only"),
    Column("kept_fraction", "kept weight", percent, right=True),
    Column("gap", "proven gap", right=True),
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
    from ..demo import Demo

    network = Demo(pattern)
    rows, left_out = _run(network, solver, threads, compiling="" if as_json else str(network.pattern))
    report = {
        "pattern": str(network.pattern),
        "checkpoint": str(DIGITS),
        "images": network.n_images,
        "dense_accuracy": network.dense_accuracy,
        "pruned": network.pruned,
        "skipped": [{"name": name, "reason": reason} for name, reason in network.skipped],
        "solvers": rows,
        "left_out": left_out,
        "block": network.draw_block(),
    }
    if as_json:
        print_json(report)
    else:
        _print_report(report)


def _run(
    network: Demo, names: list[str] | None, threads: int | None, *, compiling: str
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Measure solver after solver; one that was not asked for by name may refuse, and its reason is reported."""
    from ..solvers import list_solvers

    answers = {info.name: info.constraints for info in list_solvers()}
    chosen = dict.fromkeys(names or [name for name in answers if name not in ONE_CALL_A_BLOCK])
    runs = [(name, limit) for limit in CONSTRAINTS for name in chosen if limit in answers.get(name, CONSTRAINTS)]
    rows, left_out = [asdict(network.plain())], []
    with TensorProgress(len(runs) * network.n_weights, len(runs), compiling=compiling) as progress:
        for name, constraint in runs:
            label = f"{name}, {constraint}"
            progress.begin(label)
            try:
                rows.append(asdict(network.prune(name, constraint, threads=threads)))
                outcome = seconds(rows[-1]["seconds"])
            except (UnsupportedPatternError, SolverError) as error:
                if names:
                    raise
                left_out.append({"solver": name, "constraint": constraint, "reason": str(error)})
                outcome = "left out"
            progress.advance(label, network.n_weights, outcome)
    return rows, left_out


def _gap(row: dict[str, Any]) -> str:
    """Format the gap of a row; the plain mask has none."""
    return "-" if row["gap"] is None else gap(row["gap"], row["unproven_blocks"])


def _print_report(report: dict[str, Any]) -> None:
    """Print the table, a block, and what to do next."""
    right, images, names = percent(report["dense_accuracy"]), report["images"], ", ".join(report["pruned"])
    print_line(f"A network that reads digits of 8 x 8 pixels, {right} of {images} images it has never seen.")
    print_line(f"{names} pruned to {report['pattern']}, without any training afterwards:")
    print_line()
    print_table([row | {"gap": _gap(row)} for row in report["solvers"]], COLUMNS)
    for name, reason in {item["solver"]: item["reason"] for item in reversed(report["left_out"])}.items():
        print_line(f"{name} was left out: {reason}")
    print_line()
    print_line("The first block of fc1.weight, in percent of its largest magnitude; kept entries in brackets:")
    print_line()
    print_lines(report["block"])
    print_line()
    print_line(f"This writes such a network; any {listed_suffixes()} file will do in its place:")
    checkpoint = shlex.quote(report["checkpoint"])
    print_line(f"transmask prune {checkpoint} -o pruned.safetensors --pattern {report['pattern']}")
