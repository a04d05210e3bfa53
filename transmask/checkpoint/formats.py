"""The table of checkpoint formats: which class opens a file, by its suffix.

To add a format, subclass `Checkpoint` in a file of its own and give it a row here. Errors and help are made from this
table; a sharded checkpoint is an index of ``.safetensors`` files and has no row of its own. A suffix may have several
parts; of two that fit, the longer one counts. Whatever the suffix, a file that is a pickle is refused first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ._base import Checkpoint
from ._numpy import NpyCheckpoint, NpzCheckpoint
from ._safetensors import SafetensorsCheckpoint

__all__ = ["FORMATS", "INDEX_SUFFIX", "listed_suffixes"]

FORMATS: dict[str, Callable[[Path], Checkpoint]] = {
    SafetensorsCheckpoint.suffix: SafetensorsCheckpoint,
    NpzCheckpoint.suffix: NpzCheckpoint,
    NpyCheckpoint.suffix: NpyCheckpoint,
}
"""What opens a checkpoint of one file, by the file's suffix."""

INDEX_SUFFIX = ".safetensors.index.json"
"""How the index of a sharded checkpoint ends."""


def listed_suffixes(*more: str) -> str:
    """List the suffixes of `FORMATS`, and `more`, as a sentence has them.

    Examples
    --------
    >>> listed_suffixes()
    '.safetensors, .npz or .npy'
    """
    *others, last = [*FORMATS, *more]
    return f"{', '.join(others)} or {last}" if others else last
