"""Prune a trained model in one shot: masks and refitted weights, layer by layer, from a little calibration data.

reconstruct.py     the one call: finds the mask of a layer and refits it, for every layer
layer_jobs.py      which weights are treated, and how they become what they were if anything fails
treatment.py       the order: each layer when its inputs are known, in one pass of the model
lockstep.py        that pass: the forwards of all batches, in threads that wait for each other at every layer
thread_settings.py, offload.py   what such a thread must inherit, and what it leaves to the CPU while it waits
report.py          what became of each layer
calibration.py     runs a model on the data, and re-estimates batch normalisation
operands.py        what is multiplied with weights that are no layer's
attention.py       what hooks cannot see in `nn.MultiheadAttention`, shown to them
gram.py            Gram matrices of the inputs of layers
scores.py          what the masks maximise over: where a new score goes
layer_problem.py   the problem of one layer, and the contract of the methods that solve it
least_squares.py, alps.py, adaprune.py   the methods: a new one is a file, and a row in `reconstruct._METHODS`
conjugate_gradients.py   least squares on many wide rows at once
block_matching.py  after the layers of a block: its outputs as a whole
convert.py         from unstructured zeros to N:M
"""

from .adaprune import AdaPrune
from .alps import ALPS
from .convert import convert_unstructured, supported_pattern
from .layer_problem import Fit, LayerProblem, ReconstructionMethod
from .least_squares import LeastSquares
from .reconstruct import reconstruct
from .report import LayerFit, ReconstructionReport

__all__ = [
    "ALPS",
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
