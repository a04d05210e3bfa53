"""Tensors with several names: tied ones of which a file stores one, and bit-identical twins of which it stores both.

``safetensors.torch.save_model`` stores a shared tensor under one of its names, and maps each other name to that one in
the metadata. ``save_file`` of cloned tensors, ``.npz`` and others store both. Zeros in one of two that a loader ties
again are lost, or reach the embedding that the other is; so they are pruned alike, or both skipped.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..pattern import Pattern
from ._base import Checkpoint, TensorInfo

if TYPE_CHECKING:
    from .selection import Selection

_Way: TypeAlias = "tuple[tuple[int, int] | None, Pattern | None]"
"""How a tensor is pruned: along which axes, if at all, and to which pattern."""

__all__ = ["aliases_in", "tied", "without_torn_twins"]

_STRETCH = 1 << 20
"""Entries that are read at a time."""

_SAMPLE = 64
"""Entries that tell most tensors apart."""


def aliases_in(metadata: Mapping[str, str], names: Iterable[str]) -> dict[str, list[str]]:
    """Return the other names of stored tensors that the metadata of a file lists.

    Parameters
    ----------
    metadata : mapping of str to str
        An entry from a name that is not stored to one that is means that the two are the same tensor.
    names : iterable of str
        The stored names.

    Returns
    -------
    dict of str to list of str
        Only tensors that have other names.

    Examples
    --------
    >>> aliases_in({"format": "pt", "embed.weight": "lm_head.weight"}, ["lm_head.weight"])
    {'lm_head.weight': ['embed.weight']}
    """
    stored = set(names)
    aliases: dict[str, list[str]] = {}
    for alias, name in metadata.items():
        if name in stored and alias not in stored:
            aliases.setdefault(name, []).append(alias)
    return aliases


def tied(kind: str) -> str:
    """Say what a tensor is that is the same as one of a kind that is not pruned."""
    return f"tied to {'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def without_torn_twins(
    checkpoint: Checkpoint, selections: tuple[Selection, ...], patterns: Mapping[str, Pattern]
) -> tuple[Selection, ...]:
    """Skip every tensor that has the same entries, bit for bit, as one that is skipped or pruned in another way.

    Reads the beginning of tensors of the same shape and dtype, of which some are to be pruned and some are not, and all
    of those that begin alike. Tensors whose entries are all the same, such as zeros, are no twins.

    Parameters
    ----------
    checkpoint : Checkpoint
    selections : tuple of Selection
        Of its tensors.
    patterns : mapping of str to Pattern
        By the name of each tensor to prune.

    Returns
    -------
    tuple of Selection
        The same tensors, in the same order.

    Raises
    ------
    CheckpointError, OSError
        If the checkpoint cannot be read.
    """
    alike = defaultdict(list)
    for place, chosen in enumerate(selections):
        tensor = chosen.tensor
        if tensor.numpy_dtype is not None and len(tensor.shape) >= 2 and tensor.size:
            alike[tensor.shape, tensor.dtype].append(place)
    judged = list(selections)
    ways = [(chosen.axes, patterns.get(chosen.tensor.name)) for chosen in selections]
    for places in alike.values():
        if len({ways[place] for place in places}) > 1:
            for twins in _twins(checkpoint, [(place, selections[place].tensor) for place in places]):
                _judge_together(judged, twins, ways)
    return tuple(judged)


def _twins(checkpoint: Checkpoint, tensors: list[tuple[int, TensorInfo]]) -> Iterator[list[int]]:
    """Yield groups of places whose tensors have the same bits; all have one shape and dtype."""
    by_beginning = defaultdict(list)
    for place, tensor in tensors:
        first = min(_SAMPLE, tensor.size)
        beginning = next(iter(checkpoint.stretches(tensor, (first, tensor.size - first))))
        by_beginning[beginning.tobytes()].append((place, tensor))
    for group in by_beginning.values():
        if len(group) > 1:
            by_digest = defaultdict(list)
            for place, tensor in group:
                by_digest[_digest(checkpoint, tensor)].append(place)
            yield from (twins for digest, twins in by_digest.items() if digest and len(twins) > 1)


def _digest(checkpoint: Checkpoint, tensor: TensorInfo) -> bytes:
    """Hash the bits of a tensor; empty if all its entries are the same."""
    sizes = [min(_STRETCH, tensor.size - start) for start in range(0, tensor.size, _STRETCH)]
    found, first, differ = hashlib.blake2b(), None, False
    for entries in checkpoint.stretches(tensor, sizes):
        octets = np.ascontiguousarray(entries).view(np.uint8).reshape(entries.size, -1)
        first = octets[0].copy() if first is None else first
        differ = differ or bool((octets != first).any())
        found.update(octets.data)
    return found.digest() if differ else b""


def _judge_together(judged: list[Selection], twins: list[int], ways: list[_Way]) -> None:
    """Skip all of them unless all are pruned along the same axes and to the same pattern."""
    chosen = [judged[place] for place in twins]
    if len({ways[place] for place in twins}) == 1:
        return
    skipped = next((selection for selection in chosen if selection.axes is None), None)
    for place, selection in zip(twins, chosen, strict=True):
        if selection.axes is None:
            continue
        if skipped is None:
            other = next(other for other in twins if ways[other] != ways[place])
            differ = "whose matrix is read along other axes"
            if ways[other][0] == selection.axes:
                differ = f"which is pruned to {ways[other][1]}"
            reason = f"the same entries as {judged[other].tensor.name!r}, {differ}"
        elif skipped.reason.endswith(" by its name"):
            kind = skipped.reason.removesuffix(" by its name")
            reason = f"{tied(kind)}: the same entries as {skipped.tensor.name!r}"
        else:
            reason = f"the same entries as {skipped.tensor.name!r}, which is skipped: {skipped.reason}"
        judged[place] = replace(selection, axes=None, reason=reason, scaling=None)
