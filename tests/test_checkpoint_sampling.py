"""The sample of blocks is the one that the documentation promises."""

import numpy as np
import pytest
from checkpoint_files import CODES, write_safetensors

import transmask as tm
from transmask.checkpoint import plan_pruning
from transmask.checkpoint.sampling import sample_blocks

RNG = np.random.default_rng(0)
TENSORS = {
    "conv": RNG.standard_normal((4, 6, 3, 1)).astype(CODES["F16"]),
    "skipped.bias": RNG.standard_normal((8, 8)).astype(np.float32),
    "a.experts": RNG.standard_normal((3, 5, 4)).astype(np.float32),
    "b": RNG.standard_normal((7, 4)).astype(CODES["BF16"]),
}


def all_blocks():
    """List the whole 2 x 2 blocks of every matrix, with loops."""
    blocks = []
    for r, s in np.ndindex(3, 1):
        blocks += [TENSORS["conv"][i : i + 2, j : j + 2, r, s] for i in (0, 2) for j in (0, 2, 4)]
    for matrix in TENSORS["a.experts"]:
        blocks += [matrix[i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2)]
    blocks += [TENSORS["b"][i : i + 2, j : j + 2] for i in (0, 2, 4) for j in (0, 2)]
    return np.array([block.astype(np.float32) for block in blocks])


@pytest.fixture
def plan(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", TENSORS)
    return plan_pruning(tmp_path / "m.safetensors", "1:2")


@pytest.mark.parametrize("n_blocks", [1, 2, 5, 35, 36, 37, 10**9])
def test_blocks_are_taken_evenly(plan, n_blocks):
    expected = all_blocks()
    blocks, n_all = sample_blocks(plan, n_blocks)
    assert n_all == len(expected) == 36
    count = min(n_blocks, 36)
    index = [int((i + 0.5) * 36 / count) for i in range(count)]
    assert blocks.dtype == np.float32
    assert np.array_equal(blocks, expected[index])


def test_float64_is_not_rounded(tmp_path):
    weights = np.full((2, 2), 1 / 3)
    write_safetensors(tmp_path / "m.safetensors", {"a": np.ones((2, 2), np.float16), "b": weights})
    blocks, _ = sample_blocks(plan_pruning(tmp_path / "m.safetensors", "1:2"), 2)
    assert np.array_equal(blocks[1], weights)


def test_what_cannot_be_sampled(tmp_path, plan):
    with pytest.raises(tm.InvalidArgumentError, match="`n_blocks` must be at least 1, got 0"):
        sample_blocks(plan, 0)
    write_safetensors(tmp_path / "m.safetensors", {"fine": np.ones((2, 2)), "bad": np.full((2, 2), np.nan)})
    plan = plan_pruning(tmp_path / "m.safetensors", "1:2")
    with pytest.raises(tm.InvalidArgumentError, match="tensor 'bad': `weights` must be finite"):
        sample_blocks(plan, 2)
