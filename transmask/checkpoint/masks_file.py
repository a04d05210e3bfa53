"""Masks in a file: a ``.safetensors`` in which each mask is packed, 8 entries to a byte.

Every tensor is uint8 of shape (ceil(size / 8),): ``numpy.packbits(mask.ravel(), bitorder="little")`` in C order, with
zeros after the last entry; True = kept. The metadata entry "transmask_masks" is a JSON object with "version" (1),
"pattern", "constraint", "solver", "axes" (for each mask the two axes that form its matrix) and "shapes". If masks hold
different patterns, the version is 2, and "patterns" has those that differ from "pattern".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments import as_mask
from ..check import check_mask
from ..errors import CheckpointError, InvalidArgumentError, InvalidTypeError
from ..pattern import Pattern, PatternLike, as_constraint
from ._base import Checkpoint, write_from
from ._open import PathLike, as_path
from ._record import PruneRecord, parse_object
from ._safetensors import SafetensorsCheckpoint, packed_entries, write_header
from ._staging import Staging

__all__ = ["MASKS_KEY", "Masks", "masks_in", "read_masks", "write_masks", "write_masks_header"]

MASKS_KEY = "transmask_masks"


class Masks(Mapping[str, NDArray[np.bool_]]):
    """The masks of a file, by the names of their tensors; each is read on access.

    Attributes
    ----------
    path : Path
    pattern : Pattern
        Of several, the one that the file names first.
    patterns : dict of str to Pattern
        The pattern of each mask.
    constraint : {"exactly", "at_most"}
    solver : str
        Name of the solver that made them; empty if not known.
    axes : dict of str to tuple of two int
        The axes that form the matrix of each mask.
    shapes : dict of str to tuple of int
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SafetensorsCheckpoint(path)
        where = f"the metadata of {str(path)!r}"
        if MASKS_KEY not in self._file.metadata:
            raise CheckpointError(
                f"{str(path)!r} must be a masks file, got a safetensors file without a {MASKS_KEY!r} entry. "
                "`transmask prune --masks` writes one."
            )
        text = self._file.metadata[MASKS_KEY]
        record = PruneRecord.from_json(text, where)
        self.pattern, self.patterns, self.constraint, self.solver, self.axes = (
            record.pattern,
            record.patterns,
            record.constraint,
            record.solver,
            record.axes,
        )
        self.shapes = _shapes(parse_object(text, where).get("shapes"), where)
        self._packed = {tensor.name: tensor for tensor in self._file.tensors}
        for name, tensor in self._packed.items():
            size = math.prod(self.shapes.get(name, (-1,)))
            if tensor.dtype != "uint8" or tensor.shape != (-(-size // 8),) or name not in self.axes:
                raise CheckpointError(f"{where} does not fit the packed mask {name!r}. The file is damaged.")
        if len(self._packed) != len(self.shapes):
            raise CheckpointError(f"{where} lists {len(self.shapes)} masks, but the file holds {len(self._packed)}.")

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        packed = self._file.read(self._packed[name])
        shape = self.shapes[name]
        size = math.prod(shape)
        bits = np.unpackbits(packed, bitorder="little")
        if bits[size:].any():
            raise CheckpointError(
                f"the packed mask {name!r} in {str(self.path)!r} has bits past its end. It is damaged."
            )
        return bits[:size].view(np.bool_).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def __repr__(self) -> str:
        return f"Masks({str(self.path)!r}, {self.pattern} {self.constraint!r}, {len(self)} masks)"


def read_masks(path: PathLike) -> Masks:
    """Open a file of masks.

    Parameters
    ----------
    path : str or path-like
        Written by `write_masks` or by ``transmask prune --masks``.

    Returns
    -------
    Masks
        A mapping from the tensors' names to bool arrays, True = kept; a mask is read on access.

    Raises
    ------
    InvalidTypeError
        If `path` is not a path.
    CheckpointError
        If the file holds no masks, is damaged, or was written by a later release.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_masks(f"{folder}/masks.safetensors", {"fc": np.eye(4, dtype=bool)}, "1:4")
    ...     masks = read_masks(f"{folder}/masks.safetensors")
    ...     masks.pattern, masks["fc"].sum()
    (Pattern(n=1, m=4), np.int64(4))
    """
    return Masks(as_path(path, "path"))


def masks_in(checkpoint: Checkpoint) -> Masks | None:
    """Return the masks of an open file if it is a file of masks, else None.

    Raises
    ------
    CheckpointError
        If its masks are damaged, or were written by a later release.

    Examples
    --------
    >>> import tempfile, numpy as np, transmask.checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/model.npz", weight=np.ones((4, 4)))
    ...     masks_in(transmask.checkpoint.open_checkpoint(f"{folder}/model.npz")) is None
    True
    """
    if isinstance(checkpoint, SafetensorsCheckpoint) and MASKS_KEY in checkpoint.metadata:
        return Masks(checkpoint.path)
    return None


def write_masks(
    path: PathLike,
    masks: Mapping[str, ArrayLike],
    pattern: PatternLike,
    *,
    constraint: str = "exactly",
    solver: str = "",
    axes: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    """Write masks to a file, all or nothing.

    Parameters
    ----------
    path : str or path-like
        Must end with ".safetensors"; an existing file is replaced.
    masks : mapping of str to array_like of bool or of 0 and 1, at least 2 axes
        By the name of their tensor; True = kept. Not modified.
    pattern : Pattern, str or tuple of two int
        N entries kept of every M.
    constraint : {"exactly", "at_most"}, default "exactly"
        What every mask holds; checked.
    solver : str, optional
        Name of the solver that made them, to be noted.
    axes : mapping of str to tuple of two int, optional
        The axes that form the matrix, for the masks where they are not the default, (-2, -1).

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If an argument cannot be used, or a mask breaks the pattern.
    CheckpointError
        If the file cannot be written; nothing is left behind.

    Examples
    --------
    See `read_masks`.
    """
    final = as_masks_path(as_path(path, "path"), "path")
    if not isinstance(masks, Mapping):
        raise InvalidTypeError(f"`masks` must be a mapping from names to masks, got {type(masks).__name__}.")
    pairs = {} if axes is None else axes
    if not isinstance(pairs, Mapping):
        raise InvalidTypeError(
            f"`axes` must be a mapping from names of masks to two axes, got {type(axes).__name__}. "
            "Name each mask whose axes are not (-2, -1)."
        )
    unknown = [name for name in pairs if name not in masks]
    if unknown:
        raise InvalidArgumentError(f"`axes` must name masks only, got {unknown[0]!r}, which is not in `masks`.")
    chosen, limit = Pattern.of(pattern), as_constraint(constraint)
    arrays = {name: as_mask(mask, argument=f"masks[{name!r}]") for name, mask in masks.items()}
    used = {}
    for name, mask in arrays.items():
        pair = pairs.get(name, (-2, -1))
        report = check_mask(mask, chosen, constraint=limit, axes=pair)
        if not report:
            raise InvalidArgumentError(
                f"`masks[{name!r}]` must hold {chosen} {limit.replace('_', ' ')}, but {report.first_offender}."
            )
        used[name] = (pair[0] % mask.ndim, pair[1] % mask.ndim)
    record = PruneRecord(chosen, limit, solver, used)
    with Staging([]) as staging, open(staging.file(final, "path"), "wb") as out:
        write_masks_header(out, record, {name: mask.shape for name, mask in arrays.items()})
        for mask in arrays.values():
            packer = MaskPacker(out)
            packer.write(mask)
            packer.finish()


def as_masks_path(path: Path, argument: str) -> Path:
    """Return `path` if it can name a masks file, else raise InvalidArgumentError."""
    if not path.name.endswith(".safetensors"):
        raise InvalidArgumentError(f"`{argument}` must end with '.safetensors', got {str(path)!r}.")
    return path


def check_mask_names(names: Iterable[object]) -> None:
    """Raise InvalidArgumentError if a safetensors file cannot hold one of the names."""
    for name in names:
        if not isinstance(name, str) or name == "__metadata__" or re.search("[\ud800-\udfff]", name):
            raise InvalidArgumentError(f"`masks` must have names that a safetensors file can hold, got {name!r}.")


def write_masks_header(out: BinaryIO, record: PruneRecord, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write the head of a masks file; the masks follow by `MaskPacker`, in the order of `shapes`.

    Raises
    ------
    InvalidArgumentError
        If a safetensors file cannot hold one of the names.
    """
    check_mask_names(shapes)
    entries = packed_entries((name, -(-math.prod(shape) // 8)) for name, shape in shapes.items())
    text = record.to_json(shapes={name: list(shape) for name, shape in shapes.items()})
    write_header(out, entries, {MASKS_KEY: text})


class MaskPacker:
    """Writes one mask, packed, stretch by stretch."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._rest = np.zeros(0, np.bool_)

    def write(self, entries: NDArray[np.bool_]) -> None:
        """Write the next entries in C order, but for up to seven that do not fill a byte yet."""
        entries = np.concatenate([self._rest, entries.reshape(-1)]) if self._rest.size else entries.reshape(-1)
        whole = entries.size // 8 * 8
        write_from(self._out, np.packbits(entries[:whole], bitorder="little"))
        self._rest = entries[whole:].copy()

    def finish(self) -> None:
        """Write the entries that are left, with zeros after the last."""
        write_from(self._out, np.packbits(self._rest, bitorder="little"))


def _shapes(value: object, where: str) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the metadata."""
    if not isinstance(value, dict) or not all(
        isinstance(shape, list) and all(isinstance(side, int) and side >= 0 for side in shape)
        for shape in value.values()
    ):
        raise CheckpointError(f"{where} must list the shapes of the masks. The file is damaged.")
    return {str(name): tuple(shape) for name, shape in value.items()}
