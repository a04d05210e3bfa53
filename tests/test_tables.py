"""One table in every form: plain, drawn, as CSV and as a dict."""

import pytest
from rich.console import Console

from transmask.tables import Column, Table

ROWS = [{"name": "a", "share": 0.5, "[b]": 1}, {"name": "longer", "share": None, "[b]": 20}]
BY_FORMAT = Table({"name": "layer name", "share": "share", "[b]": "entries"}, ROWS, {"share": ".1%"}, "Title")
BY_COLUMN = Table((Column("name", "layer name"), Column("[b]", "entries", "<{}>".format, right=True)), ROWS)


def drawn(table, width):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_plain_text_is_aligned():
    assert str(BY_FORMAT).splitlines() == [
        "Title",
        "layer name  share  entries",
        "a           50.0%  1",
        "longer          -  20",
    ]
    assert str(BY_COLUMN).splitlines() == ["layer name  entries", "a               <1>", "longer         <20>"]


@pytest.mark.parametrize("table", [BY_FORMAT, BY_COLUMN])
def test_drawn_it_says_the_same(table):
    assert [line.split() for line in drawn(table, 80)] == [line.split() for line in str(table).splitlines()]


def test_headings_are_folded_first_where_it_is_narrow():
    assert drawn(BY_COLUMN, 17) == ["layer", "name    entries", "a           <1>", "longer     <20>"]


def test_titles_and_headings_are_text_not_markup():
    table = Table((Column("name", "[red]x[/red] [/w]"),), ROWS, title="of [w] and [/w]")
    assert drawn(table, 80)[:2] == ["of [w] and [/w]", "[red]x[/red] [/w]"]


def test_programs_get_full_values():
    assert BY_FORMAT.to_dict() == {"name": ["a", "longer"], "share": [0.5, None], "[b]": [1, 20]}
    assert BY_FORMAT.to_csv() == "name,share,[b]\na,0.5,1\nlonger,,20\n"
    assert BY_COLUMN.to_csv() == "name,[b]\na,1\nlonger,20\n"
