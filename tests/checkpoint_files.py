"""Checkpoint files written and read by hand, from the documented format: the oracle never imports transmask."""

import json
import struct

import ml_dtypes
import numpy as np

CODES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}
FLOATING = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
CODE_OF = {np.dtype(dtype): code for code, dtype in CODES.items()}


def write_safetensors(path, tensors, metadata=None):
    """Write arrays in the order of the dict; the header lists them in the same order."""
    header, body = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, array in tensors.items():
        data = array.tobytes()
        header[name] = {
            "dtype": CODE_OF[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    write_raw(path, json.dumps(header).encode(), body)


def write_raw(path, header, body):
    """Write a header, which need not be one, and the bytes after it."""
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


def read_safetensors(path):
    """Read (metadata, tensors), the tensors as {name: array} in the order of their data."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = raw[8 + length :]
    end = 0
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        assert start == end, "a gap between tensors"
        end = stop
        tensors[name] = np.frombuffer(body[start:stop], CODES[entry["dtype"]]).reshape(entry["shape"])
    assert end == len(body), "bytes after the last tensor"
    return metadata, tensors


def write_sharded(folder, shards, metadata=None):
    """Write shards {file name: tensors} and their index; return the index's path."""
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for name, tensors in shards.items():
        write_safetensors(folder / name, tensors, metadata)
        weight_map |= dict.fromkeys(tensors, name)
    total = sum(array.nbytes for tensors in shards.values() for array in tensors.values())
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))
    return index


def same_bits(first, second):
    """Whether two arrays have the same dtype, shape and bytes."""
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def files_in(folder):
    """Every file below a folder with its bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
