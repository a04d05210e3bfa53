"""The command line as users run it: real processes, what they print where, and how they end."""

import importlib.metadata
import json
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
from checkpoint_files import CODES, files_in, read_safetensors, same_bits, write_safetensors, write_sharded

import transmask as tm
from transmask.checkpoint import read_masks
from transmask.cli import main
from transmask.data import DIGITS

pytestmark = pytest.mark.surface

COMMAND = [sys.executable, "-m", "transmask"]
PRUNE = ["prune", "m.safetensors", "-o", "new.safetensors", "-p", "2:4"]


def transmask(*arguments, cwd, **options):
    """Run the command line in a process of its own."""
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, **options)


def succeeds(*arguments, cwd):
    done = transmask(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def model(tmp_path):
    """A folder with a small checkpoint, m.safetensors."""
    rng = np.random.default_rng(0)
    tensors = {
        "conv.weight": rng.standard_normal((8, 8, 3, 3)).astype(np.float32),
        "layers.0.weight": rng.standard_normal((16, 16)).astype(CODES["BF16"]),
        "embed_tokens.weight": rng.standard_normal((16, 8)),
        "norm.weight": np.ones(8, np.float16),
        "[bold]ids[/bold]": np.arange(4),
    }
    write_safetensors(tmp_path / "m.safetensors", tensors, {"format": "pt"})
    return tmp_path


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4"])
@pytest.mark.parametrize("kind", ["file", "shards", "npz"])
def test_prune_then_check_the_digits_network(tmp_path, kind, pattern, capsys, monkeypatch):
    _, tensors = read_safetensors(DIGITS)
    if kind == "file":
        model, output = str(DIGITS), "new.safetensors"
    elif kind == "npz":
        model, output = "m.npz", "new.npz"
        np.savez(tmp_path / model, **tensors)
    else:
        names = list(tensors)
        model, output = "m", "new"
        write_sharded(tmp_path / model, {f"{i}.safetensors": {n: tensors[n] for n in names[i::2]} for i in range(2)})

    def run(*arguments):
        """One pattern goes through processes, the others are run here to save time."""
        if pattern == "2:4":
            done = transmask(*arguments, cwd=tmp_path)
            return done.returncode, json.loads(done.stdout)
        return main(list(arguments)), json.loads(capsys.readouterr().out)

    monkeypatch.chdir(tmp_path)
    assert main(["check", model, "--pattern", pattern]) == 1
    capsys.readouterr()
    code, pruned = run("prune", model, "-o", output, "--pattern", pattern, "--json")
    assert code == 0
    code, checked = run("check", output, "--pattern", pattern, "--json")
    assert code == 0
    assert checked["ok"]
    assert {row["name"] for row in checked["tensors"]} == {row["name"] for row in pruned["pruned"]}
    assert len(checked["tensors"]) >= 2
    assert pruned["summary"]["worst_gap"] <= 1e-12
    for row in pruned["pruned"]:
        result = tm.solve(tensors[row["name"]], pattern, axes=tuple(row["axes"]))
        assert row["kept"] == pytest.approx(result.kept, rel=1e-12)


def test_prune_says_what_it_did(model):
    done = succeeds(
        "prune", "m.safetensors", "-o", "new.safetensors", "-p", "2:4", "--masks", "masks.safetensors", cwd=model
    )
    out = done.stdout
    assert re.search(r"^pruned +shape +kept +gap +time$", out, re.MULTILINE)
    assert re.search(r"^conv\.weight +8x8x3x3 +\d\d\.\d\d % +0 \(proven\) +[\d.]+ m?s$", out, re.MULTILINE)
    assert re.search(r"^embed_tokens\.weight +16x8 +float64 +embedding by its name$", out, re.MULTILINE)
    assert re.search(r"^norm\.weight +8 +float16 +1-d, not a matrix$", out, re.MULTILINE)
    assert re.search(r"^\[bold\]ids\[/bold\] +4 +I64 +I64 is not floating$", out, re.MULTILINE)
    assert "pruned 2 tensors, 832 weights, 2:4 exactly, solver " in out
    assert re.search(r"^gap    0 \(proven\) in all, 0 \(proven\) in the worst tensor$", out, re.MULTILINE)
    assert out.endswith("wrote  new.safetensors\nwrote  masks.safetensors\n")
    assert "\x1b" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("compiling")]
    assert [line.split(":")[0] for line in lines] == ["[1/2] conv.weight", "[2/2] layers.0.weight"]
    masks = read_masks(model / "masks.safetensors")
    _, after = read_safetensors(model / "new.safetensors")
    assert list(masks) == ["conv.weight", "layers.0.weight"]
    for name, mask in masks.items():
        assert np.array_equal(after[name] != 0, mask)


