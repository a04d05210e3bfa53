"""Mask diversity: how many masks a sparsity structure allows, the published measure of how free it is.

Hubara et al. 2021 defined it and found that the accuracy of pruned networks follows it. Their formula for transposable
masks over-counts, as docs/mask-diversity.md shows; here the count is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .._arguments import as_axes, as_axis, as_shape
from ..errors import InvalidArgumentError, InvalidTypeError, unknown_choice
from .kept_share import Unstructured
from .mask_count import Integer, MaskCount
from .nm import NM, Transposable
from .products import Product
from .structure import Structure

__all__ = ["MaskDiversity", "Method", "mask_diversity"]

Method: TypeAlias = Literal["exact", "hubara2021"]
METHODS: tuple[Method, ...] = ("exact", "hubara2021")


@dataclass(frozen=True, slots=True)
class MaskDiversity:
    """How many masks a structure allows for a shape.

    Attributes
    ----------
    structure : str
        Its name.
    size : int
        Number of entries of a mask.
    method : {"exact", "hubara2021"}
        As asked for; where a block has too many masks to count them, an estimate, see `log2_error`.
    masks : MaskCount
        The number of masks, as a product of powers.
    """

    structure: str
    size: int
    method: Method
    masks: MaskCount

    @property
    def log2_count(self) -> float:
        """Logarithm of the number of masks: the bits that name one of them."""
        return self.masks.log2

    @property
    def log2_error(self) -> float:
        """By how much `log2_count` may be off; 0 unless blocks were counted by the asymptotic formula.

        It is the error of that formula at M = 16, measured there against the exact count at the nearest densities,
        times the number of blocks. The formula's error falls with M.
        """
        return self.masks.log2_error

    @property
    def count(self) -> int | None:
        """The number of masks, computed when asked for; None if it has 10^6 digits or more, or is not known exactly."""
        return self.masks.value

    @property
    def bits_per_weight(self) -> float:
        """`log2_count` over the number of entries, at most 1 for a true count; 0 without entries."""
        return self.log2_count / self.size if self.size else 0.0

    def __repr__(self) -> str:
        method = self.method if not self.log2_error else "asymptotic"
        error = f" +- {self.log2_error:.3g}" if self.log2_error else ""
        return (
            f"MaskDiversity({self.structure}, {self.size} entries, {method}: 2^{self.log2_count:.6g}{error} "
            f"masks, {self.bits_per_weight:.4f} bits per weight)"
        )


def mask_diversity(
    structure: Structure | Product,
    shape: Sequence[int] | Mapping[str, Sequence[int]],
    *,
    method: str = "exact",
) -> MaskDiversity:
    """Count the masks that a structure allows.

    Parameters
    ----------
    structure : Structure or Product
        Such as ``Transposable(2, 4)``.
    shape : sequence of int, or mapping of str to sequence of int
        Of the mask, at least two sizes; of every layer by its name for a `Product`, or for a structure that all layers
        share.
    method : {"exact", "hubara2021"}, default "exact"
        "hubara2021" is the paper's formula for transposable masks, (M! (M-1)! ... (M-N+1)!)^(T / M^2) for T entries. It
        over-counts: 144 where there are 90 masks at 2:4, 1.76e13 where there are 116963796250 at 4:8.

    Returns
    -------
    MaskDiversity
        For transposable blocks of M > 16 that are too many to count, the asymptotic number, and the measured error of
        that.

    Raises
    ------
    InvalidTypeError
        If `structure` or `shape` has the wrong type.
    InvalidArgumentError
        If the structure cannot hold the shape, `method` is unknown, or the paper has no formula for the case.
    UnsupportedPatternError
        If an "at_most" block is too large: no formula is known for it.

    Notes
    -----
    "exact" takes about 1 s for a 8:16 block "exactly" and 10 s "at_most", once in a process; smaller blocks take
    milliseconds, shapes nothing.

    References
    ----------
    Hubara et al. 2021, "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M Transposable
    Masks", which defines mask diversity.
    Canfield and McKay 2005, "Asymptotic enumeration of dense 0-1 matrices with equal row sums and equal column sums",
    section 1.

    Examples
    --------
    >>> from transmask import Transposable
    >>> mask_diversity(Transposable(2, 4), (4, 4)).count
    90
    >>> mask_diversity(Transposable(2, 4), (4, 4), method="hubara2021").count
    144
    >>> mask_diversity(Transposable(16, 32), (32, 32))
    MaskDiversity(16:32 transposable, 1024 entries, asymptotic: 2^847.036 +- 0.0447 masks, 0.8272 bits per weight)
    """
    if method not in METHODS:
        raise unknown_choice("method", method, METHODS)
    if not isinstance(structure, Structure | Product):
        raise InvalidTypeError(
            f"`structure` must be a Structure or a Product, got {structure!r}. For example Transposable(2, 4)."
        )
    if isinstance(shape, Mapping):
        layers = structure if isinstance(structure, Product) else Product(dict.fromkeys(shape, structure))
        parts = [(part, as_shape(sizes)) for _, part, sizes in layers.match(shape, "shape")]
    elif isinstance(structure, Product):
        raise InvalidTypeError(f"`shape` must map the names of a Product's layers to their shapes, got {shape!r}.")
    else:
        parts = [(structure, as_shape(shape))]
    counts = (part.count(sizes) if method == "exact" else _paper_count(part, sizes) for part, sizes in parts)
    return MaskDiversity(
        structure=str(structure),
        size=sum(math.prod(sizes) for _, sizes in parts),
        method=method,
        masks=math.prod(counts, start=MaskCount(())),
    )


def _paper_count(structure: Structure, shape: tuple[int, ...]) -> MaskCount:
    """Count as Hubara et al. 2021 do: their formula for transposable masks, the exact number for the two others."""
    if isinstance(structure, Unstructured):
        return structure.count(shape)
    if isinstance(structure, NM):
        sides = [as_axis(structure.axis, len(shape))]
    elif isinstance(structure, Transposable) and structure.constraint == "exactly":
        sides = list(as_axes(structure.axes, len(shape)))
    else:
        raise InvalidArgumentError(
            "`method` 'hubara2021' must be given an unstructured, an N:M or a transposable N:M structure that keeps "
            f"exactly N, got {str(structure)!r}. Use 'exact'."
        )
    if any(shape[side] % structure.m for side in sides):
        raise InvalidArgumentError(
            f"`shape` must be a multiple of M = {structure.m} for 'hubara2021', got {shape}. Use 'exact'."
        )
    if isinstance(structure, NM):
        return structure.count(shape)
    ordered = math.prod(math.factorial(structure.m - line) for line in range(structure.n))
    return MaskCount.of([(Integer(ordered), math.prod(shape) // structure.m**2)])
