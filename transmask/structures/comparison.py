"""Compare structures on the same weights: what each keeps, how free it is, and how far their masks lie apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments import as_weights
from ..blocks import Array, score_dtype
from ..divergence import PackedMask, sparse_architecture_divergence
from ..errors import InvalidArgumentError, InvalidTypeError, UnsupportedPatternError
from ..tables import Table
from .diversity import MaskDiversity, mask_diversity
from .kept_share import largest
from .products import Product
from .structure import Structure

__all__ = ["ComparedStructure", "StructureComparison", "compare_structures"]


@dataclass(frozen=True, slots=True)
class ComparedStructure:
    """A structure, and its best mask for the weights.

    Attributes
    ----------
    label : str
        Its name.
    structure : Structure or Product
    masks : dict of str to PackedMask
        The best mask of every layer; for a single array under "weights".
    kept_entries : int
    size : int
        Number of entries in all.
    kept : float
        Sum of the magnitudes that are kept.
    unstructured : float
        The largest sum of magnitudes that as many entries of each layer can have.
    diversity : MaskDiversity or None
        How many masks the structure allows; None if they are too many to count and no formula is known.
    """

    label: str
    structure: Structure | Product
    masks: dict[str, PackedMask]
    kept_entries: int
    size: int
    kept: float
    unstructured: float
    diversity: MaskDiversity | None

    @property
    def density(self) -> float:
        """The fraction of the entries that is kept."""
        return self.kept_entries / self.size if self.size else 0.0

    @property
    def relative_kept(self) -> float:
        """`kept` over `unstructured`: what the structure costs at its own density; at most 1."""
        return self.kept / self.unstructured if self.unstructured else 1.0

    @property
    def bits_per_weight(self) -> float | None:
        """Mask diversity in bits per weight, if known."""
        return None if self.diversity is None else self.diversity.bits_per_weight


@dataclass(frozen=True, slots=True, eq=False)
class StructureComparison:
    """What `compare_structures` found.

    Attributes
    ----------
    structures : tuple of ComparedStructure
        In the order they were given.
    divergence : ndarray of int64, shape (k, k)
        Sparse architecture divergence between any two of the k best masks: the number of entries that differ.
    """

    structures: tuple[ComparedStructure, ...]
    divergence: NDArray[np.int64]

    @property
    def table(self) -> Table:
        """One row a structure; ``rich.print`` draws it, ``print`` writes it plain."""
        rows = [
            {
                "structure": found.label,
                "density": found.density,
                "relative_kept": found.relative_kept,
                "bits_per_weight": found.bits_per_weight,
                "kept": found.kept,
            }
            for found in self.structures
        ]
        columns = {
            "structure": "structure",
            "density": "density",
            "relative_kept": "kept / unstructured",
            "bits_per_weight": "bits per weight",
            "kept": "kept weight",
        }
        formats = {"density": ".2%", "relative_kept": ".2%", "bits_per_weight": ".4f", "kept": ",.6g"}
        return Table(columns, rows, formats)

    @property
    def divergence_table(self) -> Table:
        """The share of the entries that differ between any two of the best masks."""
        numbers = [str(number) for number in range(1, len(self.structures) + 1)]
        rows = [
            {"structure": f"{number} {found.label}"}
            | {other: int(moved) / max(found.size, 1) for other, moved in zip(numbers, line, strict=True)}
            for number, found, line in zip(numbers, self.structures, self.divergence, strict=True)
        ]
        columns = {"structure": "entries that differ"} | {number: number for number in numbers}
        return Table(columns, rows, dict.fromkeys(numbers, ".1%"))

    def to_dict(self) -> dict[str, Any]:
        """Return the columns of the table, and under "divergence" the counts of entries that differ, as lists."""
        return {**self.table.to_dict(), "divergence": self.divergence.tolist()}

    def to_csv(self) -> str:
        """Return the table as CSV."""
        return self.table.to_csv()

    def __str__(self) -> str:
        return f"{self.table}\n\n{self.divergence_table}"

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(self.table, self.divergence_table)


def compare_structures(
    weights: ArrayLike | Mapping[str, ArrayLike], structures: Sequence[Structure | Product]
) -> StructureComparison:
    """Find the best mask of every structure for the same weights, and compare them.

    Parameters
    ----------
    weights : array_like with at least 2 axes, or mapping of str to these
        Finite real numbers of any dtype, of one layer or of several by name; not modified. Magnitudes count.
    structures : sequence of Structure or Product
        A `Structure` is used for every layer; a `Product` has one for each.

    Returns
    -------
    StructureComparison
        Kept weight relative to unstructured pruning of the same density (in every layer as many entries), diversity in
        bits per weight, and the divergence between any two of the masks.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `weights` cannot be used, `structures` is empty or has something else in it, or a structure cannot hold a
        shape.
    UnsupportedPatternError
        If no solver takes a transposable pattern.

    Notes
    -----
    The optimal masks are exact, and so take the time of the exact solver; the counts that of `mask_diversity`.

    Examples
    --------
    >>> import numpy as np
    >>> from transmask import NM, Transposable, Unstructured
    >>> weights = np.random.default_rng(0).standard_normal((64, 64))
    >>> print(compare_structures(weights, [Unstructured(0.5), NM(2, 4), Transposable(2, 4)]))
    structure         density  kept / unstructured  bits per weight  kept weight
    unstructured 0.5   50.00%              100.00%           0.9985     2,597.51
    2:4 row-wise       50.00%               93.39%           0.6462     2,425.84
    2:4 transposable   50.00%               87.96%           0.4057     2,284.76
    <BLANKLINE>
    entries that differ      1      2      3
    1 unstructured 0.5    0.0%  18.9%  26.7%
    2 2:4 row-wise       18.9%   0.0%  21.1%
    3 2:4 transposable   26.7%  21.1%   0.0%
    """
    layers = weights if isinstance(weights, Mapping) else {"weights": weights}
    arrays = {
        name: as_weights(layer, argument=f"weights[{name!r}]" if isinstance(weights, Mapping) else "weights")
        for name, layer in layers.items()
    }
    if isinstance(structures, Structure | Product) or not isinstance(structures, Iterable):
        raise InvalidTypeError(
            f"`structures` must be a sequence of structures, got {structures!r}. Put a single one into a list."
        )
    if not structures:
        raise InvalidArgumentError("`structures` must have at least one structure, got none.")
    for structure in structures:
        if not isinstance(structure, Structure | Product):
            raise InvalidTypeError(
                f"`structures` must hold structures, got {structure!r}. For example [Unstructured(0.5), NM(2, 4)]."
            )
    compared = tuple(_compare(structure, arrays) for structure in structures)
    divergence = np.zeros((len(compared), len(compared)), np.int64)
    for row, first in enumerate(compared):
        for column, second in enumerate(compared[:row]):
            moved = sparse_architecture_divergence(first.masks, second.masks).total
            divergence[row, column] = divergence[column, row] = moved
    return StructureComparison(compared, divergence)


def _compare(structure: Structure | Product, arrays: dict[str, Array]) -> ComparedStructure:
    """Find the best masks of one structure, and measure them."""
    product = structure if isinstance(structure, Product) else Product(dict.fromkeys(arrays, structure))
    masks = product.best_mask(arrays)
    kept = unstructured = 0.0
    for name, mask in masks.items():
        scores = np.abs(arrays[name].astype(score_dtype(arrays[name].dtype)))
        kept += float(np.sum(scores, where=mask, dtype=np.float64))
        freest = largest(scores, int(np.count_nonzero(mask)))
        unstructured += float(np.sum(scores, where=freest, dtype=np.float64))
    try:
        diversity = mask_diversity(product, {name: array.shape for name, array in arrays.items()})
    except UnsupportedPatternError:
        diversity = None
    return ComparedStructure(
        label=str(structure),
        structure=structure,
        masks={name: PackedMask.pack(mask) for name, mask in masks.items()},
        kept_entries=sum(int(np.count_nonzero(mask)) for mask in masks.values()),
        size=sum(mask.size for mask in masks.values()),
        kept=kept,
        unstructured=unstructured,
        diversity=diversity,
    )
