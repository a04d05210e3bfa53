"""``.npz`` and ``.npy`` files, never with pickle.

numpy stores a bfloat16 array as raw 2-byte items (``V2``), so ``V2`` is read as bfloat16. The format has no metadata:
nothing in the file says what was pruned.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Literal, TypeAlias

import ml_dtypes
import numpy as np

from ..blocks import Array
from ..errors import CheckpointError
from ._base import Checkpoint, Replace, TensorInfo, copy_bytes, read_into, write_from
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

    def stretches(self, tensor: TensorInfo, sizes: Iterable[int]) -> Iterator[Array]:
        """Read the array stretch by stretch; see `Checkpoint.stretches`."""
        with open(self.path, "rb") as file:
            yield from _read_stretches(tensor, file, self, sizes)

    def rewrite(self, target: Path, replace: Replace, record: PruneRecord | None) -> None:
        """Write the file again; see `Checkpoint.rewrite`."""
        stretches = replace(self.tensors[0])
        with open(self.path, "rb") as source, open(target, "wb") as out:
            if stretches is None:
                copy_bytes(source, out, self.path.stat().st_size)
            else:
                tensor, order = _read_header(self.tensors[0].name, source, self.path)
                _write_stretches(out, tensor, order, stretches)


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
    can_rename = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        self._archive = zipfile.ZipFile(path)  # opened once: that takes time for every array it holds
        members = self._archive.infolist()
        self._members = {member.filename.removesuffix(".npy"): member for member in members}
        if len(self._members) != len(members):
            raise CheckpointError(f"{str(path)!r} must name each array once, got a name twice.")
        self.tensors = tuple(map(self._describe, self._members))

    def __reduce__(self) -> tuple[type[NpzCheckpoint], tuple[Path]]:
        return type(self), (self.path,)

    def _describe(self, name: str) -> TensorInfo:
        """Read the header of one member; what is not an array is only ever copied."""
        if not self._members[name].filename.endswith(".npy"):
            return TensorInfo(name, (), "no array", None)
        with self._archive.open(self._members[name]) as file:
            tensor, _ = _read_header(name, file, self.path)
            _check_size(tensor, file, self._members[name].file_size, self.path)
        return tensor

    def read(self, tensor: TensorInfo) -> Array:
        """Read one array; see `Checkpoint.read`."""
        with self._archive.open(self._members[tensor.name].filename) as file:
            return _read_array(tensor, file, self)

    def stretches(self, tensor: TensorInfo, sizes: Iterable[int]) -> Iterator[Array]:
        """Read one array stretch by stretch; see `Checkpoint.stretches`."""
        with self._archive.open(self._members[tensor.name].filename) as file:
            yield from _read_stretches(tensor, file, self, sizes)

    def rewrite(self, target: Path, replace: Replace, record: PruneRecord | None) -> None:
        """Write the file again; see `Checkpoint.rewrite`."""
        self.rewrite_renamed(target, replace, record, {})

    def rewrite_renamed(
        self, target: Path, replace: Replace, record: PruneRecord | None, names: Mapping[str, str | None]
    ) -> None:
        """Write the file again under other names; see `Checkpoint.rewrite_renamed`."""
        with zipfile.ZipFile(target, "w") as out:
            out.comment = self._archive.comment
            for tensor in self.tensors:
                name = names.get(tensor.name, tensor.name)
                if name is None:
                    continue
                stretches = replace(tensor)
                old = self._members[tensor.name]
                new = zipfile.ZipInfo(old.filename if name == tensor.name else f"{name}.npy", old.date_time)
                new.compress_type, new.external_attr = old.compress_type, old.external_attr
                with out.open(new, "w", force_zip64=True) as member, self._archive.open(old.filename) as source:
                    if stretches is None:
                        copy_bytes(source, member, old.file_size)
                    else:
                        _write_stretches(member, tensor, _read_header(tensor.name, source, self.path)[1], stretches)


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


def _read_stretches(
    tensor: TensorInfo, file: IO[bytes], checkpoint: Checkpoint, sizes: Iterable[int]
) -> Iterator[Array]:
    """Read an array whose header was read before, stretch by stretch; one in Fortran order is read as a whole."""
    found, order = _read_header(tensor.name, file, checkpoint.path)
    if found != tensor:
        raise checkpoint.changed(checkpoint.path)
    if order == "C":
        yield from checkpoint.read_stretches(file, tensor, sizes)
        return
    file.seek(0)
    entries, start = _read_array(tensor, file, checkpoint).reshape(-1), 0
    for size in sizes:
        yield entries[start : start + size]
        start += size


def _write_stretches(out: IO[bytes], tensor: TensorInfo, order: Order, stretches: Iterable[Array]) -> None:
    """Write the header of an array and its entries; Fortran order is made of the whole array."""
    assert tensor.numpy_dtype is not None  # the caller's duty
    description = np.lib.format.dtype_to_descr(tensor.numpy_dtype)
    header = {"descr": description, "fortran_order": order == "F", "shape": tensor.shape}
    np.lib.format.write_array_header_1_0(out, header)
    if order == "F":
        stretches = [
            np.concatenate([*stretches], dtype=tensor.numpy_dtype).reshape(tensor.shape).reshape(-1, order="F")
        ]
    for entries in stretches:
        write_from(out, entries)


def _read_array(tensor: TensorInfo, file: IO[bytes], checkpoint: Checkpoint) -> Array:
    """Read an array whose header was read before."""
    found, order = _read_header(tensor.name, file, checkpoint.path)
    if found != tensor:
        raise checkpoint.changed(checkpoint.path)
    array: Array = np.empty(found.shape, found.numpy_dtype, order)
    if read_into(file, array.reshape(-1, order="A")) != array.nbytes:
        raise checkpoint.changed(checkpoint.path)
    return array
