"""Blocks that some solver once got wrong."""

from __future__ import annotations

import numpy as np

from ..blocks import Array

__all__ = ["hard_blocks"]


def hard_blocks(rng: np.random.Generator, m: int) -> dict[str, Array]:
    """Make two blocks of each kind that some solver once got wrong.

    Parameters
    ----------
    rng : numpy.random.Generator
    m : int

    Returns
    -------
    dict of str to ndarray of float32 or float64, shape (2, M, M)
        Non-negative, by the name of their kind.
    """
    shape = (2, m, m)
    gaussian = np.abs(rng.standard_normal(shape))
    one_huge = rng.random(shape) * 1e-3
    one_huge[[0, 1], rng.integers(0, m, 2), rng.integers(0, m, 2)] = 1e6
    steps = rng.integers(0, 9, shape)
    return {
        "Gaussian": gaussian,
        "Gaussian, float32": gaussian.astype(np.float32),
        "all equal": np.full(shape, 0.3),
        "zero": np.zeros(shape),
        "few levels": steps.astype(np.float32),
        "tenths": steps * 0.1,
        "half zeros": gaussian * (rng.random(shape) < 0.5),
        "one huge entry": one_huge,
        "1e-300 to 1e300": 10.0 ** rng.uniform(-300, 300, shape),
        "near 1e300": gaussian / gaussian.max() * 1e300,
        "denormal": steps * 5e-324,
        "denormal, float32": steps.astype(np.float32) * np.float32(1e-45),
        "rank one": rng.random((2, m, 1)) * rng.random((2, 1, m)),
        "triangle": np.tri(m) + rng.random(shape) * 1e-9,
    }
