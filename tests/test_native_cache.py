"""The machine code of a pattern is kept on disk, and only what was stored for it is ever loaded."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.caching import FunctionCache

from transmask.solvers.primal_dual.numbers import LANES
from transmask.solvers.primal_dual.vectors.half_sweep import define_half_sweep, half_sweep
from transmask.solvers.primal_dual.vectors.native import FUNCTIONS, compile_table
from transmask.solvers.primal_dual.vectors.weights import WEIGHT_TYPES

pytestmark = pytest.mark.compiled


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.nb?"))


def compile_counted(n: int, m: int) -> int:
    """Compile `half_sweep` for a pattern and check one call of it; return how often code was generated."""
    generated = []

    def define(*arguments):
        generated.append(arguments)
        define_half_sweep(*arguments)

    table = compile_table(n, m, WEIGHT_TYPES["float32"], [define])
    memory = np.zeros(64 + 4 * (m * m + 3 * m + 1) * LANES, np.uint8)
    start = -memory.ctypes.data % 64
    ours = memory[start : start + 4 * (m * m + 3 * m + 1) * LANES].view(np.int32)
    ours[: m * m * LANES] = np.random.default_rng(m).integers(0, 1 << 28, m * m * LANES)
    theirs = ours.copy()
    places = np.cumsum([0, m * m, m, m, m]) * LANES
    address = int(table[FUNCTIONS.index("half_sweep")])
    assert address
    pointers = [ours.ctypes.data + 4 * int(place) for place in places]
    kinds = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, *4 * [ctypes.c_void_p]]
    flags = ctypes.CFUNCTYPE(ctypes.c_int64, *kinds)(address)(pointers[0], m, 1, *pointers[1:])
    parts = [theirs[place : place + size * LANES] for place, size in zip(places, (m * m, m, m, m, 1), strict=True)]
    assert flags == half_sweep(table, parts[0], m, 1, *parts[1:])
    assert np.array_equal(ours, theirs)
    assert theirs[places[3] :].any()
    return len(generated)


def test_code_is_loaded_the_second_time(cache):
    assert [compile_counted(3, 7), compile_counted(3, 7), compile_counted(2, 7), compile_counted(3, 7)] == [1, 0, 1, 0]
    assert files(cache)


def test_damaged_code_is_generated_anew(cache):
    compile_counted(3, 7)
    for file in files(cache):
        file.write_bytes(file.read_bytes()[:40])
    assert compile_counted(3, 7) == 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_flipped_byte_is_noticed(cache, share):
    compile_counted(3, 7)
    (file,) = [file for file in files(cache) if file.suffix == ".nbc"]
    damaged = bytearray(file.read_bytes())
    damaged[int(share * len(damaged))] ^= 0x10
    file.write_bytes(damaged)
    assert compile_counted(3, 7) == 1


def test_code_of_another_version_is_not_loaded(cache, monkeypatch):
    """As where a process that started before an upgrade writes its code after the new index was written."""
    compile_counted(3, 7)
    index, old = sorted(files(cache), key=lambda file: file.suffix, reverse=True)
    code = old.read_bytes()
    monkeypatch.setattr("transmask.solvers.primal_dual.vectors.code_store.source_stamp", lambda _: "another")
    compile_counted(3, 7)
    assert index.exists()
    assert [file.name for file in files(cache) if file.suffix == ".nbc"] == [old.name]
    old.write_bytes(code)
    assert compile_counted(3, 7) == 1


def test_code_of_another_pattern_is_not_loaded(cache):
    """As where two processes that store at once have written each other's files."""
    compile_counted(3, 7)
    compile_counted(2, 7)
    for file in files(cache):
        if "3-7" in file.name:
            file.write_bytes((file.parent / file.name.replace("3-7", "2-7")).read_bytes())
    assert compile_counted(3, 7) == 1


def test_a_change_of_the_folder_generates_anew(cache, monkeypatch):
    compile_counted(3, 7)
    monkeypatch.setattr("transmask.solvers.primal_dual.vectors.code_store.source_stamp", lambda _: "another")
    assert compile_counted(3, 7) == 1


def test_no_folder_can_be_written(cache, monkeypatch):
    def refuse(self):
        raise OSError("read-only file system")

    for locator in FunctionCache._impl_class._locator_classes:
        monkeypatch.setattr(locator, "ensure_cache_path", refuse)
    assert [compile_counted(3, 7), compile_counted(3, 7)] == [1, 1]
