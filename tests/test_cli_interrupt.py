"""Runs that are ended from outside, and disks that are full or cannot be written: the old files or the new ones."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from checkpoint_files import files_in, read_safetensors, write_safetensors

pytestmark = [pytest.mark.surface, pytest.mark.slow]

COMMAND = [sys.executable, "-m", "transmask", "prune", "m.safetensors", "-p", "2:4", "--threads", "1"]
OUTPUTS = ["-o", "new.safetensors", "--masks", "masks.safetensors"]
ENUMERATION = ["--solver", "enumeration"]
SLOW = ["--solver", "network_simplex"]


@pytest.fixture
def folder(tmp_path):
    """A folder with a checkpoint that network_simplex needs a minute for, and outputs of an earlier run."""
    write_model(tmp_path)
    (tmp_path / "new.safetensors").write_text("old")
    (tmp_path / "masks.safetensors").write_text("old masks")
    return tmp_path


def write_model(folder):
    rng = np.random.default_rng(0)
    write_safetensors(folder / "m.safetensors", {f"{i}.w": rng.standard_normal((256, 256)) for i in range(24)})


def parts(folder):
    return list(folder.glob(".transmask-*.part"))


def started(folder, *options):
    """Start a run and wait until it has written some of its outputs under temporary names."""
    process = subprocess.Popen(
        [*COMMAND, *OUTPUTS, *options], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(parts(folder)) < 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_run_that_is_asked_to_end_leaves_no_partial_file(folder, number, code):
    before = files_in(folder)
    process = started(folder, *SLOW, "--threads", "2")
    time.sleep(0.3)
    process.send_signal(number)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 3  # a matrix takes seconds, a piece of it a tenth of one
    assert process.returncode == code
    assert files_in(folder) == before
    assert "Traceback" not in errors
    if number == signal.SIGINT:
        assert errors.endswith("transmask: interrupted; no partial file was left.\n")


def test_a_run_that_is_killed_leaves_the_old_files(folder):
    before = files_in(folder)
    process = started(folder, *SLOW)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    after = files_in(folder)
    left = {name for name in after if name not in before}
    assert left == {part.name for part in parts(folder)}
    assert len(left) == 2
    assert {name: after[name] for name in before} == before


def test_a_run_that_is_killed_at_any_time_leaves_old_or_new_files(folder):
    before = files_in(folder)
    whole = subprocess.run([*COMMAND, *OUTPUTS, *ENUMERATION], cwd=folder, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    complete = files_in(folder)
    size = len(complete["new.safetensors"])
    for share in (0.0, 0.5, 0.9, 1.0):
        for name in OUTPUTS[1::2]:
            (folder / name).write_bytes(before[name])
        process = started(folder, *ENUMERATION)
        while process.poll() is None and max((part_size(part) for part in parts(folder)), default=size) < share * size:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        for part in parts(folder):
            part.unlink()
        after = files_in(folder)
        assert after["new.safetensors"] in (before["new.safetensors"], complete["new.safetensors"])
        assert after["masks.safetensors"] in (before["masks.safetensors"], complete["masks.safetensors"])
        if after["new.safetensors"] == complete["new.safetensors"]:
            assert after["masks.safetensors"] == complete["masks.safetensors"]
        assert after["m.safetensors"] == before["m.safetensors"]


def part_size(part):
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def fails_in_one_line(done, text):
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("transmask: ")
    assert text in last
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def with_limit(n_bytes, command, folder):
    """Run a command that may not write more than so many bytes to a file."""
    code = (
        "import os, resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({n_bytes}, {n_bytes})); os.execv(sys.argv[1], sys.argv[1:])"
    )
    return subprocess.run([sys.executable, "-c", code, *command], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("limit", [0, 100_000, 2_000_000])
def test_a_file_that_may_not_grow(folder, limit):
    """The system refuses to write past a limit, as it does on a full disk, in whichever of the outputs it is met."""
    before = files_in(folder)
    done = with_limit(limit, [*COMMAND, *OUTPUTS, *ENUMERATION], folder)
    fails_in_one_line(done, "File too large. Nothing was written.")
    assert files_in(folder) == before


@pytest.mark.parametrize("limit", [100, 70_000, 120_000])
@pytest.mark.parametrize("packing", [np.savez, np.savez_compressed])
def test_an_archive_that_may_not_grow(tmp_path, packing, limit):
    rng = np.random.default_rng(0)
    packing(tmp_path / "m.npz", first=np.arange(9000), **{str(i): rng.standard_normal((64, 64)) for i in range(9)})
    before = files_in(tmp_path)
    command = [*COMMAND[:4], "m.npz", *COMMAND[5:], "-o", "new.npz", *ENUMERATION]
    done = with_limit(limit, command, tmp_path)
    fails_in_one_line(done, "File too large. Nothing was written.")
    assert files_in(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 4 MB, where one can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk, tmp_path):
    write_model(tmp_path)
    (small_disk / "new.safetensors").write_text("old")
    done = subprocess.run(
        [*COMMAND, "-o", "disk/new.safetensors", *ENUMERATION], cwd=tmp_path, capture_output=True, text=True
    )
    fails_in_one_line(done, "No space left on device. Nothing was written.")
    assert files_in(small_disk) == {"new.safetensors": b"old"}


def test_a_folder_that_cannot_be_written(tmp_path):
    wrapper = []
    if os.geteuid() == 0:  # whom no permission stops, unless that capability is taken away
        wrapper = ["setpriv", "--bounding-set=-dac_override", "--"]
        if not shutil.which("setpriv"):
            pytest.skip("root can write everywhere, and there is no setpriv to change that")
    write_safetensors(tmp_path / "m.safetensors", {"w": np.ones((8, 8))})
    tmp_path.chmod(0o555)
    try:
        done = subprocess.run(
            [*wrapper, *COMMAND, "-o", "new.safetensors"], cwd=tmp_path, capture_output=True, text=True
        )
    finally:
        tmp_path.chmod(0o755)
    fails_in_one_line(done, "`output` must be where files can be written, got 'new.safetensors': Permission denied.")
    assert list(files_in(tmp_path)) == ["m.safetensors"]


def test_a_run_that_follows_a_killed_one_cleans_up_says_so_and_is_complete(folder):
    process = started(folder, *SLOW)
    process.kill()
    process.communicate()
    left = parts(folder)
    other = folder / ".transmask-00000000-000000000000.part"  # of another output
    other.write_text("")
    done = subprocess.run([*COMMAND, *OUTPUTS, *ENUMERATION], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in left:
        assert f"transmask: warning: '{part}' was removed: an earlier run was killed while it wrote" in done.stderr
    assert parts(folder) == [other]
    _, tensors = read_safetensors(folder / "new.safetensors")
    assert all(np.count_nonzero(array) == array.size // 2 for array in tensors.values())
