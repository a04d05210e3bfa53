"""Train PyTorch models with transposable masks, and convert trained ones.

    training/         masks on a model: sparsify, the controller, the masked weight, what happens around a step, loading
    reconstruction/   a trained model pruned in one shot: Gram matrices, the problem of a layer, methods that solve it
    model_folder/     that, for a folder as Hugging Face writes it
    selection.py      which parameters are taken, and why the others are not
    layouts.py        how a parameter is seen as matrices: where a new kind of layer goes
    mask_rule.py      which masks are wanted, and who finds them
    masks.py          the mask of one tensor
    semi_structured.py   finished 2:4 weights for sparse tensor cores

Training and reconstruction do not import each other, and what both use imports neither.
"""

from .._imports import import_whole
from ..errors import MissingDependencyError

try:
    import_whole("torch")
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError('transmask.torch needs PyTorch. Run: pip install "transmask[torch]"') from None

from ..packing import Packed, pack, unpack
from .masks import transposable_mask
from .model_folder import reconstruct_folder
from .reconstruction import (
    ALPS,
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
from .training import (
    DensityRecord,
    MaskController,
    RefreshRecord,
    ThresholdController,
    TransposablePruning,
    UnbiasedGradients,
    draw_unbiased,
    merge_adapters,
    prune_gradients,
    sparsify,
    sparsify_by_threshold,
    transposable,
)

__all__ = [
    "ALPS",
    "AdaPrune",
    "DensityRecord",
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
    "ThresholdController",
    "TransposablePruning",
    "UnbiasedGradients",
    "WeightChoice",
    "convert_unstructured",
    "draw_unbiased",
    "merge_adapters",
    "pack",
    "prune_gradients",
    "reconstruct",
    "reconstruct_folder",
    "sparsify",
    "sparsify_by_threshold",
    "supported_pattern",
    "to_sparse_semi_structured",
    "transposable",
    "transposable_mask",
    "unpack",
]
