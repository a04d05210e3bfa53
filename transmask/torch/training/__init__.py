"""Train with masks: put them on a model, refresh them around the optimizer's steps, store and load them."""

from .controller import MaskController, RefreshRecord
from .prune_method import TransposablePruning, transposable
from .sparsify import sparsify

__all__ = ["MaskController", "RefreshRecord", "TransposablePruning", "sparsify", "transposable"]