def test_prune_prints_nothing_but_json_on_stdout(model):
    done = succeeds(
        "prune", "m.safetensors", "-o", "new.safetensors", "-p", "1:4", "--constraint", "at_most",
        "--solver", "min_cost_flow", "--include", "weight", "--exclude", "conv", "--threads", "1", "--json", cwd=model,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert {key: report[key] for key in ("model", "output", "masks", "pattern", "constraint", "solver", "dry_run")} == {
        "model": "m.safetensors",
        "output": "new.safetensors",
        "masks": None,
        "pattern": "1:4",
        "constraint": "at_most",
        "solver": "min_cost_flow",
        "dry_run": False,
    }
    assert [row["name"] for row in report["pruned"]] == ["layers.0.weight", "embed_tokens.weight"]
    assert [(row["name"], row["reason"]) for row in report["skipped"]] == [
        ("conv.weight", "excluded"),
        ("norm.weight", "1-d, not a matrix"),
        ("[bold]ids[/bold]", "I64 is not floating"),
    ]
    kept = sum(row["kept"] for row in report["pruned"])
    total = sum(row["total"] for row in report["pruned"])
    assert report["summary"]["kept_fraction"] == pytest.approx(kept / total)
    assert report["summary"]["tensors"] == 2
    assert report["summary"]["weights"] == 16 * 16 + 16 * 8


def test_a_dry_run_writes_nothing(model):
    before = files_in(model)
    done = succeeds("prune", "m.safetensors", "-o", "new.safetensors", "-p", "2:4", "--dry-run", cwd=model)
    assert re.search(r"^conv\.weight +8x8x3x3 +float32 +0, 1$", done.stdout, re.MULTILINE)
    assert re.search(
        r"^would prune 2 tensors, 832 weights, 2:4 exactly, solver \w+; nothing written$", done.stdout, re.M
    )
    assert files_in(model) == before


def test_a_dry_run_in_json(model, capsys):
    before = files_in(model)
    assert main(["prune", str(model / "m.safetensors"), "-p", "2:4", "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dry_run"]
    assert report["summary"] is None
    assert [row["name"] for row in report["pruned"]] == ["conv.weight", "layers.0.weight"]
    assert files_in(model) == before


def test_masks_without_a_checkpoint(model, capsys):
    before = files_in(model)
    succeeds("prune", "m.safetensors", "-p", "2:4", "--no-apply", "--masks", "masks.safetensors", cwd=model)
    after = files_in(model)
    assert sorted(after) == ["m.safetensors", "masks.safetensors"]
    assert after["m.safetensors"] == before["m.safetensors"]
    assert main(["check", str(model / "masks.safetensors"), "-p", "2:4", "--constraint", "exactly"]) == 0
    assert "ok: 2 tensors hold 2:4 exactly in rows and columns" in capsys.readouterr().out


def test_check_names_the_first_offender_and_ends_with_1(model, capsys, monkeypatch):
    monkeypatch.chdir(model)
    assert main(PRUNE) == 0
    capsys.readouterr()
    done = succeeds("check", "new.safetensors", "-p", "2:4", cwd=model)
    assert done.stdout.endswith("\nok: 2 tensors hold 2:4 at most in rows and columns\n")
    metadata, tensors = read_safetensors(model / "new.safetensors")
    broken = tensors["conv.weight"].copy()
    column = int(np.argmax(broken[6, :4, 1, 2] == 0))
    broken[6, column, 1, 2] = 1
    write_safetensors(model / "new.safetensors", tensors | {"conv.weight": broken}, metadata)
    done = transmask("check", "new.safetensors", "-p", "2:4", cwd=model)
    assert done.returncode == 1
    assert done.stdout.endswith(
        "failed: 1 of 2 tensors does not hold 2:4 at most in rows and columns\n"
        "first:  conv.weight: matrix (1, 2), row 6, columns 0 to 3 keeps 3, more than 2 of 4\n"
    )
    assert main(["check", "new.safetensors", "-p", "2:4", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert [row["ok"] for row in report["tensors"]] == [False, True]
    assert main(["check", "new.safetensors", "-p", "2:4", "--exclude", "conv"]) == 0


def test_compare_measures_every_solver(model):
    report = json.loads(succeeds("compare", "m.safetensors", "-p", "2:4", "--sample", "30", "--json", cwd=model).stdout)
    assert (report["blocks"], report["blocks_in_file"]) == (30, 52)
    rows = {row["solver"]: row for row in report["solvers"]}
    assert list(rows) == [info.name for info in tm.list_solvers() if "exactly" in info.constraints]
    best = max(row["kept_fraction"] for row in rows.values())
    for info in tm.list_solvers():
        if info.name not in rows:
            continue
        row = rows[info.name]
        assert row["seconds"] > 0
        assert row["blocks_per_second"] == pytest.approx(30 / row["seconds"])
        if info.guarantee == "exact":
            assert row["gap"] <= 1e-12
            assert row["kept_fraction"] == pytest.approx(best, rel=1e-12)
        else:
            assert best * (1 - row["gap"]) <= row["kept_fraction"] * (1 + 1e-12)


@pytest.mark.slow
def test_compare_leaves_out_what_cannot_and_draws(model):
    pytest.importorskip("matplotlib")
    done = succeeds(
        "compare",
        "m.safetensors",
        "-p",
        "4:8",
        "--sample",
        "3",
        "--constraint",
        "at_most",
        "--plot",
        "plot.svg",
        cwd=model,
    )
    assert re.search(r"^left out +reason$", done.stdout, re.MULTILINE)
    assert re.search(r"^enumeration +`solver` 'enumeration' must be given a pattern", done.stdout, re.MULTILINE)
    assert "\nmutual_top_n: The published 2-approximation, not filled up: " in done.stdout
    assert "4:8 at most, on 3 of 13 blocks of m.safetensors\nwrote plot.svg\n" in done.stdout
    assert "</svg>" in (model / "plot.svg").read_text()


def test_solvers_are_listed(tmp_path):
    rows = json.loads(succeeds("solvers", "--json", cwd=tmp_path).stdout)
    assert [(row["name"], row["guarantee"]) for row in rows] == [(i.name, i.guarantee) for i in tm.list_solvers()]
    text = succeeds("solvers", cwd=tmp_path).stdout
    for info in tm.list_solvers():
        cells = info.name, info.guarantee, ", ".join(info.constraints), info.limits, info.needs
        assert re.search(" +".join(map(re.escape, cells)) + "$", text, re.MULTILINE)
        assert info.reference in text
        assert info.note in text


def test_listing_solvers_imports_none(tmp_path):
    code = (
        "import sys; from transmask.cli import main; main(['solvers']); "
        "print(sorted({'numba', 'ortools', 'scipy', 'networkx', 'matplotlib', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("\n[]\n"), done.stderr


def test_the_console_script_is_the_module(tmp_path):
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="transmask")
    assert script.load() is main
    assert succeeds("--help", cwd=tmp_path).stdout.split("\n")[1].startswith(" Usage: transmask [OPTIONS] COMMAND")


def test_without_arguments_the_help_is_shown(tmp_path):
    done = transmask(cwd=tmp_path)
    assert done.returncode == 2
    for command in ("prune", "check", "compare", "solvers", "demo"):
        assert command in done.stdout


def fails(capsys, folder, arguments, monkeypatch):
    """Run in this process where it must fail; return the one line it says, without the program's name."""
    monkeypatch.chdir(folder)
    before = files_in(folder)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert files_in(folder) == before
    assert printed.err.startswith("transmask: ")
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("transmask: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [*PRUNE[:-1], "4:2"],
            "`n` must be at most m = 2, got 4. N counts the entries kept of every M: did you mean '2:4'?",
        ),
        ([*PRUNE[:-1], "2-4"], "`pattern` must read 'N:M', N entries kept of every M, got '2-4'."),
        ([*PRUNE[:-1], "-1:4"], "`n` must be at least 0, got -1."),
        ([*PRUNE[:-1], "0:0"], "`m` must be at least 1, got 0."),
        ([*PRUNE, "--solver", "enumerate"], "Did you mean 'enumeration'?"),
        ([*PRUNE, "--constraint", "atmost"], "Did you mean 'at_most'?"),
        ([*PRUNE, "--include", "("], "`include` must be a regular expression, got '('"),
        ([*PRUNE, "--threads", "0"], "`threads` must be at least 1, got 0."),
        ([*PRUNE, "--threads", "x"], "Invalid value for '--threads'"),
        ([*PRUNE, "--thread", "1"], "No such option"),
        ([*PRUNE, "--no-apply"], "`--masks` must be given with --no-apply."),
        (["prune", "m.safetensors", "-p", "2:4"], "`--output` must be given. To write the masks alone, use --masks"),
        (["prune", "m.safetensors", "-o", "new.safetensors"], "`--pattern` must be given, or --recipe."),
        (["prune", "-p", "2:4"], "Missing argument 'MODEL'"),
        (["precompile", "4:2"], "did you mean '2:4'?"),
        (["precompile", "2:4", "--dtype", "float33"], "`dtypes` must hold dtypes of weights, got 'float33'."),
        (["prune", "gone.safetensors", "-o", "new.safetensors", "-p", "2:4"], "gone.safetensors: No such file"),
        (["prune", "m.safetensors", "-o", "m.safetensors", "-p", "2:4"], "`output` must not be the input"),
        (["prune", "m.safetensors", "-o", "gone/new.safetensors", "-p", "2:4"], "must be in a folder that exists"),
        (["prune", "m.safetensors", "-o", "/proc/new.safetensors", "-p", "2:4"], "`output` must be where files can be"),
        (
            ["prune", "m.safetensors", "-o", "new.npz", "-p", "2:4"],
            "`output` must end with '.safetensors' like the input",
        ),
        (["prune", "pickle.pt", "-o", "new.pt", "-p", "2:4"], "got a pickle, which can run code when it is read."),
        (
            ["prune", "bad.safetensors", "-o", "new.safetensors", "-p", "2:4"],
            "must be a .safetensors file, but it is damaged: ",
        ),
        (
            ["prune", ".", "-o", "new", "-p", "2:4"],
            "must hold one checkpoint, a *.safetensors file or a *.safetensors.index.json, got",
        ),
        (["check", "m.safetensors", "-p", "2:4", "--include", "nothing"], "must hold a tensor to check, got none"),
        (["check", "pickle.pt", "-p", "2:4"], "got a pickle"),
        (["compare", "m.safetensors", "-p", "2:4", "--sample", "0"], "`sample` must be at least 1, got 0."),
        (
            ["compare", "m.safetensors", "-p", "2:4", "--plot", "m.safetensors"],
            "`plot` must end with '.png', '.svg' or",
        ),
        (["compare", "m.safetensors", "-p", "8:16", "--solver", "enumeration"], "`solver` 'enumeration' must be given"),
        (["prnue"], "No such command 'prnue'. Did you mean 'prune'?"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(model, capsys, monkeypatch, arguments, message):
    (model / "pickle.pt").write_bytes(b"\x80\x02}q\x00.")
    (model / "bad.safetensors").write_bytes((model / "m.safetensors").read_bytes()[:-1])
    assert message in fails(capsys, model, arguments, monkeypatch)


def test_a_nan_is_told_with_its_tensor_and_no_file_appears(model, capsys, monkeypatch):
    metadata, tensors = read_safetensors(model / "m.safetensors")
    bad = tensors["layers.0.weight"].copy()
    bad[3, 4] = np.nan
    write_safetensors(model / "m.safetensors", tensors | {"layers.0.weight": bad}, metadata)
    before = files_in(model)
    monkeypatch.chdir(model)
    assert main([*PRUNE, "--masks", "masks.safetensors"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "transmask: tensor 'layers.0.weight': `weights` must be finite, got 1 of 256 entries NaN or infinite, "
        "the first at index (3, 4): nan. Replace them before a mask is made."
    )
    assert files_in(model) == before


def test_a_plot_without_matplotlib(model, capsys, monkeypatch):
    monkeypatch.setattr("transmask.cli._figure.find_spec", lambda name: None)
    message = fails(capsys, model, ["compare", "m.safetensors", "-p", "2:4", "--plot", "x.png"], monkeypatch)
    assert 'pip install "transmask[plot]"' in message


def test_a_reader_that_has_enough_is_no_error(model):
    done = subprocess.run(
        f"{sys.executable} -m transmask solvers --json | head -c 1; test ${{PIPESTATUS[0]}} -ne 2",
        shell=True, executable="/bin/bash", cwd=model, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "[", "")


def in_a_terminal(*arguments, cwd, columns=80):
    """Run with stdout and stderr on a terminal; return the exit code and everything that was shown."""
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen([*COMMAND, *arguments], cwd=cwd, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # what Linux says when the last process has closed the terminal
            break
        if not chunk:
            break
        shown += chunk
    os.close(leader)
    return process.wait(), shown.decode()


def test_on_a_terminal_there_is_a_bar_and_a_table(model):
    code, shown = in_a_terminal("prune", "m.safetensors", "-o", "new.safetensors", "-p", "2:4", cwd=model)
    assert code == 0, shown
    assert "━" in shown
    assert "left" in shown
    assert re.search(r"M weights/s", shown)
    assert "[1/2]" not in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert re.search(r"conv\.weight +8x8x3x3 +\d\d\.\d\d % +0 \(proven\)", plain)
    assert "[bold]ids[/bold]" in plain
    assert max(map(len, plain.splitlines()[-20:])) <= 80


def test_a_long_name_is_folded_where_the_terminal_is_narrow(tmp_path):
    name = "model.language_model.layers.0.self_attention.query_key_value_projection.weight"
    write_safetensors(tmp_path / "m.safetensors", {name: np.random.default_rng(0).standard_normal((8, 8))})
    code, shown = in_a_terminal("check", "m.safetensors", "-p", "2:4", cwd=tmp_path, columns=60)
    assert code == 1
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).replace("\r", "")
    table = plain[plain.rindex("tensor  ") : plain.rindex("failed: 1 of 1")]
    assert "100.00 %" in table
    assert max(map(len, table.splitlines())) <= 60
    assert name in "".join(line.split(" ")[0] for line in table.splitlines()[1:8])


@pytest.mark.slow
def test_same_input_same_output_in_two_processes(model):
    for name in ("1", "2"):
        succeeds("prune", "m.safetensors", "-o", f"{name}.safetensors", "-p", "2:4", "--threads", name, cwd=model)
    assert (model / "1.safetensors").read_bytes() == (model / "2.safetensors").read_bytes()
    metadata, after = read_safetensors(model / "1.safetensors")
    assert metadata["format"] == "pt"
    assert same_bits(after["embed_tokens.weight"], read_safetensors(model / "m.safetensors")[1]["embed_tokens.weight"])
