"""A checkpoint in several ``.safetensors`` files with a ``*.index.json`` that says which tensor is in which.

Index and shards must agree: each tensor lies in exactly one shard, the one that the index names, and the index lists
every tensor of the shards it names. A tensor that a shard holds and the index does not is refused, because whether a
reader loads it depends on the reader. Other files of the folder are not part of the checkpoint, and are not copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..blocks import Array
from ..errors import CheckpointError, InvalidArgumentError
from ..pattern import Constraint
from ._base import Checkpoint, Replace, TensorInfo
from ._record import PruneRecord, parse_object
from ._safetensors import SafetensorsCheckpoint
from ._staging import creating
from .formats import FORMATS

__all__ = ["ShardedCheckpoint", "check_output_folder"]


class ShardedCheckpoint(Checkpoint):
    """An index and its shards; it is written as a folder with files of the same names.

    Parameters
    ----------
    path : Path
        The ``*.index.json``.

    Raises
    ------
    CheckpointError
        If the index is damaged or names a tensor twice, a shard is missing or damaged, or the two disagree about a
        tensor.
    OSError
        If a file cannot be read.
    """

    can_rename = True

    def __init__(self, path: Path) -> None:
        self.path = path
        weight_map = self._weight_map()
        self._shards = [self._open_shard(name, weight_map) for name in dict.fromkeys(weight_map.values())]
        self._home = {tensor.name: shard for shard in self._shards for tensor in shard.tensors}
        lost = [name for name in weight_map if name not in self._home]
        if lost:
            raise CheckpointError(
                f"{str(path)!r} says that {lost[0]!r} is in {weight_map[lost[0]]!r}, which does not hold it."
            )
        self.files = (path, *(shard.path for shard in self._shards))
        self.tensors = tuple(tensor for shard in self._shards for tensor in shard.tensors)
        self.record = self._merged_record()
        self.metadata = {key: text for shard in self._shards for key, text in shard.metadata.items()}

    def _weight_map(self) -> dict[str, str]:
        """Read the index: the name of the shard of each tensor."""
        index = parse_object(self.path.read_bytes(), repr(str(self.path)))
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(
                f"{str(self.path)!r} must hold a 'weight_map' from tensors to files, "
                "as the *.safetensors.index.json of a sharded checkpoint does."
            )
        for tensor, name in weight_map.items():
            if not isinstance(name, str) or not name or Path(name).name != name or set(name) & {"\\", "\0"}:
                raise CheckpointError(
                    f"{str(self.path)!r} must name files in its own folder, got {name!r} for the tensor {tensor!r}."
                )
            if not name.endswith(".safetensors"):
                raise CheckpointError(
                    f"{str(self.path)!r} must name .safetensors files, got {name!r}. "
                    "Load the model and save it with safe serialization first."
                )
        return weight_map

    def _open_shard(self, name: str, weight_map: dict[str, str]) -> SafetensorsCheckpoint:
        """Open a shard and compare it with the index."""
        try:
            shard = SafetensorsCheckpoint(self.path.parent / name)
        except FileNotFoundError:
            n_tensors = sum(home == name for home in weight_map.values())
            raise CheckpointError(
                f"{str(self.path)!r} names the shard {name!r}, which holds {n_tensors} of {len(weight_map)} tensors, "
                "but the file is missing. Was the checkpoint copied completely?"
            ) from None
        for tensor in shard.tensors:
            home = weight_map.get(tensor.name)
            if home != name:
                said = "does not list" if home is None else f"puts in {home!r}"
                raise CheckpointError(
                    f"{str(self.path)!r} must agree with its shards, but {name!r} holds the tensor {tensor.name!r}, "
                    f"which the index {said}. Save the model again, or correct the index."
                )
        return shard

    def _merged_record(self) -> PruneRecord | None:
        """Join what the shards note; they must have been pruned alike."""
        records = [shard.record for shard in self._shards if shard.record is not None]
        kinds: set[tuple[Constraint, str]] = {(r.constraint, r.solver) for r in records}
        if not kinds:
            return None
        if len(kinds) > 1 or len(records) < len(self._shards):
            raise CheckpointError(
                f"the shards of {str(self.path)!r} must have been pruned together, "
                "but their transmask records differ. Prune the original again."
            )
        axes = {name: pair for record in records for name, pair in record.axes.items()}
        patterns = {name: pattern for record in records for name, pattern in record.patterns.items()}
        return PruneRecord.of(patterns, *kinds.pop(), axes) if axes else records[0]

    def read(self, tensor: TensorInfo) -> Array:
        """Read one tensor; see `Checkpoint.read`."""
        return self._home[tensor.name].read(tensor)

    def file_of(self, tensor: TensorInfo) -> Path:
        """Return the shard that holds a tensor."""
        return self._home[tensor.name].path

    def stretches(self, tensor: TensorInfo, sizes: Iterable[int]) -> Iterator[Array]:
        """Read one tensor stretch by stretch; see `Checkpoint.stretches`."""
        return self._home[tensor.name].stretches(tensor, sizes)

    def rewrite(self, target: Path, replace: Replace, record: PruneRecord | None) -> None:
        """Write shards and index into the folder `target`; see `Checkpoint.rewrite`."""
        self.rewrite_renamed(target, replace, record, {})

    def rewrite_renamed(
        self, target: Path, replace: Replace, record: PruneRecord | None, names: Mapping[str, str | None]
    ) -> None:
        """Write shards and index under other names; see `Checkpoint.rewrite_renamed`."""
        homes: dict[str, str] = {}
        for shard in self._shards:
            new = [name for tensor in shard.tensors if (name := names.get(tensor.name, tensor.name)) is not None]
            homes |= dict.fromkeys(new, shard.path.name)
            shard.rewrite_renamed(
                target / shard.path.name, replace, None if record is None else record.restricted_to(new), names
            )
        index = self.path.read_bytes()
        if names:
            index = json.dumps(self._renamed_index(index, homes, names), indent=2).encode()
        (target / self.path.name).write_bytes(index)

    def _renamed_index(self, text: bytes, homes: dict[str, str], names: Mapping[str, str | None]) -> dict[str, Any]:
        """Return the index with the names that the shards have now, and the size of what is left."""
        index = parse_object(text, repr(str(self.path)))
        metadata = index.get("metadata")
        if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int):
            gone = sum(
                shard.n_bytes(t.name) for shard in self._shards for t in shard.tensors if names.get(t.name, "") is None
            )
            index["metadata"] = metadata | {"total_size": metadata["total_size"] - gone}
        return index | {"weight_map": homes}

    def check_output(self, output: Path) -> None:
        """Raise InvalidArgumentError if `output` is not a folder that is new or empty."""
        check_output_folder(output, "a sharded checkpoint")


def check_output_folder(output: Path, what: str) -> None:
    """Raise InvalidArgumentError if `output` is not a folder that is new or empty; `what` is written into it."""
    if output.name.endswith((*FORMATS, ".json")):
        raise InvalidArgumentError(
            f"`output` must be a folder for {what}, got {str(output)!r}. All its files are written into it."
        )
    with creating(output, "output"):
        is_new = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not is_new:
        raise InvalidArgumentError(
            f"`output` must be a new or empty folder for {what}, got {str(output)!r}. "
            "A folder can only appear as a whole, not be replaced."
        )
