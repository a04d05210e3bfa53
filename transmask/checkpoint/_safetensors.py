"""One ``.safetensors`` file, read and rewritten a tensor at a time.

The safetensors library validates the header. The tensors are read here, from the offsets of the documented format,
because the library's numpy interface has no float8 and can only write a file whose tensors are all in memory.

Format (https://huggingface.co/docs/safetensors): 8 bytes little-endian length of the header, the header as JSON padded
with spaces, then the tensors without gaps, at the offsets that the header gives.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import safe_open

from ..blocks import Array
from ._base import Checkpoint, Replace, TensorInfo, copy_bytes, set_aside, write_from
from ._record import PruneRecord, parse_object

__all__ = ["METADATA_KEY", "SafetensorsCheckpoint", "write_header"]

METADATA_KEY = "transmask"

WRITE_BUFFER = 1 << 18
"""Bytes: the usual 8 KB mean a call of the system for every few small tensors."""

# The floating types that hold a zero and one number a byte or more; but for bytes, every other tensor is copied, not
# read. ml_dtypes knows F8_E8M0 and the 4 and 6 bit types too, but the first has no zero and the others are packed.
FLOATING = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
DTYPES = FLOATING | {"U8": np.dtype("u1"), "I8": np.dtype("i1"), "BOOL": np.dtype("?")}
NAMES = {code: dtype.name for code, dtype in DTYPES.items()}  # numpy takes its time to spell one


class SafetensorsCheckpoint(Checkpoint):
    """A ``.safetensors`` file.

    Parameters
    ----------
    path : Path

    Raises
    ------
    CheckpointError
        If the file is truncated or its header is damaged.
    OSError
        If it cannot be read.
    """

    suffix = ".safetensors"
    can_rename = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = (path,)
        with open(path, "rb") as file:  # first, so that a missing file or a folder raises the usual OSError
            with safe_open(path, framework="numpy"):
                pass
            (length,) = struct.unpack("<Q", file.read(8))
            self._header = parse_object(file.read(length), f"the header of {str(path)!r}")
        self._start = 8 + length
        self.metadata: dict[str, str] = self._header.pop("__metadata__", None) or {}
        ordered = sorted(self._header, key=lambda name: self._header[name]["data_offsets"])
        self.tensors = tuple(self._info(name, self._header[name]) for name in ordered)
        if METADATA_KEY in self.metadata:
            self.record = PruneRecord.from_json(self.metadata[METADATA_KEY], f"the metadata of {str(path)!r}")

    @staticmethod
    def _info(name: str, entry: Mapping[str, Any]) -> TensorInfo:
        """Describe a tensor from its entry in the header."""
        code = entry["dtype"]
        return TensorInfo(name, tuple(entry["shape"]), NAMES.get(code, code), DTYPES.get(code))

    def read(self, tensor: TensorInfo) -> Array:
        """Read one tensor; see `Checkpoint.read`."""
        (entries,) = self.stretches(tensor, [tensor.size])
        return entries.reshape(tensor.shape)

    def stretches(self, tensor: TensorInfo, sizes: Iterable[int]) -> Iterator[Array]:
        """Read one tensor stretch by stretch; see `Checkpoint.stretches`."""
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self._start + self._header[tensor.name]["data_offsets"][0])
            yield from self.read_stretches(file, tensor, sizes)

    def rewrite(self, target: Path, replace: Replace, record: PruneRecord | None) -> None:
        """Write the file again; see `Checkpoint.rewrite`."""
        self.rewrite_renamed(target, replace, record, {})

    def rewrite_renamed(
        self, target: Path, replace: Replace, record: PruneRecord | None, names: Mapping[str, str | None]
    ) -> None:
        """Write the file again under other names; see `Checkpoint.rewrite_renamed`."""
        metadata = dict(self.metadata)
        if record is not None:
            # transformers takes a file without metadata for torch's, but refuses one whose metadata names no format.
            metadata = metadata or {"format": "pt"}
            metadata[METADATA_KEY] = record.to_json()
        with open(self.path, "rb") as source, open(target, "wb", WRITE_BUFFER) as out:
            write_header(out, self._renamed_header(names) if names else self._header, metadata)
            for tensor in self.tensors:
                if names.get(tensor.name, "") is None:
                    continue
                begin, end = self._header[tensor.name]["data_offsets"]
                set_aside(out, end - begin)
                stretches = replace(tensor)
                if stretches is not None:
                    for entries in stretches:
                        write_from(out, entries)
                    continue
                source.seek(self._start + begin)
                if copy_bytes(source, out, end - begin) != end - begin:
                    raise self.changed(self.path)

    def n_bytes(self, name: str) -> int:
        """Return the number of bytes of a tensor."""
        first, last = self._header[name]["data_offsets"]
        return int(last - first)

    def _renamed_header(self, names: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
        """Return the entries of the header under other names, without those that are left out."""
        entries: dict[str, dict[str, Any]] = {}
        end = 0
        for tensor in self.tensors:
            name = names.get(tensor.name, tensor.name)
            if name is not None:
                size = self.n_bytes(tensor.name)
                entries[name] = self._header[tensor.name] | {"data_offsets": [end, end + size]}
                end += size
        return entries


def write_header(out: BinaryIO, entries: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, str]) -> None:
    """Write the length and the header; the tensors follow without gaps.

    Parameters
    ----------
    out : binary file
        At its beginning.
    entries : mapping
        For each tensor "dtype", "shape" and "data_offsets", as the format spells them.
    metadata : mapping of str to str
    """
    header = ({"__metadata__": dict(metadata)} if metadata else {}) | dict(entries)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    out.write(struct.pack("<Q", len(text)) + text)


def packed_entries(sizes: Iterable[tuple[str, int]]) -> dict[str, dict[str, Any]]:
    """Lay out byte arrays of the given names and sizes one after the other, as entries for `write_header`."""
    entries: dict[str, dict[str, Any]] = {}
    begin = 0
    for name, size in sizes:
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}
        begin += size
    return entries
