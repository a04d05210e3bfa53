"""Blocks that are hard for somebody: (name, function of (rng, count, m) that returns (count, m, m) scores >= 0)."""

import numpy as np


def gaussian(rng, count, m):
    return np.abs(rng.standard_normal((count, m, m)))


def gaussian_float32(rng, count, m):
    return gaussian(rng, count, m).astype(np.float32)


def constant(rng, count, m):
    return np.full((count, m, m), 0.3)


def zeros(rng, count, m):
    return np.zeros((count, m, m))


def int4(rng, count, m):
    return np.abs(rng.integers(-8, 8, (count, m, m))).astype(np.int8)


def tenths(rng, count, m):
    return rng.integers(0, 8, (count, m, m)) * 0.1


def half_zeros(rng, count, m):
    return gaussian(rng, count, m) * (rng.random((count, m, m)) < 0.5)


def rank_one(rng, count, m):
    return rng.random((count, m, 1)) * rng.random((count, 1, m))


def cauchy(rng, count, m):
    return np.abs(rng.standard_cauchy((count, m, m)))


def one_huge(rng, count, m):
    scores = rng.random((count, m, m)) * 1e-3
    scores[:, 0, 0] = 1e6
    return scores


def one_kept(rng, count, m):
    scores = np.zeros((count, m, m))
    scores[:, m // 2, 0] = 1.0
    return scores


def sixty_decades(rng, count, m):
    return 10.0 ** rng.uniform(-30, 30, (count, m, m))


def six_hundred_decades(rng, count, m):
    return 10.0 ** rng.uniform(-300, 300, (count, m, m))


def huge(rng, count, m):
    scores = gaussian(rng, count, m)
    return scores / scores.max() * 1e300


def denormal(rng, count, m):
    return rng.integers(0, 9, (count, m, m)) * 5e-324


def denormal_float32(rng, count, m):
    return rng.integers(0, 9, (count, m, m)).astype(np.float32) * np.float32(1e-45)


def triangle(rng, count, m):
    return np.tri(m) + rng.random((count, m, m)) * 1e-9


def band(rng, count, m):
    return np.broadcast_to(np.eye(m) + np.eye(m, k=1), (count, m, m)).copy()


def near_ties(rng, count, m):
    return 1 + rng.random((count, m, m)) * 1e-10


def below_resolution(rng, count, m):
    """One entry of 1 over entries that an integer scaling to less than 53 bits would round away."""
    scores = rng.random((count, m, m)) * 2.0**-52
    scores[:, 0, 0] = 1.0
    return scores


def better_with_fewer(rng, count, m):
    """With N = M / 2, lines 0 keep one heavy entry, the rest is full without them: "exactly" has to break that up."""
    line = np.arange(m - 1)
    scores = rng.random((count, m, m)) * 1e-3
    scores[:, 1:, 1:] += (line[:, None] - line) % (m - 1) < m // 2 if m > 1 else 0.0
    scores[:, 0, 0] = 5.0
    return scores


FAMILIES = (
    gaussian,
    gaussian_float32,
    constant,
    zeros,
    int4,
    tenths,
    half_zeros,
    rank_one,
    cauchy,
    one_huge,
    one_kept,
    sixty_decades,
    six_hundred_decades,
    huge,
    denormal,
    denormal_float32,
    triangle,
    band,
    near_ties,
    below_resolution,
    better_with_fewer,
)
