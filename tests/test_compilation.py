"""Compiling ahead compiles everything: a later process, whatever its weights, compiles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import transmask as tm
from transmask.compilation import cache_folder, while_compiling

LATER = """
import json, sys
import ml_dtypes, numpy as np
import transmask as tm
from transmask.compilation import while_compiling

compiled, rng = [], np.random.default_rng(0)
with while_compiling(compiled.append):
    for pattern in ("2:4", "8:16"):
        m = int(pattern.split(":")[1])
        gaussian = rng.standard_normal((6 * m + 1, 5 * m + 2))
        frozen = gaussian.astype(np.float32)
        frozen.flags.writeable = False
        kinds = [
            gaussian.astype(np.float32), np.rint(gaussian).astype(np.float16), gaussian.T.astype(np.float32),
            np.asfortranarray(gaussian, np.float32), gaussian.astype(ml_dtypes.bfloat16)[::2, ::3], frozen,
            rng.standard_normal((2, 3, m, m), np.float32), 10.0 ** rng.uniform(-30, 30, (m, 2 * m)).astype(np.float32),
        ]
        for weights in kinds:
            for constraint in ("exactly", "at_most"):
                tm.transposable_mask(weights, pattern, constraint=constraint, threads=2)
                result = tm.solve(weights, pattern, constraint=constraint)
                tm.solve(weights, pattern, constraint=constraint, start=result)
                worse = np.roll(result.mask, 1, axis=-1) if weights.ndim == 4 else result.mask
                tm.certify(weights, worse, pattern, constraint=constraint)
            for axis in (-1, 0):
                tm.nm_mask(weights, pattern, axis=axis)
        tm.transposable_mask(rng.standard_normal((m, m, 3, 3)).astype(np.float32), pattern, axes=(0, 1))
print(json.dumps([len(compiled), "numba" in sys.modules]))
"""


def run(folder, *command):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache"), "NUMBA_DISABLE_JIT": "0"}
    environment.pop("NUMBA_BOUNDSCHECK", None)  # nothing is cached then
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.surface
def test_nothing_is_compiled_after_that(tmp_path):
    ahead = json.loads(run(tmp_path, "-m", "transmask", "precompile", "2:4", "8:16", "--json"))
    assert ahead.pop("seconds") > 1
    assert ahead == {
        "patterns": ["2:4", "8:16"],
        "solvers": ["auto"],
        "dtypes": ["float32", "bfloat16", "float16"],
        "folder": str(tmp_path / "cache"),
    }
    said = run(tmp_path, "-m", "transmask", "precompile", "2:4", "--dtype", "float16").splitlines()
    assert said[0].startswith("2:4 for float16: ready after ")
    assert said[1:] == [f"kept below {tmp_path / 'cache'}"]
    before = sorted((tmp_path / "cache").rglob("*.nb?"))
    assert json.loads(run(tmp_path, "-c", LATER)) == [0, True]
    assert sorted((tmp_path / "cache").rglob("*.nb?")) == before


def test_it_says_how_long_it_took_and_where_the_code_is():
    done = tm.precompile("2:4", (1, 2), solvers="enumeration", dtypes="float64")
    assert isinstance(done, tm.Precompiled)
    assert done.seconds > 0
    assert done.folder == cache_folder()
    assert done.folder is None or Path(done.folder).is_dir()


def test_a_solver_is_used_under_the_constraints_it_answers(monkeypatch):
    used = []
    original = tm.compilation._use_all
    monkeypatch.setattr(
        "transmask.compilation._use_all", lambda w, p, c, s: used.append((w.shape, c)) or original(w, p, c, s)
    )
    tm.precompile("2:4", solvers=["mutual_top_n"], dtypes=["float32"])
    tm.precompile("2:5", solvers=["enumeration"], dtypes=[np.float32])
    assert used == [((2, 5, 5), "at_most"), ((2, 5, 5), "exactly")]


def test_star_import_leaves_the_builtin_compile_alone():
    names: dict[str, object] = {}
    exec("from transmask import *", names)
    assert "precompile" in names
    assert not {"compile", "eval", "exec", "all", "any"} & set(names)


@pytest.mark.parametrize(
    ("patterns", "options", "kind", "message"),
    [
        ([], {}, tm.InvalidArgumentError, "`patterns` must hold a pattern, got none"),
        (["4:2"], {}, tm.InvalidArgumentError, "did you mean '2:4'"),
        (["2:4"], {"solvers": ["gredy"]}, tm.InvalidArgumentError, "Did you mean 'greedy'"),
        (["3:6"], {"solvers": ["enumeration"]}, tm.UnsupportedPatternError, "with at most 100000 masks a block"),
        (
            ["2:4"],
            {"dtypes": ["complex64"]},
            tm.InvalidTypeError,
            "must hold dtypes of weights, got 'complex64'",
        ),
        (["2:4"], {"dtypes": ["float33"]}, tm.InvalidTypeError, "got 'float33'. For example 'float32'"),
        (["2:4"], {"solvers": []}, tm.InvalidArgumentError, "`solvers` must not be empty"),
        (["2:4"], {"dtypes": []}, tm.InvalidArgumentError, "`dtypes` must not be empty"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_compiles(patterns, options, kind, message):
    compiled = []
    with while_compiling(compiled.append), pytest.raises(kind, match=message):
        tm.precompile(*patterns, **options)
    assert not compiled
