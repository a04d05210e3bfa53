"""The command line: ``transmask`` and ``python -m transmask``.

One command, one file; to add one, write the file and register its function below. A command that writes or judges
files returns its exit code, which tells what became of them, however printing went. One whose report is all it does
returns None, and fails if the report cannot be printed. Errors propagate: `main` alone turns them into a line on
stderr.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from .. import __version__
from ..errors import TransmaskError
from ._output import (
    DONE,
    INTERRUPTED,
    READER_GONE,
    WRONG_USE,
    drop,
    flush,
    print_error,
    print_line,
    streams,
    warnings_as_lines,
)
from .apply import apply
from .check import check
from .compare import compare
from .demo import demo
from .diversity import diversity
from .precompile import precompile
from .prune import prune
from .reconstruct import reconstruct
from .sad import sad
from .solvers import solvers

__all__ = ["app", "main"]

app = typer.Typer(
    help="Transposable N:M sparsity for checkpoints: W and its transpose keep N of every M, with a proof.",
    add_completion=False,
    rich_markup_mode="markdown",  # lets paragraphs flow
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("prune")(prune)
app.command("apply")(apply)
app.command("reconstruct")(reconstruct)
app.command("check")(check)
app.command("compare")(compare)
app.command("diversity")(diversity)
app.command("sad")(sad)
app.command("solvers")(solvers)
app.command("demo")(demo)
app.command("precompile")(precompile)


def _show_version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        print_line(f"transmask {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make `app` a group of commands, however many are registered."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : list of str, optional
        Without the program's name. Default: those of this process.

    Returns
    -------
    int
        0 done, 1 a check failed, 2 wrong usage or unusable input, 130 interrupted, 141 the reader of the help hung up.
    """
    with streams(), warnings_as_lines():
        return _run(arguments)


def _run(arguments: list[str] | None) -> int:
    """Run the command line; report what went wrong, and turn it into an exit code."""
    # A batch system ends a run with SIGTERM first, a terminal that is closed with SIGHUP: exit in a way that cleans up
    # temporary files. Under nohup SIGHUP is ignored, and stays so.
    previous = {
        number: signal.signal(number, lambda number, _: sys.exit(128 + number))
        for name in ("SIGTERM", "SIGHUP")
        if (number := getattr(signal, name, None)) is not None and signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        code = app(arguments, prog_name="transmask", standalone_mode=False)
        is_printed = flush()
        if code is None:
            code = DONE if is_printed else WRONG_USE
    except (TransmaskError, OSError, MemoryError) as error:
        return print_error(error)
    except SystemExit as ending:
        # typer and rich, which print the help, exit with 1 on a closed pipe, which here means a failed check.
        if not isinstance(ending.__context__, BrokenPipeError):
            raise
        drop(sys.stdout)
        return READER_GONE
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        # Wrong usage. typer carries its own copy of click, whose classes are private.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        if message:
            asked = getattr(getattr(error, "ctx", None), "command_path", "transmask")
            stop = "" if message.endswith((".", "?", "!")) else "."
            print_error(f"{message}{stop} See {asked} --help.")
        return WRONG_USE
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if code == INTERRUPTED:
        print_error("interrupted; no partial file was left.")
    return int(code)
