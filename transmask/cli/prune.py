"""``transmask prune``: write a checkpoint in which every matrix and its transpose hold N:M."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checkpoint.formats import listed_suffixes
from ..errors import InvalidArgumentError
from ..tables import Column
from ..threads import resolve_threads
from ._options import (
    AxesOption,
    ConstraintOption,
    ExcludeOption,
    IncludeOption,
    JsonOption,
    PatternsOption,
    RecipeOption,
    SolverOption,
    ThreadsOption,
    axes_by_name,
    given_recipe,
)
from ._output import DONE, count, gap, percent, print_json, print_line, print_table, seconds, shape, things
from ._patterns import listed_patterns, only_pattern, with_patterns
from ._progress import TensorProgress

if TYPE_CHECKING:
    from ..checkpoint import PrunedTensor, PrunePlan, TensorInfo
    from ..checkpoint.outcome import Progress

__all__ = ["prune"]

PRUNED = (
    Column("name", "pruned"),
    Column("shape", "shape", shape),
    Column("kept_fraction", "kept", percent, right=True),
    Column("gap", "gap", right=True),
    Column("seconds", "time", seconds, right=True),
)
PLANNED = (*PRUNED[:2], Column("dtype", "dtype"), Column("axes", "matrix axes", lambda axes: f"{axes[0]}, {axes[1]}"))
SKIPPED = (
    Column("name", "skipped"),
    Column("shape", "shape", shape),
    Column("dtype", "dtype"),
    Column("reason", "reason"),
)


def prune(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help=f"A {listed_suffixes()} file, the index.json of shards, or a model folder."
        ),
    ],
    pattern: PatternsOption = None,
    recipe: RecipeOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="OUT", help="The new checkpoint; for shards and model folders, a new folder."
        ),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option("--masks", metavar="FILE", help="Write the masks too, packed, as .safetensors.")
    ] = None,
    apply: Annotated[
        bool, typer.Option(help="Write zeros in place of pruned weights, or only the masks (--no-apply --masks FILE).")
    ] = True,
    constraint: ConstraintOption = "exactly",
    solver: SolverOption = "auto",
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    axes: AxesOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the arguments and list what would be pruned, but write nothing.")
    ] = False,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> int:
    """Prune MODEL so that each matrix and its transpose keep N of every M, with a proof of how good each mask is.

    Every floating-point tensor with at least two axes is pruned if its matrix has at least M rows and M columns, except
    embeddings, norms, biases, quantisation scales, routers, LoRA adapters, buffers, and states or tokens that are
    themselves parameters: these are recognised by name and skipped. Which axes form a matrix is told by name, shape and
    metadata, as torch, MLX, JAX and others lay it out; a tensor that leaves a doubt is skipped, and --axes decides. The
    outputs appear complete or not at all; existing files are replaced. Of a model folder all other files are copied.
    """
    from ..checkpoint import plan_pruning, prune_checkpoint

    n_threads = resolve_threads(threads)
    if not dry_run or output is not None or masks is not None:
        if output is None and apply:
            raise InvalidArgumentError(
                "`--output` must be given. To write the masks alone, use --masks with --no-apply."
            )
        if masks is None and not apply:
            raise InvalidArgumentError("`--masks` must be given with --no-apply. Nothing else would be written.")
    wanted = given_recipe(pattern, recipe)
    if wanted is None:
        raise InvalidArgumentError("`--pattern` must be given, or --recipe. For example -p 2:4.")
    for one in wanted.patterns:
        if one.n == 0:
            raise InvalidArgumentError(
                f"`--pattern` must keep at least 1 entry of every M, got '{one}'. It would set every weight to zero."
            )
    began = time.perf_counter()
    plan = plan_pruning(
        model,
        wanted,
        constraint=constraint,
        solver=solver,
        include=include,
        exclude=exclude,
        axes=axes_by_name(axes),
    )
    outcomes: list[PrunedTensor] = []
    if dry_run:
        plan.check_outputs(output, masks=masks, apply=apply)
    else:
        purpose = "" if as_json else listed_patterns(plan.patterns)
        with TensorProgress(plan.n_weights, len(plan.axes), compiling=purpose) as progress:
            outcomes = prune_checkpoint(
                plan, output, masks=masks, apply=apply, threads=n_threads, progress=_shown_on(progress)
            )
    report = {
        "model": str(model),
        "output": None if output is None or dry_run else str(output),
        "masks": None if masks is None or dry_run else str(masks),
        "pattern": only_pattern(plan.patterns),
        "constraint": plan.constraint,
        "solver": plan.record.solver,
        "dry_run": dry_run,
        "pruned": _planned(plan) if dry_run else [_outcome(outcome) for outcome in outcomes],
        "skipped": _skipped(plan),
        "summary": None if dry_run else _summary(outcomes) | {"wall_seconds": time.perf_counter() - began},
    }
    if as_json:
        print_json(report)
    else:
        _print_report(report, listed_patterns(plan.patterns))
    return DONE


def _shown_on(progress: TensorProgress) -> Progress:
    """Show the library's progress calls on `progress`."""

    def show(tensor: TensorInfo, outcome: PrunedTensor | None) -> None:
        if outcome is None:
            progress.begin(tensor.name)
        else:
            row = _outcome(outcome)
            proven = gap(row["gap"], row["unproven_blocks"])
            words = f"kept {percent(row['kept_fraction'])}, gap {proven}, {seconds(row['seconds'])}"
            progress.advance(tensor.name, tensor.size, words)

    return show


