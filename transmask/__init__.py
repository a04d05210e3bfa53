"""Optimal transposable N:M sparsity masks for neural-network weights, each with a proof of how good it is."""

import os

if not os.path.isdir(os.path.join(__path__[0], "solvers")):
    # A source checkout: solvers/ stands beside this folder, and is installed as transmask.solvers.
    __path__.append(os.path.dirname(__path__[0]))

from .certificate import Certificate, certify
from .check import MaskReport, check_mask
from .errors import (
    CheckpointError,
    InvalidArgumentError,
    InvalidTypeError,
    MissingDependencyError,
    SolverError,
    TransmaskError,
    UnsupportedPatternError,
)
from .masks import nm_mask, solve, transposable_mask
from .pattern import Pattern
from .result import MaskResult, Status
from .solvers import choose_solver, list_solvers

__all__ = [
    "Certificate",
    "CheckpointError",
    "InvalidArgumentError",
    "InvalidTypeError",
    "MaskReport",
    "MaskResult",
    "MissingDependencyError",
    "Pattern",
    "SolverError",
    "Status",
    "TransmaskError",
    "UnsupportedPatternError",
    "certify",
    "check_mask",
    "choose_solver",
    "list_solvers",
    "nm_mask",
    "solve",
    "transposable_mask",
]
