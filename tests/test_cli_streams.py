"""Readers that go away and streams that were closed: the work is done, and the exit code is the verdict."""

import subprocess
import sys

import numpy as np
import pytest
from checkpoint_files import write_safetensors

import transmask as tm
from transmask.checkpoint import read_masks

pytestmark = [pytest.mark.surface, pytest.mark.slow]

NAMES = [f"layers.{i}.weight" for i in range(3)]


@pytest.fixture
def folder(tmp_path):
    """A folder with a checkpoint that holds 2:4 in rows and columns, and one that does not."""
    rng = np.random.default_rng(0)
    dense = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in NAMES}
    sparse = {name: np.where(tm.solve(array, "2:4").mask, array, 0) for name, array in dense.items()}
    write_safetensors(tmp_path / "dense.safetensors", dense)
    write_safetensors(tmp_path / "sparse.safetensors", sparse)
    return tmp_path


def shell(folder, line, *, unbuffered=False):
    """Run a line of bash, in which TM stands for the command; return its exit code, stdout and stderr."""
    command = f"{sys.executable} {'-u ' if unbuffered else ''}-m transmask"
    done = subprocess.run(
        ["bash", "-c", line.replace("TM", command)], cwd=folder, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


# The reader is gone before the first line is written: a pipe into `true` that the command waits for.
GONE = "(sleep 0.5; {}; echo $? >code) {} | true; sleep 0.1; cat code"


@pytest.mark.parametrize(
    ("command", "verdict", "stderr", "unbuffered"),
    [
        ("TM check sparse.safetensors -p 2:4", 0, "", False),
        ("TM check sparse.safetensors -p 2:4", 0, "", True),
        ("TM check sparse.safetensors -p 2:4", 0, "2>&1", True),
        ("TM check sparse.safetensors -p 2:4 --json", 0, "2>&1", False),
        ("TM check dense.safetensors -p 2:4", 1, "2>&1", True),
    ],
)
def test_a_check_whose_reader_is_gone_ends_with_its_verdict(folder, command, verdict, stderr, unbuffered):
    code, out, errors = shell(folder, GONE.format(command, stderr), unbuffered=unbuffered)
    assert (code, out) == (0, f"{verdict}\n")
    assert "Traceback" not in errors
    assert "roken" not in errors


@pytest.mark.parametrize("stderr", ["", "2>&1"], ids=["stdout", "both"])
def test_a_prune_whose_reader_is_gone_is_done(folder, stderr):
    command = "TM prune dense.safetensors -p 2:4 -o new.safetensors --masks masks.safetensors --solver enumeration"
    code, out, errors = shell(folder, GONE.format(command, stderr), unbuffered=True)
    assert (code, out) == (0, "0\n")
    assert "roken" not in errors
    assert list(read_masks(folder / "masks.safetensors")) == NAMES
    assert shell(folder, "TM check new.safetensors -p 2:4")[0] == 0


def test_an_error_that_nobody_reads_is_wrong_use_still(folder):
    code, out, _ = shell(folder, GONE.format("TM check gone.safetensors -p 2:4", "2>&1"))
    assert (code, out) == (0, "2\n")


def test_help_whose_reader_is_gone_is_no_failed_check(folder):
    code, out, errors = shell(folder, GONE.format("TM check --help", ""), unbuffered=True)
    assert (code, errors) == (0, "")
    assert out in ("0\n", "141\n")


def test_a_report_that_finds_no_room_is_said_to_be_lost_and_the_code_speaks_of_files(folder):
    for command, verdict in (
        ("check sparse.safetensors -p 2:4", 0),
        ("check dense.safetensors -p 2:4", 1),
        ("prune dense.safetensors -p 2:4 -o new.safetensors --solver enumeration", 0),
        ("sad dense.safetensors sparse.safetensors", 2),  # the report is all that it does
    ):
        for unbuffered in (False, True):
            code, _, errors = shell(folder, f"TM {command} >/dev/full", unbuffered=unbuffered)
            assert code == verdict, command
            last = "transmask: the report could not be printed: No space left on device."
            assert errors.splitlines()[-1] == last
            assert errors.count(last) == 1
    assert shell(folder, "TM check new.safetensors -p 2:4")[0] == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_no_terminal(folder, closed):
    command = "TM prune dense.safetensors -p 2:4 -o new.safetensors --masks masks.safetensors --solver enumeration"
    code, out, errors = shell(folder, f"{command} {closed}")
    assert code == 0, errors
    assert "wrote  new.safetensors" in out or ">&-" in closed.split()
    assert "[3/3] layers.2.weight" in errors or "2>&-" in closed
    assert "Traceback" not in errors
    assert [shell(folder, f"TM check {name}.safetensors -p 2:4 {closed}")[0] for name in ("new", "dense")] == [0, 1]
    assert list(read_masks(folder / "masks.safetensors")) == NAMES


@pytest.mark.parametrize("arguments", ["solvers", "--help", "check gone.safetensors -p 2:4", "check"])
def test_closed_streams_change_no_exit_code(folder, arguments):
    expected = shell(folder, f"TM {arguments}")[0]
    code, out, errors = shell(folder, f"TM {arguments} >&- 2>&-; code=$?; TM {arguments} >&- || true; echo $code")
    assert (code, out) == (0, f"{expected}\n")
    assert "Traceback" not in errors
