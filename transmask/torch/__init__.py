"""Train PyTorch models with transposable masks, and convert trained ones."""

from ..errors import MissingDependencyError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError('transmask.torch needs PyTorch. Run: pip install "transmask[torch]"') from None

from .adaprune import AdaPrune
from .controller import MaskController, RefreshRecord
from .convert import convert_unstructured, supported_pattern
from .layer_problem import Fit, LayerProblem, ReconstructionMethod
from .layers import SelectionReport, WeightChoice
from .least_squares import LeastSquares
from .packing import Packed, pack, unpack
from .prune_method import TransposablePruning, transposable
from .reconstruction import reconstruct
from .reconstruction_report import LayerFit, ReconstructionReport
from .semi_structured import to_sparse_semi_structured
from .sparsification import sparsify
from .tensor_masks import transposable_mask

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