def _planned(plan: PrunePlan) -> list[dict[str, Any]]:
    """List what would be pruned."""
    return [
        _tensor(chosen.tensor) | {"pattern": str(plan.patterns[chosen.tensor.name]), "axes": list(chosen.axes)}
        for chosen in plan.selections
        if chosen.axes is not None
    ]


def _skipped(plan: PrunePlan) -> list[dict[str, Any]]:
    """List what is not pruned, and why."""
    return [_tensor(skip.tensor) | {"reason": skip.reason} for skip in plan.selections if skip.axes is None]


def _tensor(tensor: TensorInfo) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}


def _outcome(outcome: PrunedTensor) -> dict[str, Any]:
    """Describe what became of a tensor."""
    return _tensor(outcome.tensor) | {
        "pattern": str(outcome.pattern),
        "axes": list(outcome.axes),
        "kept": outcome.kept,
        "total": outcome.total,
        "kept_fraction": outcome.kept / outcome.total if outcome.total else 1.0,
        "upper_bound": outcome.upper_bound,
        "gap": outcome.gap,
        "unproven_blocks": outcome.unproven,
        "blocks": outcome.n_blocks,
        "seconds": outcome.seconds,
    }


def _summary(outcomes: list[PrunedTensor]) -> dict[str, Any]:
    """Add up the tensors."""
    from ..certificate import relative_gap

    kept, total, bound = (
        math.fsum(getattr(outcome, name) for outcome in outcomes) for name in ("kept", "total", "upper_bound")
    )
    return {
        "tensors": len(outcomes),
        "weights": sum(outcome.tensor.size for outcome in outcomes),
        "kept_fraction": kept / total if total else 1.0,
        "gap": relative_gap(kept, bound),
        "worst_gap": max(outcome.gap for outcome in outcomes),
        "unproven_blocks": sum(outcome.unproven for outcome in outcomes),
        "solver_seconds": math.fsum(outcome.seconds for outcome in outcomes),
    }


def _print_report(report: dict[str, Any], patterns: str) -> None:
    """Print tables and a summary."""
    summary = report["summary"]
    if summary is None:
        print_table(report["pruned"], with_patterns(PLANNED, report["pruned"]))
    else:
        rows = [row | {"gap": gap(row["gap"], row["unproven_blocks"])} for row in report["pruned"]]
        print_table(rows, with_patterns(PRUNED, rows))
    if report["skipped"]:
        print_line()
        print_table(report["skipped"], SKIPPED)
    print_line()
    solver = report["solver"] or "several"
    rule = f"{patterns} {report['constraint'].replace('_', ' ')}, solver {solver}"
    if summary is None:
        n_weights = sum(math.prod(row["shape"]) for row in report["pruned"])
        would = f"would prune {things(len(report['pruned']), 'tensor')}, {count(n_weights)} weights"
        print_line(f"{would}, {rule}; nothing written")
        return
    print_line(f"pruned {things(summary['tensors'], 'tensor')}, {count(summary['weights'])} weights, {rule}")
    print_line(f"kept   {percent(summary['kept_fraction'])} of the sum of magnitudes")
    in_all, worst = (gap(summary[key], summary["unproven_blocks"]) for key in ("gap", "worst_gap"))
    print_line(f"gap    {in_all} in all, {worst} in the worst tensor")
    print_line(f"time   {seconds(summary['wall_seconds'])}, of which the solver {seconds(summary['solver_seconds'])}")
    for key in ("output", "masks"):
        if report[key] is not None:
            print_line(f"wrote  {report[key]}")
