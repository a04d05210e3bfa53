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
    assert contenders["mutual_top_n"]["constraint"] == "at_most"
    assert {name for name, row in contenders.items() if row["blocks timed"] < row["blocks"]} == {
        "network_simplex", "milp", "entropic", "min_cost_flow", "OR-Tools, joint network",
    }  # fmt: skip
    (proven,) = [row["2:4"] for row in found["ratios"] if row["ratio of times"].startswith("`solve`")]
    times = [contenders[f"primal_dual{proof}"]["milliseconds"] for proof in (", with its proof", "")]
    assert proven == times[0] / times[1]
    assert [row["weights"] for row in found["layers"]] == ["16 x 16", "the demo's trained network"]
    assert [row["constraint"] for row in found["hard blocks, time / Gaussian"]] == ["exactly", "at_most"]
    assert all(row["largest gap"] <= 1e-12 for row in found["hard blocks, time / Gaussian"])
    assert "| 2:4 | greedy |" in done.stdout


def measured(monkeypatch, *, greedy=2.0, timed=(8, 8), layers=()):
    """Return the README's section of made-up figures."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.report import readme_section

    halves = [f"primal_dual{proof}, bfloat16" for proof in ("", ", with its proof")]
    plain = ["numpy, plain", "nm_mask", "primal_dual, with its proof", "greedy, with its proof", *halves]
    times = dict.fromkeys(plain, 3.0) | {"primal_dual": 1.0, "greedy": greedy, "milp": 9.0}
    rows = [
        {"pattern": "2:4", "contender": name, "constraint": "at_most" if name == "milp" else None, "rounds": 5,
         "milliseconds": time, "blocks timed": timed[name == "milp"], "blocks": 8, "time / ours": time,
         "plain / time": 3 / time}
        for name, time in times.items()
    ]  # fmt: skip
    report = {"machine": {"threads": 2}, "shape": [8, 16], "rounds": 5, "solvers": rows, "layers": list(layers)}
    return readme_section(report)


def layer(name, ours, greedy, plain):
    times = {"primal_dual, us": ours, "greedy, us": greedy, "numpy, plain, us": plain}
    return {"weights": name, "pattern": "2:4", "blocks": 4, "rounds": 9} | times


def test_the_readme_says_on_how_much_a_time_was_measured(monkeypatch):
    whole = measured(monkeypatch)
    assert "Best of 5 interleaved rounds on a 8 x 16 Gaussian matrix" in whole
    assert "multiplied" not in whole
    assert "| 2:4 | milp, at most | 9 | 8 | 5 | 9 | 0.333 |" in whole
    part = measured(monkeypatch, timed=(8, 2))
    assert "multiplied up" in part
    assert "| 2:4 | milp, at most | 9 | 2 of 8 | 5 | 9 | 0.333 |" in part
    assert "best of 9 interleaved rounds" in measured(monkeypatch, layers=[layer("16 x 16", 1.0, 2.0, 3.0)])


def test_the_readme_says_where_another_is_faster(monkeypatch):
    nowhere = measured(monkeypatch, layers=[layer("16 x 16", 1.0, 2.0, 3.0)])
    assert "In none of these measurements was another solver, or numpy's plain mask, faster" in nowhere
    layers = [layer("16 x 16", 4.0, 2.0, 5.0), layer("the demo's trained network", 4.0, 9.0, 1.0)]
    layers.append(layer("16 x 16", 4.0, 6.0, 5.0) | {"pattern": "4:8"})
    layers.append(layer("the demo's trained network", 4.0, 9.0, 1.0) | {"pattern": "4:8"})
    small = measured(monkeypatch, layers=layers)
    assert "`greedy` takes less time on 16 x 16 at 2:4." in small
    assert "not transposable, takes less time on the demo's trained network at every pattern.\n" in small
    assert "`greedy` takes less time on 8 x 16 at 2:4." in measured(monkeypatch, greedy=0.8)


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


def test_pruning_a_checkpoint_is_timed_against_a_copy(tmp_path):
    command = "-m benchmarks.checkpoint --gigabytes 0.0001 --rounds 1"
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size, *seconds, ratio = done.stdout.splitlines()
    assert size.startswith("0.00 GB, 2:4, 1 rounds")
    assert [line.partition(":")[0] for line in seconds] == ["cp", "transmask prune"]
    assert float(ratio.split()[-1]) > 1
