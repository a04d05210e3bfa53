"""A small table of results: drawn by rich on a terminal, plain text elsewhere, a dict or CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import rich.table

__all__ = ["Table"]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of named values.

    Attributes
    ----------
    columns : mapping of str to str
        What the keys of a row are called in a heading, in order.
    rows : sequence of mapping
        Each with a value for every key; None is what is not known.
    formats : mapping of str to str
        Format specifications such as ".4f", for print only.
    title : str

    Examples
    --------
    >>> table = Table({"name": "structure", "bits": "bits"}, [{"name": "2:4", "bits": 0.646}], {"bits": ".2f"})
    >>> print(table)
    structure  bits
    2:4        0.65
    >>> table.to_dict()
    {'name': ['2:4'], 'bits': [0.646]}
    """

    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    formats: Mapping[str, str]
    title: str = ""

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the values by column, as a DataFrame takes them."""
        return {key: [row[key] for row in self.rows] for key in self.columns}

    def to_csv(self) -> str:
        """Return the table as CSV: a line of keys, then the values in full precision; None is an empty field."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.columns), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def _cells(self) -> list[list[str]]:
        return [
            ["-" if row[key] is None else format(row[key], self.formats.get(key, "")) for key in self.columns]
            for row in self.rows
        ]

    def _is_number(self, key: str) -> bool:
        return key in self.formats

    def __str__(self) -> str:
        lines = [list(self.columns.values()), *self._cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        right = [self._is_number(key) for key in self.columns]
        text = [
            "  ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, number in zip(line, widths, right, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *text] if self.title else text)

    def __rich__(self) -> rich.table.Table:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title or None, title_justify="left", box=box.SIMPLE_HEAD)
        for key, heading in self.columns.items():
            table.add_column(heading, justify="right" if self._is_number(key) else "left", overflow="fold")
        for line in self._cells():
            table.add_row(*map(Text, line))
        return table
