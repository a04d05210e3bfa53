"""Sparse architecture divergence (SAD): how far a mask moves, as the number of entries whose state changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arguments import as_mask
from .errors import InvalidArgumentError, InvalidTypeError

__all__ = ["LayerDivergence", "MaskLike", "PackedMask", "sparse_architecture_divergence"]


@dataclass(frozen=True, slots=True, eq=False)
class PackedMask:
    """A mask at one bit an entry, as files of masks hold it.

    Attributes
    ----------
    bits : ndarray of uint8, shape (ceil(size / 8),)
        ``numpy.packbits(mask.ravel(), bitorder="little")``: entry i is bit i % 8 of byte i // 8, in C order. Zero past
        the last entry.
    shape : tuple of int
        Of the mask.

    Raises
    ------
    InvalidTypeError
        If `bits` is not of dtype uint8.
    InvalidArgumentError
        If the length of `bits` does not fit `shape`, or a bit is set past the last entry.

    Examples
    --------
    >>> import numpy as np
    >>> packed = PackedMask.pack(np.eye(4))
    >>> packed.bits, packed.unpack().sum()
    (array([ 33, 132], dtype=uint8), np.int64(4))
    """

    bits: NDArray[np.uint8]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        bits, size = np.asarray(self.bits), math.prod(self.shape)
        if bits.dtype != np.uint8:
            raise InvalidTypeError(f"`bits` must be of dtype uint8, got {bits.dtype}.")
        if bits.shape != (-(-size // 8),):
            raise InvalidArgumentError(
                f"`bits` must have shape {(-(-size // 8),)}, 8 entries of {tuple(self.shape)} a byte, got {bits.shape}."
            )
        if size % 8 and bits[-1] >> size % 8:
            raise InvalidArgumentError("`bits` must be zero past the last entry, got a bit set there.")
        bits = bits.copy()
        bits.flags.writeable = False
        object.__setattr__(self, "bits", bits)
        object.__setattr__(self, "shape", tuple(self.shape))

    @classmethod
    def pack(cls, mask: ArrayLike) -> PackedMask:
        """Pack a mask.

        Parameters
        ----------
        mask : array_like of bool or of 0 and 1, at least 2 axes

        Returns
        -------
        PackedMask

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If `mask` is not a mask.
        """
        kept = as_mask(mask)
        return cls(np.packbits(kept, axis=None, bitorder="little"), kept.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def unpack(self) -> NDArray[np.bool_]:
        """Return the mask as bool, True = kept."""
        return np.unpackbits(self.bits, count=self.size, bitorder="little").view(np.bool_).reshape(self.shape)


MaskLike: TypeAlias = ArrayLike | PackedMask


@dataclass(frozen=True, slots=True)
class LayerDivergence:
    """How far the masks of a network move, layer by layer.

    Attributes
    ----------
    layers : dict of str to float
        For each layer the number of entries that differ, or their share of the layer.
    total : float
        The same for all layers together.
    """

    layers: dict[str, float]
    total: float


@overload
def sparse_architecture_divergence(before: MaskLike, after: MaskLike, *, normalize: bool = False) -> float: ...
@overload
def sparse_architecture_divergence(
    before: Mapping[str, MaskLike], after: Mapping[str, MaskLike], *, normalize: bool = False
) -> LayerDivergence: ...
def sparse_architecture_divergence(
    before: MaskLike | Mapping[str, MaskLike], after: MaskLike | Mapping[str, MaskLike], *, normalize: bool = False
) -> float | LayerDivergence:
    """Count the entries that are kept in one mask and pruned in the other.

        SAD(A, B) = sum_ij abs(A[i, j] - B[i, j])

    Parameters
    ----------
    before : array_like of bool or of 0 and 1, PackedMask, or mapping of str to these
        A mask, or those of the layers of a network by name.
    after : array_like of bool or of 0 and 1, PackedMask, or mapping of str to these
        Of the same shape, or with the same layers.
    normalize : bool, default False
        Divide by the number of entries, of a layer and of all layers: what others call the flip rate.

    Returns
    -------
    int, float or LayerDivergence
        An int for two masks, a float in [0, 1] if normalised; for mappings one number a layer and the total.

    Raises
    ------
    InvalidTypeError
        If a mask has another type, or only one argument is a mapping.
    InvalidArgumentError
        If shapes or the names of layers differ, or a mask has a value other than 0 and 1.

    Notes
    -----
    It is a metric: the Hamming distance. Between masks of the same density it is even, twice the number of exchanges.

    References
    ----------
    Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", which defines it
    to compare straight-through training with SR-STE.

    Examples
    --------
    >>> sparse_architecture_divergence([[1, 0], [0, 1]], [[1, 0], [1, 0]])
    2
    >>> sparse_architecture_divergence({"fc": [[1, 0]]}, {"fc": [[0, 1]]}, normalize=True)
    LayerDivergence(layers={'fc': 1.0}, total=1.0)
    """
    if not isinstance(before, Mapping) and not isinstance(after, Mapping):
        count, size = _divergence(before, after)
        return _share(count, size) if normalize else count
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        raise InvalidTypeError(
            "`before` and `after` must both be masks or both map names to masks, "
            f"got {type(before).__name__} and {type(after).__name__}."
        )
    if before.keys() != after.keys():
        only = sorted(before.keys() ^ after.keys(), key=str)
        raise InvalidArgumentError(
            f"`before` and `after` must have the same layers, got {only[0]!r} in one of them only. "
            "Pass the layers that both have."
        )
    found = {name: _divergence(before[name], after[name], name) for name in before}
    total = sum(count for count, _ in found.values()), sum(size for _, size in found.values())
    if not normalize:
        return LayerDivergence({name: count for name, (count, _) in found.items()}, total[0])
    return LayerDivergence({name: _share(*pair) for name, pair in found.items()}, _share(*total))


def _share(count: int, size: int) -> float:
    return count / size if size else 0.0


def _divergence(before: MaskLike, after: MaskLike, name: str | None = None) -> tuple[int, int]:
    """Count the entries that differ, and all entries, of two masks of a layer."""
    suffix = "" if name is None else f"[{name!r}]"
    pair = [
        mask if isinstance(mask, PackedMask) else as_mask(mask, argument=f"{argument}{suffix}")
        for argument, mask in (("before", before), ("after", after))
    ]
    first, second = pair
    if first.shape != second.shape:
        raise InvalidArgumentError(
            f"`before{suffix}` and `after{suffix}` must have the same shape, got {first.shape} and {second.shape}."
        )
    if isinstance(first, PackedMask) or isinstance(second, PackedMask):
        bits = [mask.bits if isinstance(mask, PackedMask) else PackedMask.pack(mask).bits for mask in pair]
        return int(np.bitwise_count(bits[0] ^ bits[1]).sum(dtype=np.int64)), first.size
    return int(np.count_nonzero(first != second)), first.size
