"""`transmask diversity` and `transmask sad` as processes, and the page that shows what they print."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import transmask as tm
from transmask.checkpoint import write_masks

pytestmark = pytest.mark.surface

CHECKOUT = Path(__file__).parents[1]
PAGE = CHECKOUT / "docs" / "mask-diversity.md"


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "transmask", *map(str, arguments)], cwd=folder, capture_output=True, text=True
    )


def output(folder, *arguments):
    done = run(folder, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def as_json(folder, *arguments):
    return json.loads(output(folder, *arguments, "--json"))


def refresh():
    """Load the script that writes the outputs in the pages; docs/ is not installed."""
    spec = importlib.util.spec_from_file_location("refresh", CHECKOUT / "docs" / "refresh.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_page_shows_what_its_commands_and_examples_print():
    text = PAGE.read_text(encoding="utf-8")
    assert text.count("$ transmask diversity 2:4 4:8 --shape 8x8\n") == 1
    assert refresh().render(text) == text


def test_a_page_that_is_out_of_date_is_found():
    stale = "```python\n>>> 1 + 1\n3\n>>> for i in range(2):\n...     print(i)\n```\n"
    assert refresh().render(stale) == "```python\n>>> 1 + 1\n2\n>>> for i in range(2):\n...     print(i)\n0\n1\n```\n"
    with pytest.raises(ValueError, match="must run transmask, got 'rm x'"):
        refresh().render("```console\n$ rm x\n```\n")


def test_what_the_page_says_about_permutation_matrices():
    matrices = [np.eye(4, dtype=int)[list(order)] for order in permutations(range(4))]
    pairs = [first + second for first in matrices for second in matrices if not (first & second).any()]
    assert (len(matrices), len(pairs), len({mask.tobytes() for mask in pairs})) == (24, 24 * 9, 90)


def test_links_and_files_of_the_page_exist():
    text = PAGE.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) == 3
    for link in links:
        assert (PAGE.parent / link).read_bytes().startswith(b"\x89PNG")
    assert (CHECKOUT / "examples" / "draw_pictures.py").exists()
    assert "examples/draw_pictures.py" in text


@pytest.mark.slow
def test_the_pictures_of_the_page_can_be_drawn_again(tmp_path):
    pytest.importorskip("matplotlib")
    script = CHECKOUT / "examples" / "draw_pictures.py"
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    subprocess.run([sys.executable, script, tmp_path], env=environment, capture_output=True, check=True)
    drawn = {file.name: file.read_bytes()[:8] for file in tmp_path.iterdir()}
    assert drawn == {Path(link).name: b"\x89PNG\r\n\x1a\n" for link in re.findall(r"\]\((img/.*?)\)", PAGE.read_text())}


def test_counts_are_printed_exactly_and_by_the_paper(tmp_path):
    lines = output(tmp_path, "diversity", "2:4", "4:8").splitlines()
    assert lines[0] == "number of masks for 8 x 8 entries"
    rows = {re.split(r"\s{2,}", line)[0]: re.split(r"\s{2,}", line)[1:] for line in lines[2:]}
    assert list(rows) == ["unstructured 0.5", "2:4 row-wise", "4:8 row-wise", "2:4 transposable", "4:8 transposable"]
    assert rows["4:8 transposable"] == ["116,963,796,250", "0.5745", "17,557,585,920,000", "0.6875"]
    assert rows["unstructured 0.5"] == ["1.833e+18", "0.9479"] * 2


def test_json_has_every_digit(tmp_path):
    record = as_json(tmp_path, "diversity", "2:4", "--shape", "16x24", "--structures", "transposable,at_most,block")
    assert record["shape"] == [16, 24]
    exact, at_most, block = record["structures"]
    assert [int(exact["count"]), int(exact["hubara2021"]["count"])] == [90**24, 144**24]
    assert exact["bits_per_weight"] == pytest.approx(math.log2(90) / 16)
    assert (int(at_most["count"]), at_most["hubara2021"]) == (7343**24, None)
    assert (block["structure"], int(block["count"])) == ("blocks 4x4 0.5", math.comb(24, 12))


def test_an_integer_too_long_to_read_back_is_left_out_of_the_json(tmp_path):
    (large,) = as_json(tmp_path, "diversity", "2:4", "--shape", "400x400", "--structures", "transposable")["structures"]
    assert (large["count"], large["log2_count"]) == (None, pytest.approx(10**4 * math.log2(90)))


def test_an_asymptotic_count_is_marked(tmp_path):
    text = output(tmp_path, "diversity", "16:32", "--structures", "transposable")
    assert "~9.619e+254" in text
    assert text.splitlines()[-1].startswith("~ by an asymptotic formula; its error, measured at M = 16, is below 0.05")


def test_structures_of_one_density_are_shown_once(tmp_path):
    found = as_json(tmp_path, "diversity", "2:4", "4:8", "2:4", "--structures", "unstructured,channel")["structures"]
    assert [row["structure"] for row in found] == ["unstructured 0.5", "channels 0.5"]


@pytest.mark.slow
def test_the_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    text = output(tmp_path, "diversity", "2:4", "4:8", "--plot", "out.png")
    assert text.splitlines()[-1] == "wrote out.png"
    image = (tmp_path / "out.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert int.from_bytes(image[16:20]) == 1280
    output(tmp_path, "diversity", "2:4", "--plot", "out.svg")
    assert b"<svg" in (tmp_path / "out.svg").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["24"], "`pattern` must read 'N:M'"),
        (["5:4"], "`n` must be at most m = 4, got 5"),
        ([], "`N:M` must be given, got no pattern"),
        (
            ["2:4", "--shape", "8"],
            "`shape` must read 'RxC', rows and columns from 1 to 10\\^18, got '8'. For example '8x8'.",
        ),
        (["2:4", "--shape", "9" * 50 + "x4"], "`shape` must read 'RxC', rows and columns from 1 to 10\\^18, got '9999"),
        (
            ["2:4", "--shape", "4x" + "9" * 5000],
            "`shape` must read 'RxC', rows and columns from 1 to 10\\^18, got '4x999",
        ),
        (["1:4096", "1:4095", "1:4093", "1:4091", "1:4089", "1:4087"], "`shape` must hold sizes of at most 10\\^18"),
        (["1:4097"], "`N:M` must have M of at most 4096 to be counted, got '1:4097'."),
        (["1:" + "9" * 5000], "`pattern` must read 'N:M', N entries kept of every M, got '1:999"),
        (["2:4", "--shape", "0x8"], "`shape` must read 'RxC', rows and columns from 1 to 10\\^18, got '0x8'"),
        (["2:4", "--structures", "nm,bloc"], "`structures` must be one of .*, got 'bloc'. Did you mean 'block'?"),
        (["16:32", "--structures", "at_most"], "No formula is known for 'at_most'"),
        (["2:4", "--plot", "out.gif"], "must end with '.png', '.svg' or '.pdf', got 'out.gif'|matplotlib"),
        (["2:4", "--plot", "no/out.png"], "must be in a folder that exists|matplotlib"),
    ],
)
def test_wrong_use_of_diversity_gets_one_line(tmp_path, arguments, message):
    done = run(tmp_path, "diversity", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(message, done.stderr)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def masks():
    rng = np.random.default_rng(0)
    return [
        {"fc": tm.transposable_mask(rng.standard_normal((8, 12)), "2:4"), "out": np.eye(4, dtype=bool)}
        for _ in range(2)
    ]


def expected_rows(before, after):
    return [
        {
            "name": name,
            "shape": list(before[name].shape),
            "size": before[name].size,
            "kept_before": int(before[name].sum()),
            "kept_after": int(after[name].sum()),
            "differ": int((before[name] != after[name]).sum()),
            "share": (before[name] != after[name]).mean(),
        }
        for name in before
    ]


@pytest.mark.parametrize("form", ["masks", "npz", "bfloat16", "bool npz", "mixed"])
def test_files_of_every_kind_are_compared(tmp_path, masks, form):
    rng = np.random.default_rng(1)
    names = []
    for index, layers in enumerate(masks):
        weights = {name: mask * (1 + rng.random(mask.shape)) for name, mask in layers.items()}
        bias = {"fc.bias": np.zeros(8)}
        if form == "masks" or (form == "mixed" and index == 0):
            names.append(f"{index}.safetensors")
            write_masks(tmp_path / names[-1], layers, "2:4", constraint="at_most")
        elif form == "bfloat16":
            names.append(f"{index}.safetensors")
            tensors = {name: value.astype(ml_dtypes.bfloat16) for name, value in (weights | bias).items()}
            save_file(tensors, tmp_path / names[-1])
        else:
            names.append(f"{index}.npz")
            np.savez(tmp_path / names[-1], **(layers if form == "bool npz" else weights), **bias)
    found = as_json(tmp_path, "sad", *names)
    assert sorted(found["tensors"], key=lambda row: row["name"]) == expected_rows(*masks)
    moved = sum(int((masks[0][name] != masks[1][name]).sum()) for name in masks[0])
    assert found["total"] == {
        "size": 112,
        "kept_before": 52,
        "kept_after": 52,
        "differ": moved,
        "share": moved / 112,
    }
    lines = output(tmp_path, "sad", *names).splitlines()
    assert lines[0].split() == ["tensor", "shape", "kept", "in", "A", "kept", "in", "B", "differ", "share"]
    assert lines[-1] == f"SAD {moved} of 112 entries, {100 * moved / 112:.2f} %"


def test_two_arrays_are_compared_whatever_their_names(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(4))
    np.save(tmp_path / "b.npy", np.full((4, 4), np.nan))
    (row,) = as_json(tmp_path, "sad", "a.npy", "b.npy")["tensors"]
    assert (row["name"], row["differ"], row["kept_after"]) == ("array", 12, 16)


def test_only_what_was_pruned_is_compared(tmp_path):
    weights = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    save_file({"fc.weight": weights, "embed_tokens.weight": weights + 1}, tmp_path / "model.safetensors")
    done = run(tmp_path, "prune", "model.safetensors", "-o", "pruned.safetensors", "-p", "2:4")
    assert done.returncode == 0, done.stderr
    found = as_json(tmp_path, "sad", "model.safetensors", "pruned.safetensors")
    assert [(row["name"], row["differ"]) for row in found["tensors"]] == [("fc.weight", 128)]
    found = as_json(tmp_path, "sad", "model.safetensors", "model.safetensors", "--exclude", "fc")
    assert [(row["name"], row["differ"]) for row in found["tensors"]] == [("embed_tokens.weight", 0)]


def test_wrong_use_of_sad_gets_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", fc=np.eye(4), more=np.eye(4))
    np.savez(tmp_path / "b.npz", fc=np.ones((4, 5)))
    np.savez(tmp_path / "c.npz", bias=np.ones(4))
    for arguments, message in (
        (["a.npz"], "Missing argument 'B'"),
        (["a.npz", "none.npz"], "none.npz: No such file"),
        (
            ["a.npz", "b.npz"],
            "`B` must hold all tensors to compare, got 'b.npz' without 'more'. Choose those that both",
        ),
        (
            ["a.npz", "b.npz", "--include", "fc"],
            "`before['fc']` and `after['fc']` must have the same shape, got (4, 4)",
        ),
        (["c.npz", "c.npz"], "`A` and `B` must hold a tensor to compare, got none in 'c.npz' and 'c.npz'"),
        (["a.npz", "a.npz", "--include", "("], "`include` must be a regular expression"),
    ):
        done = run(tmp_path, "sad", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
