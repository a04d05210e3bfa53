"""``transmask apply``: write zeros into a checkpoint where masks say so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..tables import Column
from ._options import JsonOption
from ._output import DONE, count, percent, print_json, print_line, print_table, shape, things
from ._progress import TensorProgress

if TYPE_CHECKING:
    from ..checkpoint import AppliedTensor, TensorInfo
    from ..checkpoint.applying import Progress

__all__ = ["apply"]

COLUMNS = (
    Column("name", "tensor"),
    Column("shape", "shape", shape),
    Column("pattern", "pattern", lambda pattern: pattern or "its own mask"),
    Column("density", "kept", percent, right=True),
    Column("zeroed", "zeroed", count, right=True),
)


def apply(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="What `transmask prune` takes, or a checkpoint in training.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT", help="The new checkpoint; for shards and folders, a folder."),
    ],
    masks: Annotated[
        Path | None,
        typer.Option("--masks", metavar="FILE", help="A masks file, as `transmask prune --masks` writes it."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Write zeros into CHECKPOINT where masks say so: those of FILE, and those that CHECKPOINT stores itself.

    The masks of FILE may come from another checkpoint with the same names and shapes, such as the one that was
    fine-tuned. Each is checked to hold its pattern. Weights that CHECKPOINT stores with a mask (NAME_orig and
    NAME_mask, or parametrizations.NAME.original and .0.mask) become NAME, and the masks are gone.
    """
    from ..checkpoint import apply_masks, plan_applying

    plan = plan_applying(checkpoint, masks)
    with TensorProgress(sum(tensor.size for tensor in plan.tensors), len(plan.tensors)) as progress:
        rows = [_row(applied) for applied in apply_masks(plan, output, progress=_shown_on(progress))]
    if as_json:
        print_json(
            {
                "checkpoint": str(checkpoint),
                "masks": None if masks is None else str(masks),
                "output": str(output),
                "tensors": rows,
            }
        )
        return DONE
    print_table(rows, COLUMNS)
    print_line()
    zeroed = things(sum(row["zeroed"] for row in rows), "weight")
    print_line(f"applied {things(len(rows), 'mask')}, set {zeroed} to zero")
    print_line(f"wrote   {output}")
    return DONE


def _shown_on(progress: TensorProgress) -> Progress:
    """Show the library's progress calls on `progress`."""

    def show(tensor: TensorInfo, applied: AppliedTensor | None) -> None:
        if applied is None:
            progress.begin(tensor.name)
        else:
            progress.advance(tensor.name, tensor.size, f"{count(applied.n_zeroed)} entries set to zero")

    return show


def _row(applied: AppliedTensor) -> dict[str, Any]:
    """Describe what a mask did to a tensor."""
    n_entries = math.prod(applied.shape)
    return {
        "name": applied.name,
        "shape": list(applied.shape),
        "pattern": None if applied.pattern is None else str(applied.pattern),
        "density": applied.n_kept / n_entries if n_entries else 1.0,
        "zeroed": applied.n_zeroed,
    }
