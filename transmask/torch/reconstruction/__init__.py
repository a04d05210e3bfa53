"""Prune a trained model in one shot: masks and refitted weights, layer by layer, from a little calibration data."""

from .adaprune import AdaPrune
from .convert import convert_unstructured, supported_pattern
from .layer_problem import Fit, LayerProblem, ReconstructionMethod
from .least_squares import LeastSquares
from .reconstruct import reconstruct
from .report import LayerFit, ReconstructionReport

__all__ = [
    "AdaPrune",
    "Fit",
    "LayerFit",
    "LayerProblem",
    "LeastSquares",
    "ReconstructionMethod",
    "ReconstructionReport",
    "convert_unstructured",
    "reconstruct",
    "supported_pattern",
]
