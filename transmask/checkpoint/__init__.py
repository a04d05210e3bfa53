"""Checkpoints: read, pruned and written one tensor at a time, never with pickle, complete or not at all.

``.safetensors`` (one file, or sharded with its index), ``.npz`` and ``.npy``.
"""

from ._base import Checkpoint, TensorInfo
from ._open import open_checkpoint
from ._record import PruneRecord
from .checking import CheckedTensor, CheckPlan, check_checkpoint, plan_check
from .masks_file import Masks, read_masks, write_masks
from .planning import PrunePlan, plan_pruning
from .pruning import PrunedTensor, prune_checkpoint
from .selection import Selection, select_tensors

__all__ = [
    "CheckPlan",
    "CheckedTensor",
    "Checkpoint",
    "Masks",
    "PrunePlan",
    "PruneRecord",
    "PrunedTensor",
    "Selection",
    "TensorInfo",
    "check_checkpoint",
    "open_checkpoint",
    "plan_check",
    "plan_pruning",
    "prune_checkpoint",
    "read_masks",
    "select_tensors",
    "write_masks",
]
