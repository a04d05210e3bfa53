"""Train with masks: put them on a model, refresh them around the optimizer's steps, store and load them.

sparsify.py        puts the masks on
controller.py      what the user holds: attach an optimizer, refresh, freeze, remove
mask_state.py      the mask of one weight and its steps
masked_weight.py   the parametrisation W -> S * W: where a new estimator goes
step_hooks.py      the decay before an optimizer step, the count and the refresh after it
loading.py         checks masks before a model loads them
sharding.py        weights that processes share
unbiased_gradients.py   sparse gradients of outputs, for the products that give the gradients of weights
adapters.py        merges low-rank adapters and keeps the masks
prune_method.py    the same masks in the style of `torch.nn.utils.prune`

Masks that are learnt, from trainable thresholds (Dynamic Sparse Training):

sparsify_by_threshold.py   puts the thresholds on, and checks those that a model loads
threshold_controller.py    what the user holds, and the densities over time
thresholded_weight.py      the parametrisation W -> W * S(abs(W) - t), the regulariser, the reset
threshold_step.py          the step and its long-tailed derivative
"""

from .adapters import merge_adapters
from .controller import MaskController, RefreshRecord
from .prune_method import TransposablePruning, transposable
from .sparsify import sparsify
from .sparsify_by_threshold import sparsify_by_threshold
from .threshold_controller import DensityRecord, ThresholdController
from .unbiased_gradients import UnbiasedGradients, draw_unbiased, prune_gradients

__all__ = [
    "DensityRecord",
    "MaskController",
    "RefreshRecord",
    "ThresholdController",
    "TransposablePruning",
    "UnbiasedGradients",
    "draw_unbiased",
    "merge_adapters",
    "prune_gradients",
    "sparsify",
    "sparsify_by_threshold",
    "transposable",
]
