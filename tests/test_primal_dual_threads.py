"""Threads, forks, pools and callers at once: the same bits every time; little memory; a cache on disk or none."""

import os
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import families
import numpy as np
import pytest

import transmask as tm

pytestmark = pytest.mark.many_patterns


def matrix(m, dtype, columns=23):
    """Blocks of every family, some tied, some hard, with cut blocks at two edges."""
    rng = np.random.default_rng(m)
    rows = []
    for family in families.FAMILIES:
        scores = np.asarray(family(rng, columns, m), np.float64)
        if dtype == np.float32 and scores.max(initial=0.0) > 1e38:
            scores = scores / scores.max() * 1e38
        rows.append(np.concatenate(list(scores), axis=1))
    return np.concatenate(rows)[:-1, :-2].astype(dtype)


def solve(weights, pattern, **options):
    result = tm.solve(weights, pattern, solver="primal_dual", **options)
    return result.mask.tobytes() + result.u.tobytes() + result.v.tobytes()


def mask_of(weights, pattern, **options):
    return tm.transposable_mask(weights, pattern, solver="primal_dual", **options).tobytes()


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pattern", ["2:4", "3:5", "4:8", "8:16"])
def test_any_number_of_threads_gives_the_same_bits(pattern, dtype, constraint, monkeypatch):
    weights = matrix(int(pattern.split(":")[1]), dtype)
    for function in (mask_of, solve):
        expected = function(weights, pattern, constraint=constraint, threads=1)
        for threads in (2, 3, 7):
            assert function(weights, pattern, constraint=constraint, threads=threads) == expected
        monkeypatch.setenv("TRANSMASK_NUM_THREADS", "2")
        assert function(weights, pattern, constraint=constraint) == expected


@pytest.mark.compiled
@pytest.mark.parametrize("layout", ["C", "F"])
def test_several_callers_at_once_get_their_own_answers(layout):
    cases = [(matrix(m, dtype).copy(layout), f"{n}:{m}") for n, m in ((2, 4), (4, 8)) for dtype in (np.float32, float)]
    expected = [solve(*case, threads=1) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(lambda case: solve(*case, threads=2), cases)) == expected
            assert list(pool.map(lambda case: solve(*case, threads=1), cases * 3)) == expected * 3


@pytest.mark.compiled
def test_the_interpreter_is_not_held():
    """Another thread of Python gets on while one call runs on one thread."""
    weights = np.random.default_rng(0).standard_normal((4096, 1024)).astype(np.float32)
    mask_of(weights[:64], "8:16")
    caller = threading.Thread(target=mask_of, args=(weights, "8:16"), kwargs={"threads": 1})
    caller.start()
    steps = 0
    while caller.is_alive():
        steps += 1
    assert steps > 1000


FIRST_CALLS = """
import threading
import numpy as np
import transmask as tm

weights = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
masks, gate = {}, threading.Barrier(6)

def call(number):
    gate.wait()
    pattern = ("2:4", "5:7", "3:9")[number % 3]
    masks[number] = tm.transposable_mask(weights, pattern, solver="primal_dual", threads=2)

callers = [threading.Thread(target=call, args=(number,)) for number in range(6)]
for caller in callers: caller.start()
for caller in callers: caller.join()
for number in range(3):
    assert np.array_equal(masks[number], masks[number + 3])
    assert tm.certify(weights, masks[number], ("2:4", "5:7", "3:9")[number]).gap <= 1e-12
print("done")
"""

FORKS = """
import multiprocessing, os, warnings
import numpy as np
import transmask as tm

warnings.simplefilter("ignore")  # newer Pythons warn of any fork of a process with threads, such as those of BLAS
weights = np.random.default_rng(0).standard_normal((256, 250)).astype(np.float32)

def answer(pattern):
    result = tm.solve(weights, pattern, solver="primal_dual", threads=2)
    return result.mask.tobytes(), result.u.tobytes(), result.gap <= 1e-12

patterns = ["4:8", "2:4", "3:6"]
expected = [answer(pattern) for pattern in patterns[:2]]
child = os.fork()
if child == 0:  # a pattern the parent has used, and one that is new
    os._exit(0 if answer("4:8") == expected[0] and answer("3:6")[2] else 1)
assert os.waitpid(child, 0)[1] == 0
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(answer, patterns[:2] * 3) == expected * 3
print("done")
"""


def run_script(folder, text, **environment):
    (folder / "script.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("script", [FIRST_CALLS, FORKS], ids=["first calls at once", "fork"])
@pytest.mark.slow
def test_in_a_process_of_its_own(script, tmp_path):
    if script is FORKS and not hasattr(os, "fork"):
        pytest.skip("no fork here")
    assert run_script(tmp_path, script) == ["done"]


@pytest.mark.compiled
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pattern", ["1:2", "2:4", "4:8", "8:16", "32:64"])
@pytest.mark.slow
def test_memory_beyond_input_and_output_is_at_most_2_mb_a_thread(pattern, threads, constraint):
    weights = np.random.default_rng(1).standard_normal((2048, 2048)).astype(np.float32)  # 16 MB
    flat = weights.reshape(int(pattern.split(":")[1]), -1)  # one row of blocks
    for array in (weights, weights.T, np.asfortranarray(weights)[:-1, :-1], flat):
        mask_of(array[:64, :64], pattern, constraint=constraint, threads=threads)
        tracemalloc.start()
        try:
            mask = tm.transposable_mask(array, pattern, constraint=constraint, solver="primal_dual", threads=threads)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes - mask.nbytes <= threads * 2**21


CACHE = """
import numpy as np
import transmask as tm
from transmask.solvers.primal_dual import phase1_lanes, phase1_tiles, phase2_ties

weights = np.random.default_rng(0).integers(-9, 9, (64, 250)).astype(np.float32)
result = tm.solve(weights, "2:4", solver="primal_dual")
assert result.gap <= 1e-12
assert np.array_equal(tm.transposable_mask(weights, "2:4", solver="primal_dual"), result.mask)
tm.transposable_mask(weights, "8:16", solver="primal_dual")
kernels = phase1_lanes.solve_span, phase1_tiles.solve_tiles, phase2_ties.settle_ties
print(*(sum(kernel.stats.cache_hits.values()) for kernel in kernels))
print(*(sum(kernel.stats.cache_misses.values()) for kernel in kernels))
"""


@pytest.mark.compiled
def test_a_second_process_compiles_nothing(tmp_path):
    run_script(tmp_path, CACHE, NUMBA_BOUNDSCHECK="0")
    hits_and_misses = run_script(tmp_path, CACHE, NUMBA_BOUNDSCHECK="0")
    assert hits_and_misses == ["1"] * 3 + ["0"] * 3


@pytest.mark.compiled
def test_a_cache_folder_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "in the way").write_text("a file, which stops even the superuser")
    nowhere = str(tmp_path / "in the way" / "cache")
    found = run_script(tmp_path, CACHE, NUMBA_CACHE_DIR=nowhere, HOME=nowhere, XDG_CACHE_HOME=nowhere)
    assert len(found) == 6
