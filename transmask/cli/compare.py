"""``transmask compare``: the solvers side by side on the blocks of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidArgumentError, MissingDependencyError, SolverError, UnsupportedPatternError
from ..tables import Column
from ._figure import check_plot, save_plot
from ._options import (
    AxesOption,
    ConstraintOption,
    ExcludeOption,
    IncludeOption,
    JsonOption,
    PatternOption,
    ThreadsOption,
    axes_by_name,
)
from ._output import count, gap, percent, print_json, print_line, print_table, seconds
from ._progress import TensorProgress

if TYPE_CHECKING:
    from ..blocks import Array
    from ..pattern import Constraint, Pattern
    from ..solvers import Solver

__all__ = ["compare"]

COLUMNS = (
    Column("solver", "solver"),
    Column("kept_fraction", "kept", percent, right=True),
    Column("gap", "proven gap", right=True),
    Column("seconds", "time", seconds, right=True),
    Column("blocks_per_second", "blocks/s", count, right=True),
)
LEFT_OUT = (Column("solver", "left out"), Column("reason", "reason"))


def compare(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `transmask prune` takes.")],
    pattern: PatternOption,
    solver: Annotated[
        list[str] | None,
        typer.Option("--solver", metavar="NAME", help="May be repeated. Default: every solver that takes the pattern."),
    ] = None,
    constraint: ConstraintOption = "exactly",
    sample: Annotated[
        int,
        typer.Option("--sample", metavar="N", help="How many blocks to solve, from 1 on, spread evenly over the file."),
    ] = 2000,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT", help="Draw gap against time, as .png, .svg or .pdf.")
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    axes: AxesOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare solvers on blocks of FILE: weight kept, proven gap, time.

    Every solver gets the same blocks, and one untimed block before them, on which it compiles. Blocks that an edge cuts
    are skipped.
    """
    from ..checkpoint import plan_pruning, sample_blocks

    if plot is not None:
        check_plot(plot)
    if sample < 1:
        raise InvalidArgumentError(f"`sample` must be at least 1, got {sample}.")
    rules = axes_by_name(axes)
    plan = plan_pruning(file, pattern, constraint=constraint, include=include, exclude=exclude, axes=rules)
    workers, left_out = _workers(solver, plan.pattern, plan.constraint)
    blocks, n_all = sample_blocks(plan, sample)
    rows = []
    purpose = "" if as_json else str(plan.pattern)
    with TensorProgress(blocks.size * len(workers), len(workers), compiling=purpose) as progress:
        for worker in workers:
            progress.begin(worker.info.name)
            try:
                rows.append(_row(worker, blocks, pattern, constraint, threads))
                outcome = seconds(rows[-1]["seconds"])
            except SolverError as error:
                if solver:
                    raise
                left_out.append({"solver": worker.info.name, "reason": str(error)})
                outcome = "left out"
            progress.advance(worker.info.name, blocks.size, outcome)
    if plot is not None:
        from ..plotting import plot_solver_quality

        save_plot(lambda ax: plot_solver_quality(rows, ax), plot, inputs=plan.checkpoint.files)
    report = {
        "file": str(file),
        "pattern": str(plan.pattern),
        "constraint": plan.constraint,
        "blocks": len(blocks),
        "blocks_in_file": n_all,
        "solvers": rows,
        "left_out": left_out,
        "plot": None if plot is None else str(plot),
    }
    if as_json:
        print_json(report)
    else:
        _print_report(report)


def _workers(
    names: list[str] | None, pattern: Pattern, constraint: Constraint
) -> tuple[list[Solver], list[dict[str, str]]]:
    """Make the solvers; one that was not asked for by name may refuse, and its reason is reported."""
    from ..solvers import as_solver, list_solvers

    workers, left_out = [], []
    for name in dict.fromkeys(names or [info.name for info in list_solvers()]):
        try:
            worker = as_solver(name, pattern, constraint)
            worker.check(pattern, constraint)
        except (UnsupportedPatternError, MissingDependencyError) as error:
            if names:
                raise
            left_out.append({"solver": name, "reason": str(error)})
        else:
            workers.append(worker)
    return workers, left_out


def _row(worker: Solver, blocks: Array, pattern: str, constraint: str, threads: int | None) -> dict[str, Any]:
    """Solve all blocks with one solver."""
    from ..masks import solve

    solve(blocks[:1], pattern, constraint=constraint, solver=worker, threads=threads)
    result = solve(blocks, pattern, constraint=constraint, solver=worker, threads=threads)
    return {
        "solver": worker.info.name,
        "constraint": result.constraint,
        "kept_fraction": result.kept / result.total if result.total else 1.0,
        "gap": result.gap,
        "unproven_blocks": result.unproven,
        "status": result.status.value,
        "seconds": result.seconds,
        "blocks_per_second": result.n_blocks / result.seconds,
    }


def _notes(names: list[str]) -> list[str]:
    """Say what tells the masks of approximations from each other."""
    from ..solvers import list_solvers

    infos = [info for info in list_solvers() if info.name in names and info.guarantee != "exact"]
    return [f"{info.name}: {info.note}" for info in infos if info.note]


def _print_report(report: dict[str, Any]) -> None:
    """Print the table, and what it was measured on."""
    print_table([row | {"gap": gap(row["gap"], row["unproven_blocks"])} for row in report["solvers"]], COLUMNS)
    if report["left_out"]:
        print_line()
        print_table(report["left_out"], LEFT_OUT)
    notes = _notes([row["solver"] for row in report["solvers"]])
    if notes:
        print_line()
        for note in notes:
            print_line(note)
    print_line()
    rule = f"{report['pattern']} {report['constraint'].replace('_', ' ')}"
    print_line(f"{rule}, on {count(report['blocks'])} of {count(report['blocks_in_file'])} blocks of {report['file']}")
    if report["plot"] is not None:
        print_line(f"wrote {report['plot']}")
