"""Perturb the scores of blocks that tie, so that their optimum is unique.

One function perturbs a block while it is loaded into its lane (M > 8), the other all lanes at once (M <= 8); the scores
that come out are the same. The perturbation grows with the number of low bits that the scores leave unused: below a
quarter of the least bit in use it hardly changes the order of two masks, and the sweeps, which move by amounts of its
size, are faster.

Where it would hide most scores because they lie decades apart, it is 16 times smaller, and the eighth roots of the
exact scores take the place of the scores: nearly always the same masks are optimal.
"""

# mypy: ignore-errors

from __future__ import annotations

from functools import lru_cache

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from ..numbers import HIDDEN, LANES, LARGEST_EXTRA, NOISE_BITS, ROOT_BITS
from .block_rows import BlockRows
from .lane import exact_rows, quantised_rows
from .lane_vectors import NARROW, WIDE, constant, load, store, vectors
from .native import INDEX, M, function, native, splat

__all__ = ["define_load_perturbed_lane", "define_perturb_lanes", "load_perturbed_lane", "perturb_lanes", "perturbation"]


@lru_cache(maxsize=16)
def perturbation(m: int) -> NDArray[np.int32]:
    """Return the perturbation of each position, 1 to 2**NOISE_BITS by splitmix64."""
    state = (np.arange(1, m * m + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return (1 + (state >> np.uint64(64 - NOISE_BITS))).astype(np.int32)


@native(types.int64)
def load_perturbed_lane(
    kernels, weights: np.ndarray, offset, stride, shift, exact_shift, noise: np.ndarray, scores: np.ndarray, lane
):  # fmt: skip
    """Quantise a block into a lane, and perturb it; see the module.

    Parameters
    ----------
    kernels, weights, offset, stride, shift, scores, lane
        As in `load_lane`.
    exact_shift : int
        As `shift` in `load_exact_lane`.
    noise : ndarray of int32, shape (M * M,)
        1 to 2**NOISE_BITS for each position.

    Returns
    -------
    int
        1 if the roots were taken, else 0.
    """
    quantised = quantised_rows(kernels, weights, offset, stride, shift)
    noise = noise[: quantised.size].reshape(quantised.shape)
    hidden = ((quantised > 0) & (quantised < HIDDEN)).sum()
    roots_taken = hidden > (quantised >= HIDDEN).sum()
    if roots_taken:
        exact = exact_rows(kernels, weights, offset, stride, exact_shift)
        bits = exact.astype(np.float32).view(np.int32)
        loaded = ((bits >> 3) + ROOT_BITS).view(np.float32).astype(np.int32) + (noise >> 4)
    else:
        union = int(np.bitwise_or.reduce(quantised.ravel()))
        zeros = (union & -union).bit_length() - 1 if union else 32
        loaded = quantised + (noise << min(max(zeros - NOISE_BITS - 2, 0), LARGEST_EXTRA))
    scores[lane : loaded.size * LANES : LANES] = loaded.ravel()
    return int(roots_taken)


@native(types.none)
def perturb_lanes(kernels, scores: np.ndarray, exact: np.ndarray, noise: np.ndarray):
    """Perturb the scores of all lanes; see the module.

    Parameters
    ----------
    kernels : ndarray of int64
        The table of the pattern.
    scores : ndarray of int32, shape (M * M * LANES,)
        Updated. Aligned to a vector.
    exact : ndarray of int64, shape (M * M * LANES,)
        The exact scores. Aligned to a vector.
    noise : ndarray of int32, shape (M * M,)
        1 to 2**NOISE_BITS for each position.
    """
    m = int(kernels[M])
    grid, noise = scores.reshape(m * m, LANES), noise[: m * m, None]
    hidden = (grid > 0) & (grid < HIDDEN)
    roots_taken = hidden.sum(axis=0) > (grid >= HIDDEN).sum(axis=0)
    union = np.bitwise_or.reduce(grid, axis=0)
    zeros = np.where(union == 0, 32, np.frexp((union & -union).astype(np.float64))[1] - 1)
    extra = np.clip(zeros - NOISE_BITS - 2, 0, LARGEST_EXTRA)
    bits = exact.reshape(m * m, LANES).astype(np.float32).view(np.int32)
    roots = ((bits >> 3) + ROOT_BITS).view(np.float32).astype(np.int32)
    grid[...] = np.where(roots_taken, roots + (noise >> 4), grid + (noise << extra))


def define_load_perturbed_lane(module, n, m, weight_type):
    """Generate `load_perturbed_lane` for a pattern."""
    with function(module, load_perturbed_lane, types.int64) as (
        builder, weights, offset, stride, shift, exact_shift, noise, scores, lane
    ):  # fmt: skip
        rows = BlockRows(builder, m, weight_type, weights, offset, stride)
        factors, exact_factors = rows.factors(shift), rows.factors(exact_shift, ir.DoubleType())
        noise, scores = (builder.bitcast(pointer, ir.IntType(32).as_pointer()) for pointer in (noise, scores))
        target = builder.gep(scores, [lane])
        zero = rows.constant(0)
        union, balance = (cgutils.alloca_once_value(builder, zero) for _ in range(2))
        with rows.loop() as (_, row):
            quantised = rows.quantise(row, factors)
            builder.store(builder.or_(builder.load(union), quantised), union)
            positive = builder.zext(builder.icmp_signed(">", quantised, zero), rows.integers)
            visible = builder.icmp_signed(">=", quantised, rows.constant(HIDDEN))
            counted = builder.select(visible, rows.constant(-1), positive)
            builder.store(builder.add(builder.load(balance), counted), balance)

        def reduced(name, vector):
            reduce = rows.intrinsic(f"vector.reduce.{name}", ir.IntType(32), rows.integers)
            return builder.call(reduce, [builder.load(vector)])

        def shaken(index, row, bits, arithmetic):
            start = builder.mul(index, INDEX(m))
            noise_row = rows.load(builder.gep(noise, [start]), rows.integers)
            shifted = arithmetic(noise_row, splat(builder, bits, m))
            rows.scatter(builder.add(row, shifted), builder.gep(target, [builder.mul(start, INDEX(LANES))]))

        roots_taken = builder.icmp_signed(">", reduced("add", balance), ir.IntType(32)(0))
        with builder.if_else(roots_taken) as (take_roots, take_scores):
            with take_roots, rows.loop() as (index, row):
                reals = ir.VectorType(ir.FloatType(), m)
                bits = builder.bitcast(builder.sitofp(rows.exact(row, exact_factors)[0], reals), rows.integers)
                bits = builder.add(builder.ashr(bits, rows.constant(3)), rows.constant(ROOT_BITS))
                root = builder.fptosi(builder.bitcast(bits, reals), rows.integers)
                shaken(index, root, ir.IntType(32)(4), builder.ashr)
            with take_scores:
                used = reduced("or", union)
                count_zeros = cgutils.get_or_insert_function(
                    module, ir.FunctionType(used.type, [used.type, ir.IntType(1)]), "llvm.cttz.i32"
                )
                zeros = builder.call(count_zeros, [used, ir.IntType(1)(0)])
                extra = builder.sub(zeros, used.type(NOISE_BITS + 2))
                for order, bound in (("<", 0), (">", LARGEST_EXTRA)):
                    beyond = builder.icmp_signed(order, extra, used.type(bound))
                    extra = builder.select(beyond, used.type(bound), extra)
                with rows.loop() as (index, row):
                    shaken(index, rows.quantise(row, factors), extra, builder.shl)
        builder.ret(builder.zext(roots_taken, INDEX))


def define_perturb_lanes(module, n, m, weight_type):
    """Generate `perturb_lanes` for a pattern."""
    with function(module, perturb_lanes, types.none) as (builder, scores, exact, noise):
        (scores,), (exact,) = vectors(builder, NARROW, scores), vectors(builder, WIDE, exact)
        noise = builder.bitcast(noise, ir.IntType(32).as_pointer())
        zero = constant(NARROW, 0)
        union, balance = (cgutils.alloca_once_value(builder, zero) for _ in range(2))
        with cgutils.for_range(builder, INDEX(m * m)) as entry:
            score = load(builder, scores, entry.index)
            builder.store(builder.or_(builder.load(union), score), union)
            positive = builder.zext(builder.icmp_signed(">", score, zero), NARROW)
            visible = builder.icmp_signed(">=", score, constant(NARROW, HIDDEN))
            counted = builder.select(visible, constant(NARROW, -1), positive)
            builder.store(builder.add(builder.load(balance), counted), balance)
        count_type = ir.FunctionType(NARROW, [NARROW, ir.IntType(1)])
        count_zeros = cgutils.get_or_insert_function(module, count_type, f"llvm.cttz.v{LANES}i32")
        zeros = builder.call(count_zeros, [builder.load(union), ir.IntType(1)(0)])
        extra = builder.sub(zeros, constant(NARROW, NOISE_BITS + 2))
        for order, bound in (("<", 0), (">", LARGEST_EXTRA)):
            limit = constant(NARROW, bound)
            extra = builder.select(builder.icmp_signed(order, extra, limit), limit, extra)
        roots_taken = builder.icmp_signed(">", builder.load(balance), zero)
        with cgutils.for_range(builder, INDEX(m * m)) as entry:
            single = splat(builder, builder.load(builder.gep(noise, [entry.index])), LANES)
            usual = builder.add(load(builder, scores, entry.index), builder.shl(single, extra))
            reals = ir.VectorType(ir.FloatType(), LANES)
            bits = builder.bitcast(builder.sitofp(load(builder, exact, entry.index), reals), NARROW)
            bits = builder.add(builder.ashr(bits, constant(NARROW, 3)), constant(NARROW, ROOT_BITS))
            root = builder.fptosi(builder.bitcast(bits, reals), NARROW)
            root = builder.add(root, builder.ashr(single, constant(NARROW, 4)))
            store(builder, builder.select(roots_taken, root, usual), scores, entry.index)
        builder.ret_void()
