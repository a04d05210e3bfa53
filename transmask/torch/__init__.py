"""Train PyTorch models with transposable masks, and convert trained ones."""

from ..errors import MissingDependencyError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError('transmask.torch needs PyTorch. Run: pip install "transmask[torch]"') from None

from ..packing import Packed, pack, unpack
from .mask_rule import transposable_mask
from .reconstruction import (
    AdaPrune,
    Fit,
    LayerFit,
    LayerProblem,
    LeastSquares,
    ReconstructionMethod,
    ReconstructionReport,
    convert_unstructured,
    reconstruct,
    supported_pattern,
)
from .selection import SelectionReport, WeightChoice
from .semi_structured import to_sparse_semi_structured
from .training import MaskController, RefreshRecord, TransposablePruning, sparsify, transposable

__all__ = [
    "AdaPrune",
    "Fit",
    "LayerFit",
    "LayerProblem",
    "LeastSquares",
    "MaskController",
    "Packed",
    "ReconstructionMethod",
    "ReconstructionReport",
    "RefreshRecord",
    "SelectionReport",
    "TransposablePruning",
    "WeightChoice",
    "convert_unstructured",
    "pack",
    "reconstruct",
    "sparsify",
    "supported_pattern",
    "to_sparse_semi_structured",
    "transposable",
    "transposable_mask",
    "unpack",
]
