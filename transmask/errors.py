"""The exceptions of transmask and the one form their messages take.

Every message is one line and reads: `` `argument` must <requirement>, got <value>. <Remedy.> ``
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from .shown import shown

__all__ = [
    "CheckpointError",
    "InvalidArgumentError",
    "InvalidTypeError",
    "MissingDependencyError",
    "SolverError",
    "TransmaskError",
    "UnsupportedPatternError",
    "unknown_choice",
]


class TransmaskError(Exception):
    """Base class of every error that transmask raises on purpose.

    Its message may hold names out of files, so control characters in it are shown as escapes.
    """

    def __str__(self) -> str:
        return shown(super().__str__())


class InvalidArgumentError(TransmaskError, ValueError):
    """An argument has the right type but a value that cannot be used."""


class InvalidTypeError(TransmaskError, TypeError):
    """An argument has a type or dtype that cannot be used."""


class UnsupportedPatternError(InvalidArgumentError):
    """The chosen solver does not take this pattern or constraint; the message names solvers that do."""


class CheckpointError(TransmaskError, ValueError):
    """A checkpoint file cannot be read or written as asked."""


class MissingDependencyError(TransmaskError, ImportError):
    """An optional package is not installed; the message gives the pip line."""


class SolverError(TransmaskError, RuntimeError):
    """A solver stopped without an answer, or gave one that cannot be used."""


def unknown_choice(argument: str, value: object, choices: Iterable[str]) -> InvalidArgumentError:
    """Build the error for a value that is not among the `choices`, with the closest one.

    Parameters
    ----------
    argument : str
        Name of the argument as the caller spells it.
    value : object
        What was given.
    choices : iterable of str
        What is accepted, in the order to list it.

    Returns
    -------
    InvalidArgumentError
        To be raised by the caller.

    Examples
    --------
    >>> str(unknown_choice("solver", "gredy", ["greedy", "milp"]))
    "`solver` must be one of 'greedy', 'milp', got 'gredy'. Did you mean 'greedy'?"
    """
    names = list(choices)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(repr(name) for name in names)
    return InvalidArgumentError(f"`{argument}` must be one of {listed}, got {value!r}.{hint}")
