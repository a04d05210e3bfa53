"""Rewrite the sections of README.md that come from the code: the table of solvers and the picture of a block.

    python -m benchmarks.readme_sections

A section stands between ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``.
"""

import re
from pathlib import Path

import numpy as np

from transmask import choose_solver, nm_mask, transposable_mask
from transmask.solvers._table import TABLE

README = Path(__file__).parents[1] / "README.md"


def solver_table() -> str:
    """Return the built-in solvers as a table, and what "auto" stands for."""
    lines = [
        '| `solver=` | proven for "at_most" | constraints | patterns | runs on | published in |',
        "|---|---|---|---|---|---|",
    ]
    for info in TABLE.values():
        constraints = ", ".join(f'"{constraint}"' for constraint in info.constraints)
        cells = (f"`{info.name}`", info.guarantee, constraints, info.limits, info.needs, info.reference)
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"* `{info.name}`: {info.note}" for info in TABLE.values() if info.note]
    chosen: dict[str, list[str]] = {}
    for pattern in ("2:4", "4:8", "8:16", "16:32"):
        chosen.setdefault(choose_solver(pattern), []).append(pattern)
    picks = "; ".join(f"`{solver}` for {', '.join(patterns)}" for solver, patterns in chosen.items())
    return "\n".join([*lines, "", *notes, "", f'`solver="auto"`, the default, is exact. It picks {picks}.'])


def block_picture() -> str:
    """Draw the magnitudes of one 8 x 8 block, its plain 2:4 mask and its transposable 2:4 mask, with column sums."""
    weights = np.random.default_rng(0).standard_normal((8, 8))
    percent = np.rint(100 * np.abs(weights) / np.abs(weights).max()).astype(int)
    masks = nm_mask(weights, "2:4"), transposable_mask(weights, "2:4")
    rows = [["abs(W), % of the largest", "plain 2:4", "transposable 2:4"]]
    for i in range(8):
        if i == 4:
            rows.append([""] * 3)
        drawn = [["■" if keep else "·" for keep in mask[i]] for mask in masks]
        cells = [[f"{value:3}" for value in percent[i]], *drawn]
        rows.append([_halves(line) for line in cells])
    for half, label in ((slice(0, 4), "kept in rows 0-3 of each column"), (slice(4, 8), "kept in rows 4-7")):
        rows.append([label, *(_halves([str(count) for count in mask[half].sum(axis=0)]) for mask in masks)])
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["     ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(["```", lines[0], "", *lines[1:-2], "", *lines[-2:], "```"])


def _halves(cells: list[str]) -> str:
    """Join eight cells with a gap in the middle."""
    return " ".join(cells[:4]) + "   " + " ".join(cells[4:])


def replace_section(text: str, name: str, body: str) -> str:
    """Return `text` with the section `name` holding `body`; raise ValueError unless there is exactly one."""
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    section = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if len(section.findall(text)) != 1:
        raise ValueError(f"the text must hold the section {name!r} once, got {len(section.findall(text))}.")
    return section.sub(lambda _: f"{begin}\n{body}\n{end}", text)


def render(text: str) -> str:
    """Return a README with its sections up to date."""
    return replace_section(replace_section(text, "solvers", solver_table()), "block", block_picture())


if __name__ == "__main__":
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
