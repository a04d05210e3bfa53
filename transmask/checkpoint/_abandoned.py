"""What a killed run leaves: temporary files and folders that nobody will rename any more, found by their locks.

A run holds a lock on each of its own. The system releases it however the run ends, which no note of a process's number
could tell: numbers are used again, and are not the same on two machines that share a folder.
"""

from __future__ import annotations

import os
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where what a killed run left stays
    fcntl = None  # type: ignore[assignment]

__all__ = ["lock_part", "remove_abandoned", "remove_part"]


def lock_part(path: Path, *, wait: bool) -> int | None:
    """Open a file or a folder, and lock it until it is closed.

    Parameters
    ----------
    path : Path
    wait : bool
        Whether to wait for another that has the lock.

    Returns
    -------
    int or None
        The descriptor to close; None if it cannot be locked, or the system has no such locks.

    Raises
    ------
    OSError
        If it cannot be opened.
    """
    if fcntl is None:
        return None
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(number)
        return None
    return number


def remove_abandoned(final: Path, stem: str) -> None:
    """Remove what killed runs left beside the output `final` under names that begin with `stem`.

    Warns
    -----
    RuntimeWarning
        For each that was removed.
    """
    for part in sorted(final.parent.glob(f"{stem}*.part")):
        lock = None
        with suppress(OSError):  # another run was quicker, or it belongs to somebody else
            lock = lock_part(part, wait=False)
        if lock is None:
            continue  # its run is alive, or that cannot be known here
        try:
            remove_part(part)
        finally:
            os.close(lock)
        if not part.exists():
            warnings.warn(
                f"{str(part)!r} was removed: an earlier run was killed while it wrote {str(final)!r}.",
                RuntimeWarning,
                stacklevel=2,
            )


def remove_part(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
