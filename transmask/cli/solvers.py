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
    Column("max_m", "largest M", lambda limit: "any" if limit is None else str(limit), right=True),
    Column("needs", "runs on"),
)
REFERENCES = (Column("name", "solver"), Column("reference", "published in"))


def solvers(*, as_json: JsonOption = False) -> None:
    """List the solvers: what they guarantee, what they take, where they were published."""
    rows = [asdict(info) for info in list_solvers()]
    if as_json:
        print_json([{key: row[key] for key in row if key != "class_name"} for row in rows])
        return
    print_table(rows, COLUMNS)
    print_line()
    print_table(rows, REFERENCES)
