"""``transmask check``: tell whether the matrices of a checkpoint are N:M sparse in rows and in columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..tables import Column
from ._options import (
    AxesOption,
    ExcludeOption,
    IncludeOption,
    JsonOption,
    PatternsOption,
    RecipeOption,
    axes_by_name,
    given_recipe,
)
from ._output import CHECK_FAILED, DONE, percent, print_json, print_line, print_table, shape, things
from ._patterns import listed_patterns, only_pattern, with_patterns
from ._progress import TensorProgress

if TYPE_CHECKING:
    from ..checkpoint import CheckedTensor

__all__ = ["check"]

COLUMNS = (
    Column("name", "tensor"),
    Column("shape", "shape", shape),
    Column("density", "kept", percent, right=True),
    Column("row_violations", "bad rows", right=True),
    Column("column_violations", "bad columns", right=True),
)


def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `transmask prune` takes, or a masks file.")],
    pattern: PatternsOption = None,
    recipe: RecipeOption = None,
    constraint: Annotated[
        str,
        typer.Option(
            "--constraint",
            metavar="NAME",
            help="'at_most' is what hardware asks for. With 'exactly', a kept weight that is zero counts as pruned.",
        ),
    ] = "at_most",
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    axes: AxesOption = None,
    as_json: JsonOption = False,
) -> int:
    """Check that every matrix in FILE and its transpose keep at most N of every M; exit with 1 if one does not.

    Checks the tensors that FILE says were pruned, along the axes it names; if it says nothing, those that `transmask
    prune` would take. Without --pattern each has to hold the pattern that FILE says.
    """
    from ..checkpoint import plan_check

    wanted = given_recipe(pattern, recipe)
    plan = plan_check(file, wanted, constraint=constraint, include=include, exclude=exclude, axes=axes_by_name(axes))
    rows = []
    with TensorProgress(sum(map(plan.size, plan.axes)), len(plan.axes)) as progress:
        for name in plan.axes:
            progress.begin(name)
            rows.append(_row(plan.check(name)))
            progress.advance(name, plan.size(name), rows[-1]["first_offender"] or "ok")
    bad = [row for row in rows if not row["ok"]]
    if as_json:
        print_json(
            {
                "file": str(file),
                "pattern": only_pattern(plan.patterns),
                "constraint": plan.constraint,
                "ok": not bad,
                "tensors": rows,
            }
        )
        return CHECK_FAILED if bad else DONE
    print_table(rows, with_patterns(COLUMNS, rows))
    print_line()
    rule = f"{listed_patterns(plan.patterns)} {plan.constraint.replace('_', ' ')} in rows and columns"
    if bad:
        print_line(
            f"failed: {len(bad)} of {things(len(rows), 'tensor')} {'does' if len(bad) == 1 else 'do'} not hold {rule}"
        )
        print_line(f"first:  {bad[0]['name']}: {bad[0]['first_offender']}")
        return CHECK_FAILED
    print_line(f"ok: {things(len(rows), 'tensor')} {'holds' if len(rows) == 1 else 'hold'} {rule}")
    return DONE


def _row(checked: CheckedTensor) -> dict[str, Any]:
    """Describe what was found in a tensor."""
    report = checked.report
    return {
        "name": checked.name,
        "shape": list(checked.shape),
        "pattern": str(checked.pattern),
        "axes": list(checked.axes),
        "ok": report.ok,
        "density": report.density,
        "row_groups": report.row_groups,
        "row_violations": report.row_violations,
        "column_groups": report.column_groups,
        "column_violations": report.column_violations,
        "first_offender": report.first_offender,
    }
