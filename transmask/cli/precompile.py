"""``transmask precompile``: compile ahead, for images and clusters."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..compilation import CHECKPOINT_DTYPES
from ._options import JsonOption
from ._output import print_json, print_line, print_note, seconds

__all__ = ["precompile"]


def precompile(
    patterns: Annotated[
        list[str], typer.Argument(metavar="N:M...", help="N entries kept of every M, such as 2:4 4:8.")
    ],
    solver: Annotated[
        list[str] | None,
        typer.Option("--solver", metavar="NAME", help="A name from `transmask solvers`; may be repeated."),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            "--dtype", metavar="NAME", help="Of the weights; may be repeated. Default: float32, bfloat16 and float16."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compile what masks of some patterns need, so that no later run waits for it.

    The code is kept in the folder that NUMBA_CACHE_DIR names, else in the installed package or, where that cannot be
    written, in the user's cache folder. It belongs to one kind of processor, and to the package at one path.
    """
    from ..compilation import precompile

    named, dtypes, solvers = ", ".join(patterns), dtype or list(CHECKPOINT_DTYPES), solver or ["auto"]
    if sys.stderr.isatty() and not as_json:
        print_note(f"compiling for {named}, which takes some seconds")
    done = precompile(*patterns, solvers=solvers, dtypes=dtypes)
    if as_json:
        print_json(
            {"patterns": patterns, "solvers": solvers, "dtypes": dtypes, "seconds": done.seconds, "folder": done.folder}
        )
        return
    print_line(f"{named} for {', '.join(dtypes)}: ready after {seconds(done.seconds)}")
    if done.folder is None:
        print_line("kept nowhere: set NUMBA_CACHE_DIR to a folder that can be written")
    else:
        print_line(f"kept below {done.folder}")
