"""The benchmark runs on a small size in a process of its own, and its yardsticks do what they say."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import transmask as tm

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.surface,
    pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are in the repository only"),
]


@pytest.mark.slow
def test_it_runs_on_a_small_size_and_writes_json(tmp_path):
    report = tmp_path / "report.json"
    command = "-m benchmarks.solvers --rows 16 --columns 16 --rounds 1 --blocks 2 --patterns 2:4 --json"
    done = subprocess.run(
        [sys.executable, *command.split(), str(report)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    contenders = {row["contender"]: row for row in found["solvers"]}
    assert set(contenders) > {info.name for info in tm.list_solvers()}
    assert all(row["milliseconds"] > 0 for row in contenders.values())
    exact = [info.name for info in tm.list_solvers() if info.guarantee == "exact"]
    assert all(abs(contenders[name]["loss"]) < 1e-12 for name in exact)
    assert contenders["primal_dual"]["time / ours"] == 1.0
    assert [row["constraint"] for row in found["hard blocks, time / Gaussian"]] == ["exactly", "at_most"]
    assert all(row["largest gap"] <= 1e-12 for row in found["hard blocks, time / Gaussian"])
    assert "| 2:4 | greedy |" in done.stdout


def test_the_yardsticks_make_the_masks_they_are_timed_for(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.yardsticks import joint_flow, plain_mask

    weights = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    pattern = tm.Pattern(2, 4)
    assert (plain_mask(weights, pattern)() == tm.nm_mask(weights, pattern)).all()
    blocks = weights.reshape(2, 4, 4, 4).swapaxes(1, 2).reshape(-1, 4, 4)
    masks = joint_flow(blocks, pattern)()
    kept = sum(tm.solve(block, pattern, solver="enumeration").kept for block in blocks)
    assert np.abs(blocks)[masks].sum(dtype=float) == pytest.approx(kept, rel=1e-9)


@pytest.mark.slow
def test_two_versions_are_timed_in_turn():
    command = [sys.executable, "-m", "benchmarks.versions", sys.executable, sys.executable, "--rounds", "2"]
    small = ["--rows", "256", "--columns", "64", "--only", "2:4, "]
    done = subprocess.run([*command, *small], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert {"2:4, 1 threads", "2:4, rank one", "2:4, greedy", "2:4, warm start"} <= {row[0] for row in rows}
    assert all(float(cell) > 0 for row in rows for cell in row[1:])
