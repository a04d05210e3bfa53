"""What every command prints with: tables, lines and JSON on stdout, notes and errors on stderr.

On a terminal rich draws the tables; in a pipe they are plain aligned lines with the same numbers. Names come out of
files, so a line never holds a character that a terminal would obey (`shown`); JSON has them exactly, in ASCII.

If the reader of a pipe hangs up early, the rest is dropped: how much is read changes neither the work nor the exit
code. A stream that takes no more, as on a full disk, is reported once on stderr.
"""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from ..shown import shown
from ..tables import Column, Table

__all__ = [
    "CHECK_FAILED",
    "DONE",
    "INTERRUPTED",
    "READER_GONE",
    "WRONG_USE",
    "count",
    "drop",
    "flush",
    "gap",
    "percent",
    "print_error",
    "print_json",
    "print_line",
    "print_lines",
    "print_note",
    "print_table",
    "seconds",
    "shape",
    "streams",
    "things",
    "warnings_as_lines",
]

DONE, CHECK_FAILED, WRONG_USE, INTERRUPTED, READER_GONE = 0, 1, 2, 130, 141


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, title: str = "") -> None:
    """Print rows as a `Table`: drawn by rich on a terminal, plain lines in a pipe."""
    table = Table(columns, rows, title=title)
    if sys.stdout.isatty():
        from rich.console import Console

        with _to_stdout():
            Console().print(table)
    else:
        print_lines(str(table))


def print_lines(text: str) -> None:
    """Print the lines of a text that was laid out here, whose names are shown as `shown` has them already."""
    with _to_stdout():
        sys.stdout.write("".join(f"{shown(line)}\n" for line in text.split("\n")))


def print_line(text: str = "") -> None:
    """Print one line on stdout."""
    with _to_stdout():
        sys.stdout.write(f"{shown(text)}\n")


def print_note(text: str) -> None:
    """Print one line on stderr at once; if that fails, say nothing more there."""
    try:
        sys.stderr.write(f"{shown(text)}\n")
        sys.stderr.flush()
    except OSError:
        drop(sys.stderr)


@contextmanager
def streams() -> Iterator[None]:
    """Make stdout and stderr take whatever is printed: what their encoding does not have is written as an escape.

    A stream that was closed before Python started, which makes it None, is replaced by /dev/null. This occupies its
    file number, too. Otherwise the next checkpoint opened would get it, and with it whatever a library prints.
    """
    _unprinted.clear()
    with ExitStack() as stack:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            if stream is None:
                stack.enter_context(redirect(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))
            elif isinstance(stream, io.TextIOWrapper):
                stack.callback(_set_errors, stream, stream.errors)
                _set_errors(stream, "backslashreplace")
        yield


def _set_errors(stream: io.TextIOWrapper, errors: str | None) -> None:
    with suppress(OSError, ValueError):  # it flushes, which fails where a stream is broken or closed
        stream.reconfigure(errors=errors)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show a warning as one line on stderr, without the line of source that raised it."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print_note(f"transmask: warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def flush() -> bool:
    """Flush stdout, and tell whether all that was printed has left; at exit Python would turn a failure into code 120.

    A reader that hangs up has read what it wanted, so a broken pipe is no failure.
    """
    with _to_stdout():
        sys.stdout.flush()
    return not _unprinted


_unprinted: list[OSError] = []


@contextmanager
def _to_stdout() -> Iterator[None]:
    """Run code that prints; if stdout takes no more, say so once, unless its reader hung up, and drop the rest."""
    try:
        yield
    except OSError as error:
        drop(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            _unprinted.append(error)
            print_note(f"transmask: the report could not be printed: {error.strerror}.")


def drop(stream: TextIO) -> None:
    """Redirect a broken stream to /dev/null, discarding its buffer."""
    with suppress(OSError):  # not a file, such as a StringIO
        number = os.open(os.devnull, os.O_WRONLY)
        os.dup2(number, stream.fileno())
        os.close(number)


def print_json(value: object) -> None:
    """Print `value` on stdout as JSON in ASCII, which has no NaN and no infinities: they are refused."""
    text = json.dumps(value, indent=2, allow_nan=False)
    with _to_stdout():
        sys.stdout.write(f"{text}\n")


def print_error(error: BaseException | str) -> int:
    """Print one line on stderr and return the exit code for wrong usage."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{shown(error.filename)}: {error.strerror}." if error.filename else f"{error.strerror}."
    else:
        text = str(error) or type(error).__name__
    print_note(f"transmask: {' '.join(text.split())}")
    return WRONG_USE


def percent(fraction: float) -> str:
    """Format a fraction, 0.81234 as "81.23 %"."""
    return f"{100 * fraction:.2f} %"


def gap(relative: float, unproven: int) -> str:
    """Format a relative gap to the bound; "0 (proven)" if no block is unproven."""
    from ..certificate import PROVEN_GAP

    if not unproven:
        return "0 (proven)"
    return f"{relative:.1e}" if relative > PROVEN_GAP else f"below {PROVEN_GAP:g}"


def seconds(value: float) -> str:
    """Format a duration in seconds with three significant digits, 0.00252 as "2.52 ms"."""
    if value < 0.9995:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s" if value < 999.5 else f"{value:,.0f} s"


def shape(sides: Sequence[int]) -> str:
    """Format a shape, (64, 3, 7, 7) as "64x3x7x7"."""
    return "x".join(map(str, sides)) or "scalar"


def count(value: float) -> str:
    """Format a number of things, 1234567 as "1,234,567"."""
    return f"{value:,.0f}"


def things(number: int, noun: str) -> str:
    """Format a number of things with their name, "1 tensor" or "2,345 tensors"."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"
