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
from transmask.demo import Demo, draw_block

pytestmark = pytest.mark.surface


def metadata(path):
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


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


@pytest.mark.slow
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


def test_the_demo_prunes_the_matrices_that_are_large_enough():
    demo = Demo("2:4")
    assert sorted(demo.pruned) == ["conv2.weight", "fc1.weight", "fc2.weight"]
    assert {name: reason for name, reason in demo.skipped if name.endswith("weight")} == {
        "conv1.weight": "32 x 1 is smaller than M = 4"
    }
    assert demo.n_weights == 64 * 32 * 9 + 100 * 256 + 10 * 100
    assert "fc2.weight" in dict(Demo("4:16").skipped)


def test_a_row_is_what_pruning_by_hand_gives():
    row = Demo("1:4").prune("enumeration", "exactly", threads=1)
    network, (images, labels) = load_network(), load_held_out()
    kept = total = 0.0
    for name in ("conv2.weight", "fc1.weight", "fc2.weight"):
        weights = network[name].astype(np.float64)
        kept_weights = weights * tm.transposable_mask(weights, "1:4", solver="enumeration", axes=(0, 1))
        network[name] = kept_weights
        kept, total = kept + np.abs(kept_weights).sum(), total + np.abs(weights).sum()
    assert row.kept_fraction == pytest.approx(kept / total, rel=1e-12)
    assert row.accuracy == np.mean(predict(network, images) == labels)


@pytest.mark.parametrize("pattern", ["0:4", "4:4", "1:1"])
def test_degenerate_patterns(pattern):
    demo = Demo(pattern)
    full = pattern != "0:4"
    for row in (demo.plain(), demo.prune("enumeration", "exactly"), demo.prune("enumeration", "at_most")):
        assert row.kept_fraction == full
        assert row.gap in (None, 0)
        assert (row.accuracy == demo.dense_accuracy) == full


def test_a_pattern_larger_than_the_network_is_refused():
    with pytest.raises(tm.InvalidArgumentError) as caught:
        Demo("2:101")
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


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """What the command says with nothing asked for, for machines."""
    done = run_command(tmp_path_factory.mktemp("demo"), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_fast_solver_is_shown_under_both_constraints(record):
    slow = {"network_simplex", "milp"}
    expected = {(info.name, limit) for info in tm.list_solvers() for limit in info.constraints if info.name not in slow}
    assert {(row["solver"], row["constraint"]) for row in record["solvers"][1:]} == expected
    assert len(record["solvers"]) == 1 + len(expected)
    assert record["left_out"] == []


def test_the_rows_are_ordered_as_the_theory_says(record):
    plain, *rows = record["solvers"]
    exact = {info.name for info in tm.list_solvers() if info.guarantee == "exact"}
    best = {
        limit: max(r["kept_fraction"] for r in rows if r["constraint"] == limit) for limit in ("exactly", "at_most")
    }
    assert (plain["solver"], plain["constraint"], plain["gap"]) == ("plain", None, None)
    assert plain["kept_fraction"] > best["at_most"] > best["exactly"] > 0.5
    assert not plain["transposable"]
    for row in rows:
        assert row["transposable"]
        assert row["seconds"] > 0
        assert 0.5 < row["accuracy"] < record["dense_accuracy"]
        if row["solver"] in exact:
            assert row["gap"] <= 1e-12
            assert row["kept_fraction"] == pytest.approx(best[row["constraint"]], rel=1e-12)
        else:
            assert row["kept_fraction"] == pytest.approx(best[row["constraint"]] * (1 - row["gap"]), rel=1e-4)


def test_the_json_says_what_was_pruned(record):
    assert record["pattern"] == "2:4"
    assert record["checkpoint"] == str(DIGITS)
    assert record["images"] == 899
    assert record["dense_accuracy"] == pytest.approx(float(metadata(DIGITS)["held_out_accuracy"]), abs=1e-6)
    assert sorted(record["pruned"]) == ["conv2.weight", "fc1.weight", "fc2.weight"]
    assert {"name": "conv1.weight", "reason": "32 x 1 is smaller than M = 4"} in record["skipped"]
    assert record["block"].count("[") == 32


def test_the_command_prints_a_table_and_a_block(tmp_path):
    done = run_command(tmp_path, "--solver", "min_cost_flow", "--solver", "enumeration")
    assert done.returncode == 0
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        "[1/4] min_cost_flow, exactly",
        "[2/4] enumeration, exactly",
        "[3/4] min_cost_flow, at_most",
        "[4/4] enumeration, at_most",
    ]
    lines = done.stdout.splitlines()
    assert "98.67 % of 899 images" in lines[0]
    (plain,) = [line for line in lines if line.startswith("plain")]
    assert plain.split() == ["plain", "rows", "only", "74.33", "%", "-", "-", "98.55", "%", "no"]
    exact = [line.split() for line in lines if line.startswith("enumeration")]
    assert [line[1:6] for line in exact] == [
        ["exactly", "69.54", "%", "0", "(proven)"],
        ["at_most", "69.59", "%", "0", "(proven)"],
    ]
    assert sum(line.count("[") for line in lines) == 32
    assert str(DIGITS) in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_solver_that_cannot_is_left_out_with_its_reason(tmp_path):
    done = run_command(tmp_path, "--pattern", "4:8")
    assert done.returncode == 0
    (reason,) = [line for line in done.stdout.splitlines() if line.startswith("enumeration")]
    assert reason.startswith("enumeration was left out: `solver` 'enumeration' must be given")
    assert "'4:8'" in reason
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("greedy")] == ["greedy"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solver", "gredy"], "Did you mean 'greedy'?"),
        (["--pattern", "4:2"], "did you mean '2:4'?"),
        (["--pattern", "two"], "For example '2:4'."),
        (["--threads", "0"], "`threads` must be at least 1, got 0."),
        (["--pattern", "4:9", "--solver", "enumeration"], "`solver` 'enumeration' must be given"),
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
