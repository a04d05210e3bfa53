"""``.npz`` and ``.npy`` files, never with pickle.

numpy stores a bfloat16 array as raw 2-byte items (``V2``), so ``V2`` is read as bfloat16. The format has no metadata:
nothing in the file says what was pruned.
"""

from __future__ import annotations

import errno
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..blocks import Array
from ..errors import CheckpointError
from ._base import Checkpoint, Replace, TensorInfo, copy_bytes
from ._record import PruneRecord

__all__ = ["DAMAGE", "NpyCheckpoint", "NpzCheckpoint"]

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NpyCheckpoint(Checkpoint):
    """A ``.npy`` file: one array, named by the file.

    Parameters
    ----------
    path : Path

    Raises
    ------
    CheckpointError
        If the file is damaged or holds Python objects.
    OSError
        If it cannot be read.
    """

    suffix = ".npy"
    is_named_after_file = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        with open(path, "rb") as file, _readable(path):
            self.tensors = (_info(path.name.removesuffix(".npy"), file),)
            expected = file.tell() + self.tensors[0].size * _item_size(self.tensors[0])
        if path.stat().st_size != expected:
            raise CheckpointError(
                f"{str(path)!r} must have {expected} bytes, got {path.stat().st_size}. Was it copied completely?"
            )

    def read(self, tensor: TensorInfo) -> Array:
        """Read the array; see `Checkpoint.read`."""
        with open(self.path, "rb") as file, _readable(self.path):
            return _array(file, tensor)

    def rewrite(self, target: Path, replace: Replace, record: PruneRecord | None) -> None:
        """Write the file again; see `Checkpoint.rewrite`."""
        array = replace(self.tensors[0])
        with open(self.path, "rb") as source, open(target, "wb") as out:
            if array is None:
                copy_bytes(source, out, self.path.stat().st_size)
            else:
                np.lib.format.write_array(out, array, allow_pickle=False)


class NpzCheckpoint(Checkpoint):
    """An ``.npz`` file, compressed or not: a zip archive of ``.npy`` files, each written back the way it was packed.

    Parameters
    ----------
    path : Path

    Raises
    ------
    CheckpointError
        If the file is damaged, names an array twice or holds Python objects.
    OSError
        If it cannot be read.
    """

    suffix = ".npz"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        with _readable(path), zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            self._members = {member.filename.removesuffix(".npy"): member for member in members}
            if len(self._members) != len(members):
                raise CheckpointError(f"{str(path)!r} must name each array once, got a name twice.")
            self.tensors = tuple(self._describe(archive, name) for name in self._members)

    def _describe(self, archive: zipfile.ZipFile, name: str) -> TensorInfo:
        """Read the header of one member; what is not an array is only ever copied."""
        if not self._members[name].filename.endswith(".npy"):
            return TensorInfo(name, (), "no array", None)
        with archive.open(self._members[name]) as file:
            return _info(name, file)

    def read(self, tensor: TensorInfo) -> Array:
        """Read one array; see `Checkpoint.read`."""
        with (
            _readable(self.path),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self._members[tensor.name].filename) as file,
        ):
            return _array(file, tensor)

    def rewrite(self, target: Path, replace: Replace, record: PruneRecord | None) -> None:
        """Write the file again; see `Checkpoint.rewrite`."""
        with _readable(self.path):
            archive = zipfile.ZipFile(self.path)
        with archive, zipfile.ZipFile(target, "w") as out:
            out.comment = archive.comment
            for tensor in self.tensors:
                array = replace(tensor)
                old = self._members[tensor.name]
                new = zipfile.ZipInfo(old.filename, old.date_time)
                new.compress_type, new.external_attr = old.compress_type, old.external_attr
                with out.open(new, "w", force_zip64=True) as member:
                    if array is not None:
                        np.lib.format.write_array(member, array, allow_pickle=False)
                        continue
                    with _readable(self.path), archive.open(old.filename) as source:
                        copy_bytes(source, member, old.file_size)


# What numpy and zipfile raise on damaged files: a header that is no Python literal, a member that is not where the
# archive says (an OSError: invalid argument), an unknown compression, a password.
DAMAGE = (
    ValueError,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what numpy and zipfile raise on a damaged file into CheckpointError."""
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, CheckpointError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise
        raise CheckpointError(
            f"{str(path)!r} must be a {path.suffix} file, but it is damaged: {error}. Was it copied completely?"
        ) from None


def _info(name: str, file: Any) -> TensorInfo:
    """Read the header of a ``.npy`` stream, which ends up at the array's first byte."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise CheckpointError(f"array {name!r} must be in npy format 1.0 or 2.0, got {version[0]}.{version[1]}.")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise CheckpointError(
            f"array {name!r} must hold numbers, got Python objects, which are a pickle and can run code. "
            "Save it again with a numeric dtype."
        )
    if dtype == np.dtype("V2"):
        dtype = np.dtype(ml_dtypes.bfloat16)
    return TensorInfo(name, shape, dtype.name, dtype)


def _item_size(tensor: TensorInfo) -> int:
    return 0 if tensor.numpy_dtype is None else tensor.numpy_dtype.itemsize


def _array(file: Any, tensor: TensorInfo) -> Array:
    """Read an array whose header was read before."""
    array: Array = np.lib.format.read_array(file, allow_pickle=False)
    if array.dtype.kind == "V" and tensor.numpy_dtype is not None:
        array = array.view(tensor.numpy_dtype)
    if array.shape != tensor.shape or array.dtype != tensor.numpy_dtype:
        raise CheckpointError(f"array {tensor.name!r} changed while it was read. Run again when nothing writes to it.")
    return array
