"""A model folder as Hugging Face writes it: one ``.safetensors`` file or shards, and what is beside them.

The new folder is complete: configuration, tokenizer, code and whatever else the old one holds are copied, in subfolders
too. Links, of which a hub's cache is made, are followed. What is left out are hidden folders, such as ``.git`` and
``.cache``, which say what the old files were.
"""

from __future__ import annotations

import os
import shutil
import stat
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..blocks import Array
from ..errors import CheckpointError
from ..shown import shown
from ._base import Checkpoint, Replace, TensorInfo
from ._record import PruneRecord
from ._safetensors import SafetensorsCheckpoint
from ._sharded import ShardedCheckpoint, check_output_folder
from .formats import INDEX_SUFFIX

__all__ = ["ModelFolder"]

DEFAULT_NAMES = ("model", "diffusion_pytorch_model")
"""What transformers and diffusers look for; a folder may hold variants under other names, too."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")


class ModelFolder(Checkpoint):
    """A folder with one checkpoint and other files; it is written as a folder with files of the same names.

    Parameters
    ----------
    path : Path
        The folder.

    Raises
    ------
    CheckpointError
        If it does not hold exactly one checkpoint, the checkpoint is damaged, or there is something that is neither a
        file nor a folder.
    OSError
        If a file cannot be read.
    """

    can_rename = True

    def __init__(self, path: Path) -> None:
        weights = _weights(path)
        self._weights = (ShardedCheckpoint if weights.name.endswith(INDEX_SUFFIX) else SafetensorsCheckpoint)(weights)
        self.path = self._weights.path
        own = {file.name for file in self._weights.files}
        self._folder = path
        self._others = tuple(file for file in _files(path, (path.resolve(),)) if str(file.relative_to(path)) not in own)
        self.files = (*self._weights.files, *self._others)
        self.tensors = self._weights.tensors
        self.record = self._weights.record

    def read(self, tensor: TensorInfo) -> Array:
        """Read one tensor; see `Checkpoint.read`."""
        return self._weights.read(tensor)

    def file_of(self, tensor: TensorInfo) -> Path:
        """Return the file that holds a tensor."""
        return self._weights.file_of(tensor)

    def stretches(self, tensor: TensorInfo, sizes: Iterable[int]) -> Iterator[Array]:
        """Read one tensor stretch by stretch; see `Checkpoint.stretches`."""
        return self._weights.stretches(tensor, sizes)

    def rewrite(self, target: Path, replace: Replace, record: PruneRecord | None) -> None:
        """Write the weights and copy all other files into the folder `target`; see `Checkpoint.rewrite`.

        Warns
        -----
        RuntimeWarning
            If a file that is copied looks as if it held weights.
        """
        self.rewrite_renamed(target, replace, record, {})

    def rewrite_renamed(
        self, target: Path, replace: Replace, record: PruneRecord | None, names: Mapping[str, str | None]
    ) -> None:
        """Write the weights under other names, and copy all other files; see `Checkpoint.rewrite_renamed`."""
        place = target / self.path.name if self._weights.suffix else target
        self._weights.rewrite_renamed(place, replace, record, names)
        for file in self._others:
            place = target / file.relative_to(self._folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "rb") as source, open(place, "wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
        dense = [str(file.relative_to(self._folder)) for file in self._others if file.suffix in WEIGHTS]
        if dense:
            more = f" and {len(dense) - 1} more" if len(dense) > 1 else ""
            warnings.warn(
                f"{shown(dense[0])!r}{more} was copied as it is: if it holds weights, they are not pruned.",
                RuntimeWarning,
                stacklevel=2,
            )

    def check_output(self, output: Path) -> None:
        """Raise InvalidArgumentError if `output` is not a folder that is new or empty."""
        check_output_folder(output, "a model folder")


def _weights(folder: Path) -> Path:
    """Find the checkpoint that a loader would take."""
    found = sorted(
        file.name for file in folder.iterdir() if file.name.endswith((SafetensorsCheckpoint.suffix, INDEX_SUFFIX))
    )
    indexes = [name for name in found if name.endswith(INDEX_SUFFIX)]
    for stem in (*DEFAULT_NAMES, *(name.removesuffix(INDEX_SUFFIX) for name in indexes)):
        both = [name for name in (stem + SafetensorsCheckpoint.suffix, stem + INDEX_SUFFIX) if name in found]
        if len(both) > 1:
            raise CheckpointError(
                f"the folder {str(folder)!r} must hold one checkpoint, got {both[0]!r} and {both[1]!r}, of which "
                "loaders take one. Remove the other."
            )
        if both and (stem in DEFAULT_NAMES or len(indexes) == 1):
            return folder / both[0]
    if len(found) != 1:
        names = ", ".join(map(repr, found[:3])) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        hint = f"Name the file, such as {str(folder / found[0])!r}." if found else "Is the model in a subfolder?"
        raise CheckpointError(
            f"the folder {str(folder)!r} must hold one checkpoint, a *{SafetensorsCheckpoint.suffix} file or a "
            f"*{INDEX_SUFFIX}, got {names or 'neither'}. {hint}"
        )
    return folder / found[0]


def _files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """List the files of a folder, in subfolders too; `above` holds the real paths of the folder and those around it."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".transmask-") and entry.name.endswith(".part"):
            continue  # what a killed run left
        path = Path(entry.path)
        mode = entry.stat().st_mode
        if stat.S_ISDIR(mode):
            if entry.name.startswith("."):
                continue
            real = path.resolve()
            if real in above:
                raise CheckpointError(f"{str(path)!r} must not be a link to a folder that it is in. Remove the link.")
            yield from _files(path, (*above, real))
        elif stat.S_ISREG(mode):
            yield path
        else:
            raise CheckpointError(f"{str(path)!r} must be a file or a folder to be copied. Remove it.")
