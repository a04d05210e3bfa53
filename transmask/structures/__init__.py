"""The sparsity structures that people choose between: how many masks each has, the best of them, and how they compare.

From the freest to the most rigid: `Unstructured`, `NM`, `Transposable`, `Block`, `Channel`. Each can count its masks
for a shape, find its best mask for given weights, and check a mask; a `Product` does so for the layers of a network.

    structure.py     `Structure`: what each of them offers, and what a new one implements
    nm.py            N:M, plain and transposable
    kept_share.py    entries, tiles or slices of which a fixed share is kept
    products.py      a structure for each layer of a network
    mask_count.py    a number of masks, too long to write out
    counting.py      how many transposable masks a block has
    diversity.py     `mask_diversity`: bits per weight, exactly and by the published formula
    comparison.py    `compare_structures`: several structures on the same weights
"""

from .comparison import StructureComparison, compare_structures
from .diversity import MaskDiversity, mask_diversity
from .kept_share import Block, Channel, Unstructured
from .nm import NM, Transposable
from .products import Product
from .structure import Structure, StructureReport

__all__ = [
    "NM",
    "Block",
    "Channel",
    "MaskDiversity",
    "Product",
    "Structure",
    "StructureComparison",
    "StructureReport",
    "Transposable",
    "Unstructured",
    "compare_structures",
    "mask_diversity",
]
