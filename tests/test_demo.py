"""The demo's network is what its file says, and the demo measures what the masks really do."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open

import transmask as tm
from transmask.data import DIGITS, DIGITS_HELD_OUT
from transmask.data.digits import load_held_out, load_network, predict
from transmask.demo import ONE_CALL_A_BLOCK, draw_block, run_demo


def metadata(path):
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def demo():
    return run_demo("2:4", threads=1)


def run_command(tmp_path, *arguments):
    """Run the command line as a user does, from a folder that holds nothing."""
    return subprocess.run(
        [sys.executable, "-m", "transmask", "demo", *arguments], cwd=tmp_path, capture_output=True, text=True
    )


def naive_scores(tensors, image):
    """One image through the network, pixel by pixel in float64."""
    layers = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    x = image[None].astype(np.float64) / 16
    for conv in ("conv1", "conv2"):
        weight, bias = layers[f"{conv}.weight"], layers[f"{conv}.bias"]
        channels, side = len(weight), x.shape[1]
        sums = np.zeros((channels, side, side))
        for i, j in np.ndindex(side, side):
            sums[:, i, j] = bias
            for r, s in np.ndindex(3, 3):
                if 0 <= i + r - 1 < side and 0 <= j + s - 1 < side:
                    sums[:, i, j] += weight[:, :, r, s] @ x[:, i + r - 1, j + s - 1]
        x = np.zeros((channels, side // 2, side // 2))
        for i, j in np.ndindex(side // 2, side // 2):
            x[:, i, j] = np.maximum(sums[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2)), 0)
    hidden = np.maximum(layers["fc1.weight"] @ x.ravel() + layers["fc1.bias"], 0)
    return layers["fc2.weight"] @ hidden + layers["fc2.bias"]


def test_the_network_reads_as_many_digits_as_torch_measured():
    images, labels = load_held_out()
    accuracy = np.mean(predict(load_network(), images) == labels)
    assert accuracy == pytest.approx(float(metadata(DIGITS)["held_out_accuracy"]), abs=1e-6)
    assert accuracy > 0.98
    assert len(images) == int(metadata(DIGITS)["held_out_images"]) == 899


def test_the_forward_pass_equals_loops_over_pixels():
    network, (images, _) = load_network(), load_held_out()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 17, (10, 8, 8)).astype(np.uint8)  # digits alone would hide an error of a border pixel
    for picture, digit in zip(
        [*images[:10], *noise], predict(network, np.concatenate([images[:10], noise])), strict=True
    ):
        assert digit == np.argmax(naive_scores(network, picture))


def test_a_scrambled_network_reads_nothing():
    network, (images, labels) = load_network(), load_held_out()
    rng = np.random.default_rng(0)
    scrambled = {name: rng.permuted(tensor.astype(np.float32)) for name, tensor in network.items()}
    assert np.mean(predict(scrambled, images) == labels) < 0.3


def test_files_tell_where_they_come_from_and_stay_small():
    network, held_out = metadata(DIGITS), metadata(DIGITS_HELD_OUT)
    assert network["script"] == held_out["script"] == "examples/train_demo_checkpoint.py"
    assert network["split"] == held_out["split"]
    assert network["seed"] == "0"
    assert "Alpaydin" in held_out["source"]
    assert "CC BY 4.0" in held_out["source"]
    assert DIGITS.stat().st_size + DIGITS_HELD_OUT.stat().st_size < 400_000


def test_the_held_out_images_were_never_shown():
    sklearn = pytest.importorskip("sklearn.model_selection")
    from sklearn.datasets import load_digits

    digits = load_digits()
    with safe_open(DIGITS_HELD_OUT, framework="numpy") as file:
        index = file.get_tensor("index")
    images, labels = load_held_out()
    assert np.array_equal(images, digits.images[index])
    assert np.array_equal(labels, digits.target[index])
    assert metadata(DIGITS)["split"] == (
        "train_test_split(range(1797), test_size=0.5, random_state=0, stratify=target)"
    )
    shown, _ = sklearn.train_test_split(np.arange(1797), test_size=0.5, random_state=0, stratify=digits.target)
    assert not set(shown) & set(index.tolist())
    assert not {digits.images[i].tobytes() for i in shown} & {image.astype(float).tobytes() for image in images}


def test_every_fast_solver_is_shown_under_both_constraints(demo):
    fast = [info.name for info in tm.list_solvers() if info.name not in ONE_CALL_A_BLOCK]
    refused = [(name, constraint) for name, constraint, _ in demo.refused]
    shown = [(row.solver, row.constraint) for row in demo.rows[1:]]
    assert sorted(shown + refused) == sorted((name, limit) for name in fast for limit in ("exactly", "at_most"))
    assert sorted(demo.pruned) == ["conv2.weight", "fc1.weight", "fc2.weight"]
    assert {name: reason for name, reason in demo.dense if name.endswith("weight")} == {
        "conv1.weight": "32 x 1 is smaller than M = 4"
    }


def test_the_rows_are_ordered_as_the_theory_says(demo):
    plain, *rows = demo.rows
    exact = {info.name for info in tm.list_solvers() if info.guarantee == "exact"}
    best = {limit: max(row.kept for row in rows if row.constraint == limit) for limit in ("exactly", "at_most")}
    assert plain.kept > best["at_most"] > best["exactly"] > 0.5
    assert not plain.transposable
    for row in rows:
        assert row.transposable
        assert row.seconds > 0
        assert 0.5 < row.accuracy < demo.dense_accuracy
        if row.solver in exact:
            assert row.gap <= 1e-12
            assert row.kept == pytest.approx(best[row.constraint], rel=1e-12)
        else:
            assert row.kept == pytest.approx(best[row.constraint] * (1 - row.gap), rel=1e-4)


def test_a_row_is_what_pruning_by_hand_gives():
    row = run_demo("1:4", solvers=["enumeration"], threads=1).rows[1]
    network, (images, labels) = load_network(), load_held_out()
    kept = total = 0.0
    for name in ("conv2.weight", "fc1.weight", "fc2.weight"):
        weights = network[name].astype(np.float64)
        kept_weights = weights * tm.transposable_mask(weights, "1:4", solver="enumeration", axes=(0, 1))
        network[name] = kept_weights
        kept, total = kept + np.abs(kept_weights).sum(), total + np.abs(weights).sum()
    assert row.kept == pytest.approx(kept / total, rel=1e-12)
    assert row.accuracy == np.mean(predict(network, images) == labels)


@pytest.mark.parametrize("pattern", ["0:4", "4:4", "1:1"])
def test_degenerate_patterns(pattern):
    demo = run_demo(pattern, solvers=["enumeration"])
    full = pattern != "0:4"
    for row in demo.rows:
        assert row.kept == full
        assert row.gap in (None, 0)
        assert (row.accuracy == demo.dense_accuracy) == full


def test_a_solver_that_refuses_the_pattern_is_named_with_its_reason():
    demo = run_demo("4:8", solvers=["enumeration", "greedy"])
    assert [(name, limit) for name, limit, _ in demo.refused] == [
        ("enumeration", "exactly"),
        ("enumeration", "at_most"),
    ]
    assert "4:8" in demo.refused[0][2]
    assert [row.solver for row in demo.rows] == ["plain", "greedy", "greedy"]


def test_a_pattern_larger_than_the_network_is_refused():
    with pytest.raises(tm.InvalidArgumentError) as caught:
        run_demo("2:101")
    assert str(caught.value) == "`pattern` must have M of at most 100 for the demo's network, got '2:101'. Try '2:4'."


@pytest.mark.parametrize("pattern", ["2:4", "1:2", "4:8", "2:6", "3:16", "1:20"])
def test_the_drawing_brackets_what_is_kept(pattern):
    n, m = map(int, pattern.split(":"))
    weights = np.random.default_rng(1).standard_normal((24 // m * m or m,) * 2)
    mask = tm.transposable_mask(weights, pattern, solver="greedy")
    side = min(len(weights), 16)
    lines = [line for line in draw_block(weights, mask, pattern).split("\n") if line.strip("-+")]
    assert len(lines) == side
    assert [line.count("[") for line in lines] == mask[:side, :side].sum(axis=1).tolist()
    assert max(map(len, draw_block(weights, mask, pattern).split("\n"))) <= 5 * side + 3 * (side // m)
    if m <= 16:
        assert sum(line.count("[") for line in lines[:m]) == n * (side // m) * m + mask[:m, side // m * m : side].sum()


def test_the_command_prints_a_table_and_a_block(tmp_path):
    done = run_command(tmp_path, "--solver", "greedy", "--solver", "enumeration")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "A network that reads digits of 8 x 8 pixels: 98.67 % of 899 images"
    (plain,) = [line for line in lines if line.startswith("plain")]
    assert plain.split() == ["plain", "rows", "only", "74.33", "%", "-", "-", "98.55", "%", "no"]
    exact = [line.split() for line in lines if line.startswith("enumeration")]
    assert [line[1] for line in exact] == ["exactly", "at_most"]
    assert [line[2:6] for line in exact] == [["69.54", "%", "0", "(proven)"], ["69.59", "%", "0", "(proven)"]]
    assert [line.split()[1] for line in lines if line.startswith("greedy")] == ["exactly", "at_most"]
    assert sum(line.count("[") for line in lines) == 32
    assert str(DIGITS) in lines[-1]


def test_the_command_prints_json(tmp_path):
    done = run_command(tmp_path, "--pattern", "4:8", "--solver", "min_cost_flow", "--solver", "enumeration", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert record["pattern"] == "4:8"
    assert record["images"] == 899
    assert [(row["solver"], row["constraint"]) for row in record["rows"]] == [
        ("plain", None),
        ("min_cost_flow", "exactly"),
        ("min_cost_flow", "at_most"),
    ]
    assert all(row["gap"] <= 1e-12 for row in record["rows"][1:])
    assert [item["solver"] for item in record["refused"]] == ["enumeration", "enumeration"]
    assert record["checkpoint"] == str(DIGITS)
    assert "32 x 1 is smaller than M = 8" in record["dense"]["conv1.weight"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solver", "gredy"], "Did you mean 'greedy'?"),
        (["--pattern", "4:2"], "did you mean '2:4'?"),
        (["--pattern", "two"], "For example '2:4'."),
        (["--threads", "0"], "`threads` must be at least 1, got 0."),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_use_gets_one_line_and_exit_code_2(tmp_path, arguments, message):
    done = run_command(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
