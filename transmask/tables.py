"""A small table of results: drawn by rich on a terminal, plain text elsewhere, a dict or CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .shown import shown

if TYPE_CHECKING:
    import rich.table
    from rich.console import Console, ConsoleOptions

__all__ = ["Column", "Table"]

_UNFOLDED = 24
"""Cells up to this long are never folded, however narrow the terminal."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    key : str
        Which value of a row it shows.
    title : str
        Its heading.
    format : callable
        Turns the value into text.
    right : bool
        Whether it is aligned to the right, as numbers are.
    """

    key: str
    title: str
    format: Callable[[Any], str] = str
    right: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of named values.

    Attributes
    ----------
    columns : mapping of str to str, or sequence of Column
        What the keys of a row are called in a heading, in order; columns that are more than a heading as `Column`.
    rows : sequence of mapping
        Each with a value for every key; None is what is not known.
    formats : mapping of str to str
        Format specifications such as ".4f", for print only; a column with one is aligned to the right.
    title : str
        A line above the table.

    Examples
    --------
    >>> table = Table({"name": "structure", "bits": "bits"}, [{"name": "2:4", "bits": 0.646}], {"bits": ".2f"})
    >>> print(table)
    structure  bits
    2:4        0.65
    >>> table.to_dict()
    {'name': ['2:4'], 'bits': [0.646]}
    """

    columns: Mapping[str, str] | Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    formats: Mapping[str, str] = field(default_factory=dict)
    title: str = ""

    def _columns(self) -> tuple[Column, ...]:
        """Return every column in full."""
        if not isinstance(self.columns, Mapping):
            return tuple(self.columns)
        return tuple(
            Column(key, heading, _formatted(self.formats.get(key, "")), right=key in self.formats)
            for key, heading in self.columns.items()
        )

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the values by column, as a DataFrame takes them."""
        return {column.key: [row[column.key] for row in self.rows] for column in self._columns()}

    def to_csv(self) -> str:
        """Return the table as CSV: a line of keys, then the values in full precision; None is an empty field."""
        text = io.StringIO()
        keys = list(dict.fromkeys(column.key for column in self._columns()))
        writer = csv.DictWriter(text, keys, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def __str__(self) -> str:
        columns = self._columns()
        lines = [[column.title for column in columns], *_cells(self.rows, columns)]
        widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
        plain = [
            "  ".join(
                text.rjust(width) if column.right else text.ljust(width)
                for text, width, column in zip(line, widths, columns, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, *plain] if self.title else plain)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[rich.table.Table]:
        from rich.table import Table as RichTable
        from rich.text import Text

        title = Text(self.title, "bold") if self.title else None  # Text, because a bare string is read as markup
        table = RichTable(title=title, title_justify="left", box=None, pad_edge=False)
        table.padding = (0, 2, 0, 0)
        columns = self._columns()
        cells = _cells(self.rows, columns)
        # Where the terminal is narrow, headings are folded first, then names and sentences.
        longests = [max((len(line[index]) for line in cells), default=0) for index in range(len(columns))]
        wide = [max(len(column.title), longest) for column, longest in zip(columns, longests, strict=True)]
        fits = sum(wide) + 2 * (len(wide) - 1) <= options.max_width
        for column, longest in zip(columns, longests, strict=True):
            table.add_column(
                Text(column.title if fits else column.title.replace(" ", "\n")),
                justify="right" if column.right else "left",
                overflow="fold",
                min_width=longest if longest <= _UNFOLDED else None,
            )
        for line in cells:
            table.add_row(*map(Text, line))
        yield table


def _formatted(specification: str) -> Callable[[Any], str]:
    """Return the function that formats a value, None as a dash."""
    return lambda value: "-" if value is None else format(value, specification)


def _cells(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> list[list[str]]:
    """Format every value; one may hold names out of a file."""
    return [[shown(column.format(row[column.key])) for column in columns] for row in rows]
