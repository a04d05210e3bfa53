"""Functions generated as LLVM for one pattern at a time, each beside the Python twin that says what it does.

===================  ===============================================================================================
`native`             how a compiled kernel calls generated code, and how that code is compiled
`code_store`         where it is kept on disk
`weights`            the types of weights, and how they are loaded
`half_sweep`         half a sweep on LANES blocks, and `LineVectors`, its instructions
`selection_network`  the minima and maxima that find the N-th and the (N+1)-th largest
`tile`               M <= 8: load, solve and store a tile
`exact_lanes`        M <= 8: load LANES blocks with exact scores, and quantise them
`magnitudes`         any M: load the magnitudes of one block as float64
`lane`               M > 8: load one block into its lane, and store its mask
`perturbation`       perturb one lane or all of them
`confirm`            a warm start of one block where it stands
`proof`              mark, relax and store LANES masks
`lane_vectors`       vectors with a block in every lane
`block_rows`         vectors that are the rows of one block
===================  ===============================================================================================

To change one, change the twin and the generator beside it; tests/test_primal_dual_kernels.py compares them bit for bit.
To add one, name it in `native.FUNCTIONS` and add its generator to `pattern_kernels`.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..numbers import LARGEST_TILE_M
from .confirm import define_confirm_block
from .exact_lanes import define_exact_lanes
from .half_sweep import define_half_sweep
from .lane import define_lane_functions
from .magnitudes import define_load_magnitudes
from .native import compile_table
from .perturbation import define_load_perturbed_lane, define_perturb_lanes
from .proof import define_proof_functions
from .tile import define_solve_tile
from .weights import WEIGHT_TYPES

__all__ = ["pattern_kernels"]


@cache
def pattern_kernels(n: int, m: int, dtype: str) -> NDArray[np.int64]:
    """Return the table of the functions that are generated for a pattern and weights of a dtype; see `native`."""
    small = [define_solve_tile, define_exact_lanes, define_perturb_lanes]
    large = [define_lane_functions, define_load_perturbed_lane, define_confirm_block]
    definitions = [
        define_half_sweep,
        define_proof_functions,
        define_load_magnitudes,
        *(small if m <= LARGEST_TILE_M else large),
    ]
    table: NDArray[np.int64] = compile_table(n, m, WEIGHT_TYPES[dtype], definitions)
    return table
