"""Kernels compile, are cached where that is possible, and work where it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import transmask
import transmask.solvers

pytestmark = [pytest.mark.surface, pytest.mark.slow]

MODULE = """
from transmask._jit import kernel

@kernel
def add_one(value):
    return value + 1

@kernel
def add_two(values):
    for i in range(values.shape[0]):
        values[i] = add_one(add_one(values[i]))
    return values
"""

USE = """
import numpy as np, sys
sys.dont_write_bytecode = True
import kernels
print(kernels.add_two(np.arange(3))[2])
print(sum(getattr(kernels.add_two, "stats").cache_hits.values()) if hasattr(kernels.add_two, "stats") else "python")
"""


def run_kernels(folder: Path, **variables: str) -> list[str]:
    """Use the kernels of `folder` in a new process and return what it prints: the answer, and the cache hits."""
    if not (folder / "kernels.py").exists():  # numba before 0.68 compiles anew what has a new time of writing
        (folder / "kernels.py").write_text(MODULE)
    environment = {**os.environ, "HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "home"), **variables}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", USE], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def cached_files(folder: Path) -> list[Path]:
    return sorted((folder / "cache").rglob("*.nb?"))


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_DISABLE_JIT": "0", "NUMBA_BOUNDSCHECK": "0"}
    assert run_kernels(tmp_path, **cache) == ["4", "0"]
    assert cached_files(tmp_path)
    assert run_kernels(tmp_path, **cache) == ["4", "1"]


def test_a_change_in_another_file_of_the_folder_compiles_anew(tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_DISABLE_JIT": "0", "NUMBA_BOUNDSCHECK": "0"}
    run_kernels(tmp_path, **cache)
    (tmp_path / "other.py").write_text("CONSTANT = 1")
    assert run_kernels(tmp_path, **cache) == ["4", "0"]
    assert run_kernels(tmp_path, **cache) == ["4", "1"]


SUBFOLDER = """
from transmask.solvers import _tiny
_tiny.add_one(1)
print(*_tiny.__file__.split(), sum(_tiny.add_one.stats.cache_hits.values()))
"""


def test_a_change_in_a_sub_folder_of_the_solvers_compiles_anew(tmp_path):
    """In a copy of the package, where a kernel in solvers/ is cached and a file two folders below changes."""
    package = tmp_path / "transmask"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(transmask.__file__).parent, package, ignore=ignored)
    shutil.copytree(Path(transmask.solvers.__file__).parent, package / "solvers", ignore=ignored, dirs_exist_ok=True)
    (package / "solvers" / "_tiny.py").write_text(MODULE.replace("transmask._jit", ".._jit"))
    variables = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_DISABLE_JIT": "0", "NUMBA_BOUNDSCHECK": "0"}

    def cache_hits() -> int:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", **variables}
        done = subprocess.run(
            [sys.executable, "-c", SUBFOLDER], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        file, hits = done.stdout.split()
        assert Path(file).is_relative_to(package)
        return int(hits)

    assert [cache_hits(), cache_hits()] == [0, 1]
    changed = package / "solvers" / "primal_dual" / "vectors" / "selection_network.py"
    changed.write_text(changed.read_text() + "# changed\n")
    assert [cache_hits(), cache_hits()] == [0, 1]


def test_a_damaged_cache_is_compiled_anew(tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_DISABLE_JIT": "0", "NUMBA_BOUNDSCHECK": "0"}
    run_kernels(tmp_path, **cache)
    for file in cached_files(tmp_path):
        file.write_bytes(file.read_bytes()[:40])
    assert run_kernels(tmp_path, **cache) == ["4", "0"]


def test_no_folder_can_be_written(tmp_path):
    """A file stands where every cache folder would be made, which stops even the superuser."""
    for name in ("cache", "home", "__pycache__"):
        (tmp_path / name).write_text("in the way")
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_DISABLE_JIT": "0", "NUMBA_BOUNDSCHECK": "0"}
    assert run_kernels(tmp_path, **cache) == ["4", "0"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_disk_is_full(tmp_path):
    """Every file that is opened for the cache is /dev/full, which refuses the first byte."""
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins\n"
        "original = builtins.open\n"
        "def full(file, *args, **kwargs):\n"
        "    return original('/dev/full' if '.tmp.' in str(file) else file, *args, **kwargs)\n"
        "builtins.open = full\n"
    )
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_DISABLE_JIT": "0", "NUMBA_BOUNDSCHECK": "0"}
    assert run_kernels(tmp_path, PYTHONPATH=str(tmp_path), **cache) == ["4", "0"]
    assert not cached_files(tmp_path)


def test_without_compilation_a_kernel_is_the_python_function(tmp_path):
    assert run_kernels(tmp_path, NUMBA_DISABLE_JIT="1") == ["4", "python"]


def test_bounds_are_checked_even_if_a_cache_without_checks_exists(tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_DISABLE_JIT": "0"}
    run_kernels(tmp_path, NUMBA_BOUNDSCHECK="0", **cache)
    assert run_kernels(tmp_path, NUMBA_BOUNDSCHECK="1", **cache) == ["4", "0"]
