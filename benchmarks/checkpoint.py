"""Time `transmask prune` of a large checkpoint against `cp` of the same file.

    python -m benchmarks.checkpoint                 # 2 GB, half of it bfloat16; run it with nothing else on the machine
    python -m benchmarks.checkpoint --gigabytes 0.5

Both are whole processes that read a file in the page cache and write a new one to the same disk, up to fsync; they take
turns. Their times vary with what the disk is still doing, so that the median stands beside the best.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file


def write_checkpoint(path: Path, gigabytes: float) -> None:
    """Write Gaussian matrices of up to 4096 x 4096, as many bytes in float32 as in bfloat16."""
    side = min(4096, math.isqrt(int(gigabytes * 1e9 / 8)))
    weights = np.random.default_rng(0).standard_normal((side, side), np.float32)
    pairs = max(1, round(gigabytes * 1e9 / (2 * weights.nbytes)))
    dtypes = [np.float32, ml_dtypes.bfloat16, ml_dtypes.bfloat16] * pairs
    save_file({f"layers.{i}.weight": (weights * (1 + i / 64)).astype(dtype) for i, dtype in enumerate(dtypes)}, path)


def seconds_of(command: Sequence[str], output: Path) -> float:
    """Run a command that writes `output`; return its wall time up to the end of fsync, and remove the output."""
    os.sync()
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    with open(output, "rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    output.unlink()
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        model, output = Path(folder, "model.safetensors"), Path(folder, "output.safetensors")
        write_checkpoint(model, options.gigabytes)
        prune = [
            sys.executable,
            "-m",
            "transmask",
            "prune",
            str(model),
            "-o",
            str(output),
            "--pattern",
            options.pattern,
        ]
        commands = {"cp": ["cp", str(model), str(output)], "transmask prune": prune}
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                times[name].append(seconds_of(command, output))
        print(f"{model.stat().st_size / 1e9:.2f} GB, {options.pattern}, {options.rounds} rounds, seconds:")
    for name, found in times.items():
        print(f"{name}: best {min(found):.2f}, median {statistics.median(found):.2f}, worst {max(found):.2f}")
    best, median = (choose(times["transmask prune"]) / choose(times["cp"]) for choose in (min, statistics.median))
    print(f"transmask prune / cp: best {best:.2f}, median {median:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
