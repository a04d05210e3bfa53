"""Write one file so that it appears complete or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ._open import PathLike, as_path
from ._staging import Staging

__all__ = ["atomic_file"]


@contextmanager
def atomic_file(path: PathLike, *, argument: str = "path", inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Give a temporary name to write to; the file moves to `path` when the block ends without an error.

    Parameters
    ----------
    path : str or path-like
        A file that exists keeps its permissions, and its content until the block ends.
    argument : str, default "path"
        What error messages call it.
    inputs : iterable of Path
        Files that `path` must not replace.

    Yields
    ------
    Path
        An empty file in the folder of `path`.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `path` is not a path, is one of `inputs` or not a regular file, or its folder does not exist.
    CheckpointError
        If the file cannot be written; nothing is left behind.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_file(f"{folder}/notes.txt") as temporary:
    ...         _ = temporary.write_text("complete")
    ...     pathlib.Path(folder, "notes.txt").read_text()
    'complete'
    """
    with Staging(inputs) as staging:
        yield staging.file(as_path(path, argument), argument)
