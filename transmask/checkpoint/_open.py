"""Open a checkpoint by its suffix, and say what to do about files of other kinds."""

from __future__ import annotations

import os
import zipfile
from contextlib import suppress
from pathlib import Path

from ..errors import CheckpointError, InvalidTypeError
from ._base import Checkpoint
from ._decoding import decoding
from ._folder import ModelFolder
from ._sharded import ShardedCheckpoint
from .formats import FORMATS, INDEX_SUFFIX, listed_suffixes

__all__ = ["as_path", "open_checkpoint"]

PathLike = str | os.PathLike[str]


def open_checkpoint(path: PathLike) -> Checkpoint:
    """Open a checkpoint without reading its tensors.

    Parameters
    ----------
    path : str or path-like
        A file with one of the suffixes in `FORMATS`, the ``*.safetensors.index.json`` of a sharded checkpoint, or a
        model folder that holds one ``.safetensors`` checkpoint, in one file or in shards.

    Returns
    -------
    Checkpoint
        With its tensors' names, shapes and dtypes.

    Raises
    ------
    InvalidTypeError
        If `path` is not a path.
    CheckpointError
        If the file is damaged, holds a pickle, or has a suffix that is not in `FORMATS`.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/model.npz", weight=np.ones((8, 4), np.float32))
    ...     open_checkpoint(f"{folder}/model.npz").tensors
    (TensorInfo(name='weight', shape=(8, 4), dtype='float32', numpy_dtype=dtype('float32')),)
    """
    file = as_path(path, "path")
    if file.is_dir():
        return ModelFolder(file)
    suffix = next((suffix for suffix in sorted(FORMATS, key=len, reverse=True) if file.name.endswith(suffix)), "")
    with open(file, "rb") as stream:
        head = stream.read(16)
    if _is_pickle(file, head):
        raise CheckpointError(
            f"{str(file)!r} must hold tensors only, got a pickle, which can run code when it is read. Convert it where "
            'you trust it: python -c "import torch, safetensors.torch as s; '
            f's.save_file(torch.load({file.name!r}, weights_only=True), {file.with_suffix(".safetensors").name!r})"'
        )
    if not suffix and file.name.endswith(".json"):
        return ShardedCheckpoint(file)
    if not suffix:
        raise CheckpointError(
            f"{str(file)!r} must end with {listed_suffixes(INDEX_SUFFIX)}. Save the model in one of these formats."
        )
    with decoding(file, suffix, "opening it"):  # a row of the table may be any function
        return FORMATS[suffix](file)


def as_path(path: PathLike, argument: str) -> Path:
    """Return `path` as a Path, or raise InvalidTypeError."""
    if not isinstance(path, str | os.PathLike):
        raise InvalidTypeError(f"`{argument}` must be a path, got {path!r} of type {type(path).__name__}.")
    return Path(path)


def _is_pickle(file: Path, head: bytes) -> bool:
    """Whether the file starts like a pickle of protocol 2 or later, or is an archive that torch.save wrote."""
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return head[8:9] != b"{"  # a safetensors file can start like this too, but its header begins there
    if file.suffix in (".pkl", ".pickle"):
        return True
    if head[:2] == b"PK":
        with suppress(Exception), zipfile.ZipFile(file) as archive:
            return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
    return False
