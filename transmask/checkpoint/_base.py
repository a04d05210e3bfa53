"""What every checkpoint format offers: a list of its tensors, reading one, and rewriting the file with some replaced.

To add a format, subclass `Checkpoint` in a file of its own and give it a row in ``formats.py``.
"""

from __future__ import annotations

import errno
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, TypeAlias

import numpy as np

from ..blocks import Array
from ..errors import CheckpointError, InvalidArgumentError
from ._decoding import guard_methods
from ._record import PruneRecord

__all__ = ["PIECE_BYTES", "Checkpoint", "Replace", "TensorInfo", "copy_bytes", "read_into", "set_aside", "write_from"]

PIECE_BYTES = 1 << 24
"""Files are read and written by this much at a time, so that Ctrl-C never waits for a whole tensor."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a checkpoint, known from the file's header alone.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype : str
        numpy's name, or the format's own where numpy has none.
    numpy_dtype : numpy.dtype or None
        What `Checkpoint.read` returns; None if the tensor cannot be read as numbers, only copied.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    numpy_dtype: np.dtype[Any] | None

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        """Whether it holds real floating-point numbers that can be read."""
        dtype = self.numpy_dtype
        return dtype is not None and (dtype.kind == "f" or dtype.name.startswith(("bfloat16", "float")))


Replace: TypeAlias = Callable[[TensorInfo], Iterable[Array] | None]
"""Given a tensor, what to write in its place: 1-D arrays of its dtype that are together its entries, in C order. None
copies its bytes as they are."""


class Checkpoint(ABC):
    """A checkpoint opened for reading: its header is in memory and validated, its tensors are not.

    Whatever ``__init__(path)``, `read` and `rewrite` of a subclass raise because the file is damaged becomes a
    CheckpointError that names the file. A subclass does nothing for that; it raises errors of its own where it can say
    more.

    Attributes
    ----------
    path : Path
        The file; of a sharded checkpoint, the index.
    files : tuple of Path
        Every file it is made of.
    tensors : tuple of TensorInfo
        In the order of the file.
    record : PruneRecord or None
        What a previous run of transmask noted about it, where the format has a place for that.
    metadata : mapping of str to str
        What the file says about itself; empty where the format has no place for that.
    suffix : str
        What an output of this format must end with; empty if it is a folder.
    is_named_after_file : bool
        Whether the one tensor of a file bears the file's name, so that a copy under another name differs in it.
    can_rename : bool
        Whether `rewrite_renamed` can be called.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: tuple[TensorInfo, ...]
    record: PruneRecord | None = None
    metadata: Mapping[str, str] = MappingProxyType({})
    suffix: str = ""
    is_named_after_file: bool = False
    can_rename: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        guard_methods(cls)

    @abstractmethod
    def read(self, tensor: TensorInfo) -> Array:
        """Read one tensor.

        Parameters
        ----------
        tensor : TensorInfo
            One of `tensors`, with a `numpy_dtype`.

        Returns
        -------
        ndarray
            Owned by the caller and writeable.

        Raises
        ------
        CheckpointError
            If the file is damaged or has changed since it was opened.
        OSError
            If it cannot be read.
        """

    def stretches(self, tensor: TensorInfo, sizes: Iterable[int]) -> Iterator[Array]:
        """Read one tensor stretch by stretch; formats that can do so without holding all of it override this.

        Parameters
        ----------
        tensor : TensorInfo
            One of `tensors`, with a `numpy_dtype`.
        sizes : iterable of int
            The entries of each stretch; together all of them.

        Yields
        ------
        ndarray, 1-D
            The next entries in C order. Owned by the caller and writeable.

        Raises
        ------
        CheckpointError, OSError
            As `read`.
        """
        entries, start = self.read(tensor).reshape(-1), 0
        for size in sizes:
            yield entries[start : start + size]
            start += size

    @abstractmethod
    def rewrite(self, target: Path, replace: Replace, record: PruneRecord | None) -> None:
        """Write the checkpoint again, with no more of it in memory than `replace` returns at a time.

        Parameters
        ----------
        target : Path
            A file, or for a sharded checkpoint a folder, that exists and may be overwritten.
        replace : callable
            Called once for every tensor, in order.
        record : PruneRecord or None
            Noted in the metadata where the format has any; None leaves the metadata as it is.

        Raises
        ------
        CheckpointError
            If the input is damaged or has changed since it was opened.
        OSError
            If it cannot be read, or the output cannot be written.
        """

    def file_of(self, tensor: TensorInfo) -> Path:
        """Return the file that holds a tensor."""
        return self.path

    def rewrite_renamed(
        self, target: Path, replace: Replace, record: PruneRecord | None, names: Mapping[str, str | None]
    ) -> None:
        """Write the checkpoint again as `rewrite` does, some tensors under other names; formats that can override this.

        Parameters
        ----------
        target : Path
        replace : callable
            Called with the tensors as they are here, but for those that are left out.
        record : PruneRecord or None
            By the new names.
        names : mapping of str to str or None
            The new names of tensors that do not keep theirs; None leaves the tensor out.

        Raises
        ------
        CheckpointError, OSError
            As `rewrite`.
        """
        raise NotImplementedError

    def check_output(self, output: Path) -> None:
        """Raise InvalidArgumentError if this format cannot be written to `output`."""
        if not output.name.endswith(self.suffix):
            raise InvalidArgumentError(
                f"`output` must end with {self.suffix!r} like the input, got {str(output)!r}. "
                "The format of a checkpoint is kept."
            )

    def read_stretches(self, file: IO[bytes], tensor: TensorInfo, sizes: Iterable[int]) -> Iterator[Array]:
        """Read a tensor stretch by stretch from a file that stands at its first entry."""
        for size in sizes:
            entries: Array = np.empty(size, tensor.numpy_dtype)
            if read_into(file, entries) != entries.nbytes:
                raise self.changed(self.path)
            yield entries

    def changed(self, path: Path) -> CheckpointError:
        """Build the error for a file that has become shorter since it was opened."""
        return CheckpointError(f"{str(path)!r} changed while it was read. Run again when nothing writes to it.")


def read_into(source: IO[bytes], array: Array) -> int:
    """Fill a C-contiguous array with the next bytes of a file; return how many there were."""
    target = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(target):
        piece: int = source.readinto(target[done : done + PIECE_BYTES])  # type: ignore[attr-defined]
        if not piece:
            break
        done += piece
    return done


def write_from(target: IO[bytes], array: Array) -> None:
    """Write the entries of an array in C order."""
    source = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    for start in range(0, len(source), PIECE_BYTES):
        target.write(source[start : start + PIECE_BYTES])


def copy_bytes(source: IO[bytes], target: IO[bytes], n_bytes: int) -> int:
    """Copy the next `n_bytes` from one file to another, a megabyte at a time; return how many were there."""
    left = n_bytes
    while left and (chunk := source.read(min(left, 1 << 20))):
        target.write(chunk)
        left -= len(chunk)
    return n_bytes - left


def set_aside(target: IO[bytes], n_bytes: int) -> None:
    """Have the file system set space aside for the next `n_bytes` of a file: they are then written in half the time.

    Raises
    ------
    OSError
        If the disk has not that much left.
    """
    if n_bytes < PIECE_BYTES or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(target.fileno(), target.tell(), n_bytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot
            raise
