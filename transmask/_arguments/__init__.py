"""Validate what a caller hands to a public function, once, so that nothing below has to.

One kind of argument a file: `numbers` (integers, real numbers), `axes` (axes and shapes), `arrays` (weights and masks)
and `tensors` (torch's, seen as arrays). This is the ground floor: it imports `errors` and nothing else of the package.
"""

from .arrays import LARGEST_MAGNITUDE, as_mask, as_weights
from .axes import as_axes, as_axis, as_axis_pair, as_shape, matrix_view
from .numbers import as_integer, as_number
from .tensors import is_tensor, tensor_on_cpu, tensor_to_numpy

__all__ = [
    "LARGEST_MAGNITUDE",
    "as_axes",
    "as_axis",
    "as_axis_pair",
    "as_integer",
    "as_mask",
    "as_number",
    "as_shape",
    "as_weights",
    "is_tensor",
    "matrix_view",
    "tensor_on_cpu",
    "tensor_to_numpy",
]
