"""Train PyTorch models with transposable masks, and convert trained ones."""

from ..errors import MissingDependencyError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError('transmask.torch needs PyTorch. Run: pip install "transmask[torch]"') from None

from .controller import MaskController, RefreshRecord, sparsify
from .prune_method import TransposablePruning, transposable
from .tensor_masks import transposable_mask

__all__ = ["MaskController", "RefreshRecord", "TransposablePruning", "sparsify", "transposable", "transposable_mask"]
