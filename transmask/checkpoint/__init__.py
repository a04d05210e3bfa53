"""Checkpoints: read, pruned and written one tensor at a time, never with pickle, complete or not at all.

`FORMATS` lists what a single file can be; a sharded checkpoint is an index of ``.safetensors`` files.
"""

from ._base import Checkpoint, TensorInfo
from ._open import open_checkpoint
from ._record import PruneRecord
from .apply_planning import ApplyPlan, plan_applying
from .applying import AppliedTensor, apply_masks
from .checking import CheckedTensor, CheckPlan, check_checkpoint, plan_check
from .formats import FORMATS
from .masks_file import Masks, masks_in, read_masks, write_masks
from .outcome import PrunedTensor
from .planning import PrunePlan, plan_pruning
from .pruning import prune_checkpoint
from .recipe import Recipe
from .sampling import sample_blocks
from .selection import Selection, matching_names, select_tensors
from .solving import SolvedTensor, finish_pruning, solve_tensors
from .writing import atomic_file

__all__ = [
    "FORMATS",
    "AppliedTensor",
    "ApplyPlan",
    "CheckPlan",
    "CheckedTensor",
    "Checkpoint",
    "Masks",
    "PrunePlan",
    "PruneRecord",
    "PrunedTensor",
    "Recipe",
    "Selection",
    "SolvedTensor",
    "TensorInfo",
    "apply_masks",
    "atomic_file",
    "check_checkpoint",
    "finish_pruning",
    "masks_in",
    "matching_names",
    "open_checkpoint",
    "plan_applying",
    "plan_check",
    "plan_pruning",
    "prune_checkpoint",
    "read_masks",
    "sample_blocks",
    "select_tensors",
    "solve_tensors",
    "write_masks",
]
