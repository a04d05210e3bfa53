"""Pruning holds one tensor at a time, however many the checkpoint has."""

import subprocess
import sys

import numpy as np
import pytest
from checkpoint_files import write_safetensors, write_sharded

pytestmark = [pytest.mark.surface, pytest.mark.slow]

LARGEST = 1 << 20
N_TENSORS = 16

MEASURE = """
import sys, tracemalloc
from transmask.checkpoint import check_checkpoint, plan_pruning, prune_checkpoint
model, output, masks = sys.argv[1:]
options = {"solver": "enumeration"}
# The first run, of one tensor, fills the caches and is not measured.
prune_checkpoint(plan_pruning(model, "2:4", include="layers.0", **options), None, masks=masks, apply=False, threads=1)
tracemalloc.start()
prune_checkpoint(plan_pruning(model, "2:4", **options), output, masks=masks, threads=1)
assert all(found.report.ok for found in check_checkpoint(output, "2:4"))
print(tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize("kind", [".safetensors", ".npz", "shards"])
def test_peak_memory_is_a_few_tensors(tmp_path, kind):
    side = int((LARGEST / 4) ** 0.5)
    weights = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)
    tensors = {f"layers.{i}.weight": weights for i in range(N_TENSORS)}
    # A tensor that is only copied may be larger than all others, and is never in memory.
    tensors |= {"embed.weight": np.zeros((16 * side, side), np.float32)}
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
        [sys.executable, "-c", MEASURE, f"m{suffix}", f"new{suffix}", "masks.safetensors"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # 5.7 when this was written: the tensor, its magnitudes, its mask, its duals in float64, chunks of the solver and of
    # the certificate. All tensors together, which must not be held, are 32.
    assert LARGEST < int(done.stdout) < 10 * LARGEST
