"""Train with masks: put them on a model, refresh them around the optimizer's steps, store and load them.

sparsify.py        puts the masks on
controller.py      what the user holds: attach an optimizer, refresh, freeze, remove
masked_weight.py   the parametrisation W -> S * W: where a new estimator goes
step_hooks.py      the decay before an optimizer step, the count and the refresh after it
loading.py         checks masks before a model loads them
prune_method.py    the same masks in the style of `torch.nn.utils.prune`
"""

from .controller import MaskController, RefreshRecord
from .prune_method import TransposablePruning, transposable
from .sparsify import sparsify

__all__ = ["MaskController", "RefreshRecord", "TransposablePruning", "sparsify", "transposable"]
