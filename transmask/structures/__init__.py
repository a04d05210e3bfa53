"""The sparsity structures that people choose between: how many masks each has, the best of them, and how they compare.

From the freest to the most rigid: `Unstructured`, `NM`, `Transposable`, `Block`, `Channel`. Each can count its masks
for a shape, find its best mask for given weights, and check a mask; a `Product` does so for the layers of a network.
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
