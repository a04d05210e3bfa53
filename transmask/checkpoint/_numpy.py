"""``.npz`` and ``.npy`` files, never with pickle.

numpy stores a bfloat16 array as raw 2-byte items (``V2``), so ``V2`` is read as bfloat16. The format has no metadata:
nothing in the file says what was pruned.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Literal, TypeAlias

import ml_dtypes
import numpy as np

from ..blocks import Array
from ..errors import CheckpointError
from ._base import Checkpoint, Replace, TensorInfo, copy_bytes, read_into
from ._record import PruneRecord

__all__ = ["NpyCheckpoint", "NpzCheckpoint"]

Order: TypeAlias = Literal["C", "F"]

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
        with open(path, "rb") as file:
            tensor, _ = _read_header(path.name.removesuffix(".npy"), file, path)
            _check_size(tensor, file, path.stat().st_size, path)
        self.tensors = (tensor,)

    def read(self, tensor: TensorInfo) -> Array:
        """Read the array; see `Checkpoint.read`."""
        with open(self.path, "rb") as file:
            return _read_array(tensor, file, self)

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
        with zipfile.ZipFile(path) as archive:
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
            tensor, _ = _read_header(name, file, self.path)
            _check_size(tensor, file, self._members[name].file_size, self.path)
        return tensor

    def read(self, tensor: TensorInfo) -> Array:
        """Read one array; see `Checkpoint.read`."""
        with zipfile.ZipFile(self.path) as archive, archive.open(self._members[tensor.name].filename) as file:
            return _read_array(tensor, file, self)

    def rewrite(self, target: Path, replace: Replace, record: PruneRecord | None) -> None:
        """Write the file again; see `Checkpoint.rewrite`."""
        with zipfile.ZipFile(self.path) as archive, zipfile.ZipFile(target, "w") as out:
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
                    with archive.open(old.filename) as source:
                        copy_bytes(source, member, old.file_size)


def _read_header(name: str, file: IO[bytes], path: Path) -> tuple[TensorInfo, Order]:
    """Read the header of a ``.npy`` stream, up to the array's first byte; return the order in memory, too."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise CheckpointError(
            f"array {name!r} of {str(path)!r} must be in npy format 1.0 or 2.0, got {version[0]}.{version[1]}."
        )
    shape, is_fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise CheckpointError(
            f"array {name!r} of {str(path)!r} must hold numbers, got Python objects, which are a pickle and can run "
            "code. Save it again with a numeric dtype."
        )
    if dtype == np.dtype("V2"):
        dtype = np.dtype(ml_dtypes.bfloat16)
    return TensorInfo(name, shape, dtype.name, dtype), "F" if is_fortran else "C"


def _check_size(tensor: TensorInfo, file: IO[bytes], size: int, path: Path) -> None:
    """Compare the bytes that a stream has with those that its header, just read, asks for."""
    assert tensor.numpy_dtype is not None  # _read_header found one
    expected = file.tell() + tensor.size * tensor.numpy_dtype.itemsize
    if size != expected:
        raise CheckpointError(
            f"array {tensor.name!r} of {str(path)!r} must have {expected} bytes, got {size}. Was it copied completely?"
        )


def _read_array(tensor: TensorInfo, file: IO[bytes], checkpoint: Checkpoint) -> Array:
    """Read an array whose header was read before."""
    found, order = _read_header(tensor.name, file, checkpoint.path)
    if found != tensor:
        raise checkpoint.changed(checkpoint.path)
    array: Array = np.empty(found.shape, found.numpy_dtype, order)
    if read_into(file, array.reshape(-1, order="A")) != array.nbytes:
        raise checkpoint.changed(checkpoint.path)
    return array
