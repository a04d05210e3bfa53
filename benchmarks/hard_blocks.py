"""Weights that are hard on a solver: ties, zeros, structure and huge ranges."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["hard_weights"]


def hard_weights(rows: int, columns: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Make one matrix of each kind, Gaussian first, all of float32.

    Parameters
    ----------
    rows, columns : int
    seed : int, default 0

    Returns
    -------
    dict of str to ndarray of float32, shape (rows, columns)
    """
    random = np.random.default_rng(seed)
    gaussian = random.standard_normal((rows, columns)).astype(np.float32)
    kinds = {
        "Gaussian": gaussian,
        "constant": np.ones_like(gaussian),
        "zero": np.zeros_like(gaussian),
        "int4": np.rint(gaussian / np.abs(gaussian).max() * 7),
        "bfloat16": gaussian.astype(ml_dtypes.bfloat16),
        "half zero": gaussian * (random.random(gaussian.shape) < 0.5),
        "rank one": np.outer(random.standard_normal(rows), random.standard_normal(columns)),
        "scaled columns": gaussian * np.exp(random.standard_normal(columns)),
        "Student t(1.5)": random.standard_t(1.5, gaussian.shape),
        "one huge in 256": np.where(random.random(gaussian.shape) < 1 / 256, 1e8, gaussian),
        "1e-30 to 1e30": 10.0 ** random.uniform(-30, 30, gaussian.shape),
    }
    return {name: np.ascontiguousarray(weights, np.float32) for name, weights in kinds.items()}
