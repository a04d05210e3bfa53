"""``transmask reconstruct``: prune the model in a folder and refit what is kept on calibration texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidArgumentError
from ..tables import Column
from ._options import (
    ConstraintOption,
    ExcludeOption,
    IncludeOption,
    JsonOption,
    PatternsOption,
    RecipeOption,
    SolverOption,
    given_recipe,
)
from ._output import DONE, print_json, print_line, print_note, print_table, seconds, things
from ._patterns import listed_patterns, with_patterns

if TYPE_CHECKING:
    from ..torch import LayerFit, ReconstructionReport

__all__ = ["reconstruct"]


def _error(value: float) -> str:
    return f"{value:.2e}"


FITTED = (
    Column("name", "reconstructed"),
    Column("error_masked", "error masked", _error, right=True),
    Column("error_fitted", "fitted", _error, right=True),
    Column("note", "note"),
)
MATCHED = (
    Column("name", "block"),
    Column("error_before", "error before", _error, right=True),
    Column("error_after", "after", _error, right=True),
)
LEFT = (Column("name", "left as it is"), Column("reason", "reason"))


def reconstruct(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_DIR", help="A model folder as Hugging Face writes it, with a tokenizer.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT_DIR", help="The new folder.")],
    calibration: Annotated[
        Path,
        typer.Option(
            "--calibration", "-c", metavar="FILE", help='Texts: .jsonl with {"text": ...}, or else one text a line.'
        ),
    ],
    pattern: PatternsOption = None,
    recipe: RecipeOption = None,
    samples: Annotated[int, typer.Option(metavar="K", help="How many texts are used, from the first on.")] = 128,
    length: Annotated[
        int | None,
        typer.Option(metavar="K", help="How many tokens of a text are used. Default: 512, or what the model can read."),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="K", help="Texts in a batch.")] = 8,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="'least_squares', 'alps' (better, slower) or 'adaprune'.")
    ] = "least_squares",
    scores: Annotated[
        str, typer.Option(metavar="NAME", help="What masks maximise: 'magnitude', 'wanda' or 'obs'.")
    ] = "magnitude",
    match: Annotated[
        bool, typer.Option("--match", help="Then train each block to answer what it did before, without labels.")
    ] = False,
    match_steps: Annotated[int, typer.Option(metavar="K", help="Steps of that training for each block.")] = 200,
    constraint: ConstraintOption = "exactly",
    solver: SolverOption = "auto",
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Where the model runs, as torch names it, such as cuda.")
    ] = "cpu",
    as_json: JsonOption = False,
) -> int:
    """Prune the model in MODEL_DIR and refit the weights that are kept, so that its layers answer what they did.

    The linear layers that `transmask prune` would prune get transposable masks; the kept weights and biases are then
    refitted, layer by layer, to the inputs that the texts give. No labels are needed. The model is loaded by
    transformers, without code from the folder and without the network, and must fit into memory. Everything else is
    copied as it is. OUT_DIR appears complete or not at all.
    """
    wanted = given_recipe(pattern, recipe)
    if wanted is None:
        raise InvalidArgumentError("`--pattern` must be given, or --recipe. For example -p 2:4.")
    from ..torch import reconstruct_folder

    report = reconstruct_folder(
        model,
        output,
        wanted,
        calibration,
        samples=samples,
        length=length,
        batch_size=batch_size,
        method=method,  # type: ignore[arg-type]
        scores=scores,  # type: ignore[arg-type]
        match="blocks" if match else None,
        match_steps=match_steps,
        constraint=constraint,
        solver=solver,
        include=include,
        exclude=exclude,
        device=device,
        progress=True if sys.stderr.isatty() else _print_layer,
    )
    found = {"model": str(model), "output": str(output), "calibration": str(calibration)} | _described(report)
    if as_json:
        print_json(found | {"method": method, "scores": scores, "constraint": constraint})
        return DONE
    print_table(found["reconstructed"], with_patterns(FITTED, found["reconstructed"]))
    for rows, columns in ((found["blocks"], MATCHED), (found["left"], LEFT)):
        if rows:
            print_line()
            print_table(rows, columns)
    print_line()
    patterns = listed_patterns({fit.name: fit.pattern for fit in report.fits})
    print_line(
        f"reconstructed {things(len(report.fits), 'tensor')}, {patterns} {constraint.replace('_', ' ')}, {method}"
    )
    spent = ", ".join(f"{name} {seconds(value)}" for name, value in found["seconds"].items() if value)
    print_line(f"time          {spent}")
    print_line(f"wrote         {output}")
    return DONE


def _print_layer(done: int, total: int, fit: LayerFit) -> None:
    """Print a line about a layer, where there is no terminal for a bar."""
    print_note(f"[{done}/{total}] {fit.name}: error {_error(fit.error_masked)} -> {_error(fit.error_fitted)}")


def _described(report: ReconstructionReport) -> dict[str, Any]:
    """Turn a report into what JSON holds."""
    return {
        "reconstructed": [
            {
                "name": fit.name,
                "pattern": str(fit.pattern),
                "error_masked": fit.error_masked,
                "error_fitted": fit.error_fitted,
                "note": fit.note,
            }
            for fit in report.fits
        ],
        "blocks": [
            {"name": name, "error_before": match.error_before, "error_after": match.error_after}
            for name, match in report.matches.items()
        ],
        "left": [{"name": name, "reason": reason} for name, reason in report.left],
        "seconds": {name: getattr(report.seconds, name) for name in ("forward", "gram", "solving", "matching")},
    }
