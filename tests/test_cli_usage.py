"""How the command line is asked: its version, what it refuses, where it sends who asked wrongly, narrow terminals."""

import importlib.metadata

import numpy as np
import pytest
from checkpoint_files import files_in, write_safetensors

from transmask.cli import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a small checkpoint, m.safetensors."""
    write_safetensors(tmp_path / "m.safetensors", {"w": np.random.default_rng(0).standard_normal((8, 8))})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("more", [[], ["--constraint", "at_most"], ["--dry-run"]])
def test_a_pattern_that_keeps_nothing_prunes_nothing(folder, capsys, more):
    before = files_in(folder)
    assert main(["prune", "m.safetensors", "-o", "new.safetensors", "-p", "0:4", *more]) == 2
    assert capsys.readouterr().err == (
        "transmask: `--pattern` must keep 1 entry of every M at least, got '0:4'. It would set every weight to zero.\n"
    )
    assert files_in(folder) == before


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"transmask {importlib.metadata.version('transmask')}\n"
