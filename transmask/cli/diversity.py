"""``transmask diversity``: how many masks each structure allows, exactly and by the published formula."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidArgumentError, unknown_choice
from ..pattern import Pattern
from ..tables import Column
from ._figure import check_plot, save_plot
from ._options import JsonOption
from ._output import print_json, print_line, print_table

if TYPE_CHECKING:
    from ..structures.diversity import MaskDiversity
    from ..structures.structure import Structure

__all__ = ["diversity"]

KINDS = ("unstructured", "nm", "transposable", "at_most", "block", "channel")
LARGEST_M = 4096
"""That of `prune`, too; counting takes minutes from about 10,000 on."""

MAX_JSON_DIGITS = 4299
"""Longer integers are left out of the JSON: Python itself refuses to read them as text."""


def _number(found: MaskDiversity | None) -> str:
    """Format a number of masks: all digits below 10^15, else four."""
    if found is None:
        return "-"
    if found.log2_count < math.log2(1e15) and found.count is not None:
        return f"{found.count:,}"
    digits, fraction = divmod(found.log2_count * math.log10(2), 1.0)
    mantissa = f"{10.0**fraction:.3f}"
    if mantissa == "10.000":
        mantissa, digits = "1.000", digits + 1
    return f"{'~' if found.log2_error else ''}{mantissa}e+{digits:.0f}"


def _bits(found: MaskDiversity | None) -> str:
    return "-" if found is None else f"{found.bits_per_weight:.4f}"


COLUMNS = (
    Column("structure", "structure"),
    Column("exact", "masks", _number, right=True),
    Column("exact", "bits/weight", _bits, right=True),
    Column("paper", "paper's masks", _number, right=True),
    Column("paper", "bits/weight", _bits, right=True),
)


def diversity(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="N:M...", help="N entries kept of every M, at most 4096, such as 2:4 4:8.", show_default=False
        ),
    ] = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            "--pattern", "-p", metavar="N:M", help="The same as an option, as in other commands; may be repeated."
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape",
            metavar="RxC",
            help="Size of the matrix, each side from 1 to 10^18. Default: the smallest square that every M divides.",
        ),
    ] = None,
    structures: Annotated[
        str,
        typer.Option(
            "--structures",
            metavar="A,B,...",
            help="To count for each pattern, or for its density: unstructured, nm (rows alone), transposable, at_most "
            "(transposable with at most N), block (M x M tiles), channel (rows).",
        ),
    ] = "unstructured,nm,transposable",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT", help="Draw bits per weight, as .png, .svg or .pdf.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count the masks that sparsity structures allow: mask diversity, exact and by the formula of the paper.

    The paper is Hubara et al. 2021. Its formula over-counts transposable masks; a dash means that it has no formula.
    """
    from ..structures.diversity import mask_diversity

    if plot is not None:
        check_plot(plot)
    chosen = list(dict.fromkeys(map(Pattern.parse, [*(patterns or []), *(pattern or [])])))
    if not chosen:
        raise InvalidArgumentError("`N:M` must be given, got no pattern. For example: transmask diversity 2:4.")
    large = next((pattern for pattern in chosen if pattern.m > LARGEST_M), None)
    if large is not None:
        raise InvalidArgumentError(f"`N:M` must have M of at most {LARGEST_M} to be counted, got '{large}'.")
    sides = (math.lcm(*(pattern.m for pattern in chosen)),) * 2 if shape is None else _parse_shape(shape)
    made = dict.fromkeys(structure for kind in _parse_kinds(structures) for structure in _make(kind, chosen))
    found = [(mask_diversity(structure, sides), _by_the_paper(structure, sides)) for structure in made]
    if plot is not None:
        _draw(found, plot)
    if as_json:
        records = [_record(exact) | {"hubara2021": None if paper is None else _record(paper)} for exact, paper in found]
        print_json({"shape": list(sides), "structures": records})
        return
    rows = [{"structure": exact.structure, "exact": exact, "paper": paper} for exact, paper in found]
    print_table(rows, COLUMNS, title=f"number of masks for {sides[0]} x {sides[1]} entries")
    if any(exact.log2_error for exact, _ in found):
        print_line()
        print_line("~ by an asymptotic formula; its error, measured at M = 16, is below 0.05 bits a block")
    if plot is not None:
        print_line(f"wrote {plot}")


def _parse_shape(text: str) -> tuple[int, int]:
    """Read "RxC"."""
    found = re.fullmatch(r"0*([1-9]\d{0,17}|10{18})x0*([1-9]\d{0,17}|10{18})", text, re.ASCII)
    if found is None:
        raise InvalidArgumentError(
            f"`shape` must read 'RxC', rows and columns from 1 to 10^18, got {text!r}. For example '8x8'."
        )
    return int(found[1]), int(found[2])


def _parse_kinds(text: str) -> list[str]:
    """Read a list of kinds of structures."""
    kinds = [kind.strip() for kind in text.split(",")]
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_choice("structures", kind, KINDS)
    return kinds


def _make(kind: str, patterns: list[Pattern]) -> list[Structure]:
    """Make the structure of a kind for every pattern, or of its density."""
    from ..structures import NM, Block, Channel, Transposable, Unstructured

    makers: dict[str, Callable[[Pattern], Structure]] = {
        "unstructured": lambda pattern: Unstructured(pattern.density),
        "nm": lambda pattern: NM(pattern.n, pattern.m),
        "transposable": lambda pattern: Transposable(pattern.n, pattern.m),
        "at_most": lambda pattern: Transposable(pattern.n, pattern.m, "at_most"),
        "block": lambda pattern: Block((pattern.m, pattern.m), pattern.density),
        "channel": lambda pattern: Channel(pattern.density),
    }
    return [makers[kind](pattern) for pattern in patterns]


def _by_the_paper(structure: Structure, shape: tuple[int, int]) -> MaskDiversity | None:
    """Count as the paper does, where it has a formula."""
    from ..structures.diversity import mask_diversity

    try:
        return mask_diversity(structure, shape, method="hubara2021")
    except InvalidArgumentError:
        return None


def _record(found: MaskDiversity) -> dict[str, Any]:
    """Describe a diversity for machines; the integer as text, because many readers round long ones."""
    count = found.count if found.log2_count < MAX_JSON_DIGITS * math.log2(10) else None
    return {
        "structure": found.structure,
        "count": None if count is None else str(count),
        "log2_count": found.log2_count,
        "log2_error": found.log2_error,
        "bits_per_weight": found.bits_per_weight,
    }


def _draw(found: list[tuple[MaskDiversity, MaskDiversity | None]], path: Path) -> None:
    """Draw bits per weight into a file."""
    from ..plotting import plot_diversity

    shown = [exact for exact, _ in found] + [paper for _, paper in found if paper is not None]
    save_plot(lambda ax: plot_diversity(shown, ax), path, height=1.2 + 0.5 * len(found))
