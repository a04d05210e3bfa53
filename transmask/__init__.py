"""Optimal transposable N:M sparsity masks for neural-network weights, each with a proof of how good it is."""

import os
import sys

__version__ = "0.1.0"

if not os.path.isdir(os.path.join(__path__[0], "solvers")):
    # A source checkout: solvers/ stands beside this folder, and is installed as transmask.solvers.
    __path__.append(os.path.dirname(__path__[0]))

from .certificate import Certificate, certify
from .check import MaskReport, check_mask
from .compilation import Precompiled, precompile
from .divergence import LayerDivergence, PackedMask, sparse_architecture_divergence
from .errors import (
    CheckpointError,
    InvalidArgumentError,
    InvalidTypeError,
    MissingDependencyError,
    SolverError,
    TransmaskError,
    UnsupportedPatternError,
)
from .masks import solve, transposable_mask
from .pattern import Pattern
from .plain_mask import nm_mask
from .result import MaskResult, Status
from .sad_tracker import SADTracker
from .solvers import choose_solver, list_solvers
from .structures import (
    NM,
    Block,
    Channel,
    MaskDiversity,
    Product,
    StructureComparison,
    Transposable,
    Unstructured,
    compare_structures,
    mask_diversity,
)

__all__ = [  # noqa: RUF022, plain alphabetical order
    "Block",
    "Certificate",
    "Channel",
    "CheckpointError",
    "InvalidArgumentError",
    "InvalidTypeError",
    "LayerDivergence",
    "MaskDiversity",
    "MaskReport",
    "MaskResult",
    "MissingDependencyError",
    "NM",
    "PackedMask",
    "Pattern",
    "Precompiled",
    "Product",
    "SADTracker",
    "SolverError",
    "Status",
    "StructureComparison",
    "TransmaskError",
    "Transposable",
    "Unstructured",
    "UnsupportedPatternError",
    "certify",
    "check_mask",
    "choose_solver",
    "compare_structures",
    "list_solvers",
    "mask_diversity",
    "nm_mask",
    "precompile",
    "solve",
    "sparse_architecture_divergence",
    "transposable_mask",
]

for _name in ("comparison", "counting", "diversity", "mask_count", "products"):  # where they were in version 0.1.0
    sys.modules[f"{__name__}.{_name}"] = globals()[_name] = sys.modules[f"{__name__}.structures.{_name}"]
