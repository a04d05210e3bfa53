"""``transmask solvers``: the table of solvers."""

from __future__ import annotations

from dataclasses import asdict

from ..solvers import list_solvers
from ..tables import Column
from ._options import JsonOption
from ._output import print_json, print_line, print_table

__all__ = ["solvers"]

COLUMNS = (
    Column("name", "solver"),
    Column("guarantee", "guarantee"),
    Column("constraints", "constraints", ", ".join),
    Column("limits", "patterns"),
    Column("needs", "runs on"),
)
REFERENCES = (Column("name", "solver"), Column("reference", "published in"))
NOTES = (Column("name", "solver"), Column("note", "note"))


def solvers(*, as_json: JsonOption = False) -> None:
    """List the solvers: what they guarantee, what they take, where they were published."""
    infos = list_solvers()
    rows = [asdict(info) for info in infos]
    if as_json:
        print_json([{key: row[key] for key in row if key != "class_name"} for row in rows])
        return
    print_table([row | {"limits": info.limits} for row, info in zip(rows, infos, strict=True)], COLUMNS)
    for columns in (REFERENCES, NOTES):
        print_line()
        print_table([row for row in rows if row[columns[1].key]], columns)
