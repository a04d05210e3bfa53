"""Pruning and checking hold a few pieces of a tensor, however large it is and however many the checkpoint has."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import write_safetensors, write_sharded

pytestmark = [pytest.mark.surface, pytest.mark.slow]

PIECE = 1 << 14
SIDE = 1 << 10

MEASURE = """
import sys, tracemalloc
from transmask.checkpoint import check_checkpoint, checking, plan_pruning, prune_checkpoint
from transmask.solvers import PrimalDual
model, output, masks, piece = sys.argv[1:]
PrimalDual.chunk_entries = checking._STRETCH = int(piece)
# The first run, of one tensor, compiles and fills the caches, and is not measured.
prune_checkpoint(plan_pruning(model, "2:4", include="layers.0"), None, masks=masks, apply=False, threads=2)
tracemalloc.start()
prune_checkpoint(plan_pruning(model, "2:4"), output, masks=masks, threads=2)
print(tracemalloc.get_traced_memory()[1])
tracemalloc.reset_peak()
assert all(found.report.ok for found in check_checkpoint(output, "2:4"))
print(tracemalloc.get_traced_memory()[1])
"""

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((".safetensors", dtype) for dtype in DTYPES), (".npz", np.float32), ("shards", np.float32)],
)
def test_peak_memory_is_a_few_pieces(tmp_path, kind, dtype):
    weights = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(dtype)
    tensors = {f"layers.{i}.weight": np.roll(weights, i) for i in range(4)}
    # A tensor that is only copied may be larger than all others, and is never in memory.
    tensors |= {"embed.weight": np.zeros((4 * SIDE, SIDE), dtype)}
    suffix = kind if kind.startswith(".") else ""
    if kind == ".safetensors":
        write_safetensors(tmp_path / "m.safetensors", tensors)
    elif kind == ".npz":
        np.savez(tmp_path / "m.npz", **tensors)
    else:
        names = list(tensors)
        shards = {f"{i}.safetensors": {name: tensors[name] for name in names[i::3]} for i in range(3)}
        write_sharded(tmp_path / "m", shards)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, f"m{suffix}", f"new{suffix}", "masks.safetensors", str(PIECE)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    prune, check = map(int, done.stdout.split())
    # Four pieces on their way, each with its magnitudes, mask, duals in float64 and the memory of solver and proof.
    assert prune < 3 * weights.size
    # The mask, a byte an entry; how many each group keeps, and whether that breaks the pattern: half as much at 2:4.
    assert check < 1.7 * weights.size + (1 << 19)
