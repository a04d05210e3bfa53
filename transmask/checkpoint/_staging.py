"""Files that appear under their names when all of them are complete, or not at all.

Each is written under a temporary name in its own folder, flushed to disk, and renamed at the end. What replaces a file
or a folder takes over its permissions.

A killed run leaves what was there before, and a hidden ``.transmask-<place>-<random>.part``, where <place> stands for
the name of the output. The next run with the same output removes it, and warns that it did. A run that is alive holds a
lock on its own, which the system releases however it ends, so that two runs at once do not disturb each other.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from ..errors import CheckpointError, InvalidArgumentError
from ._abandoned import lock_part, remove_abandoned, remove_part

__all__ = ["Staging", "creating"]


class Staging:
    """A ``with`` block that puts the outputs staged in it in place when it ends without an error.

    Outputs are renamed one by one, in the order in which they were staged: once the last is there, all are.

    Parameters
    ----------
    inputs : iterable of Path
        Files that no output may replace.

    Raises
    ------
    CheckpointError
        On leaving the block, if an output cannot be written, as on a full disk. Nothing is left behind.
    """

    def __init__(self, inputs: Iterable[Path]) -> None:
        self._inputs = tuple(inputs)
        self._claimed: list[Path] = []
        self._staged: list[tuple[Path, Path]] = []
        self._locks: list[int] = []
        self._placed: list[Path] = []
        self._unrelated: OSError | None = None

    def __enter__(self) -> Staging:
        return self

    def file(self, path: Path, argument: str) -> Path:
        """Stage a file; a link is replaced itself, because what it points to may belong to a cache.

        Parameters
        ----------
        path : Path
            Where it will appear. An existing file stays as it is until then.
        argument : str
            What the caller calls it.

        Returns
        -------
        Path
            The temporary name, of an empty file.

        Raises
        ------
        InvalidArgumentError
            If `path` is an input, another output, not a regular file, or in a folder that does not exist.
        CheckpointError
            If the folder cannot be written to.
        """
        final = self.claim_file(path, argument)
        mode = 0o600 if final.exists() else 0o666  # nobody else reads what will replace a private file
        with creating(path, argument):
            return self._reserve(
                final, lambda part: os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
            )

    def folder(self, path: Path, argument: str) -> Path:
        """Stage a folder, which must be new or empty; otherwise as `file`."""
        final = self.claim_folder(path, argument)
        mode = 0o700 if final.exists() else 0o777
        with creating(path, argument):
            return self._reserve(final, lambda part: part.mkdir(mode))

    def claim_file(self, path: Path, argument: str) -> Path:
        """Refuse what `file` refuses, note that the place is taken, and return it; nothing is written."""
        final = self._claim(path, argument, lambda: path.parent.resolve() / path.name)
        with creating(path, argument):
            if final.exists() and not final.is_file():
                kind = "a folder" if final.is_dir() else "not a regular file"
                raise InvalidArgumentError(f"`{argument}` must be a file, got {str(path)!r}, which is {kind}.")
        return final

    def claim_folder(self, path: Path, argument: str) -> Path:
        """Refuse what `folder` refuses, note that the place is taken, and return it; nothing is written."""
        return self._claim(path, argument, path.resolve)

    def _claim(self, path: Path, argument: str, find: Callable[[], Path]) -> Path:
        """Find the place of an output, refuse what cannot be there, and note that it is taken."""
        with creating(path, argument):
            final = find()
            if not final.parent.is_dir():
                raise InvalidArgumentError(f"`{argument}` must be in a folder that exists, got {str(path)!r}.")
            for file in self._inputs:
                if final.exists() and os.path.samefile(final, file):
                    raise InvalidArgumentError(
                        f"`{argument}` must not be the input, got {str(path)!r}, which is {str(file)!r}. "
                        "Name a new file."
                    )
        if final in self._claimed:
            raise InvalidArgumentError(f"`{argument}` must not be another output too, got {str(path)!r}.")
        self._claimed.append(final)
        return final

    @contextmanager
    def unrelated(self) -> Iterator[None]:
        """Run code that writes no output, so that an OSError in it is not mistaken for a failed output."""
        try:
            yield
        except OSError as error:
            self._unrelated = error
            raise

    def _reserve(self, final: Path, make: Callable[[Path], object]) -> Path:
        """Make a temporary file or folder and lock it; it is noted before, and so removed however the block ends."""
        stem = f".transmask-{hashlib.sha256(os.fsencode(final.name)).hexdigest()[:8]}-"
        remove_abandoned(final, stem)
        while True:
            temporary = final.parent / f"{stem}{secrets.token_hex(6)}.part"
            self._staged.append((temporary, final))
            make(temporary)
            lock = lock_part(temporary, wait=True)
            if lock is None:
                return temporary
            self._locks.append(lock)
            if temporary.exists():
                return temporary
            self._staged.pop()  # another run took it for abandoned before the lock was there

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._commit()
            elif isinstance(error, OSError) and error is not self._unrelated:
                self._explain(error)
        finally:
            for temporary, _ in self._staged:
                remove_part(temporary)
            for lock in self._locks:
                os.close(lock)

    def _commit(self) -> None:
        """Flush everything to the disk, then rename."""
        try:
            for temporary, _ in self._staged:
                for file in temporary.rglob("*") if temporary.is_dir() else ():
                    _flush(file)
                _flush(temporary)
            for temporary, final in self._staged:
                if final.exists():
                    temporary.chmod(stat.S_IMODE(final.stat().st_mode))
                temporary.replace(final)
                self._placed.append(final)
            for folder in dict.fromkeys(final.parent for _, final in self._staged):
                _flush(folder)
        except OSError as error:
            self._explain(error)

    def _explain(self, error: OSError) -> None:
        """Raise CheckpointError for a failed write; an input that cannot be read keeps its own error."""
        temporaries = [str(temporary) for temporary, _ in self._staged]
        if error.filename is None or str(error.filename).startswith(tuple(temporaries)):
            outputs = " and ".join(repr(str(final)) for _, final in self._staged)
            placed = " and ".join(repr(str(final)) for final in self._placed)
            left = f"In place already: {placed}." if placed else "Nothing was written."
            raise CheckpointError(f"could not write {outputs}: {error.strerror}. {left}") from error


@contextmanager
def creating(path: Path, argument: str) -> Iterator[None]:
    """Turn what the system says about a place that cannot hold an output into a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"`{argument}` must be where files can be written, got {str(path)!r}: {error.strerror}."
        ) from None


def _flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    flags = os.O_RDONLY
    if path.is_dir():
        if not hasattr(os, "O_DIRECTORY"):
            return  # Windows flushes the entries of a folder itself, and cannot open one
        flags |= os.O_DIRECTORY
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
