"""Every public name of version 0.1.0 can be imported from where it was."""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest

NAMES = json.loads(Path(__file__).with_name("names_of_0_1_0.json").read_text(encoding="utf-8"))
EXTRAS = {"transmask.torch": "torch", "transmask.plotting": "matplotlib"}


@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=[pytest.mark.torch] if name == "transmask.torch" else []) for name in NAMES]
)
def test_the_names_of_0_1_0_are_where_they_were(module):
    if module in EXTRAS:
        pytest.importorskip(EXTRAS[module])
    missing = [name for name in NAMES[module] if not hasattr(importlib.import_module(module), name)]
    assert not missing


def test_a_module_that_moved_is_one_module_under_both_names():
    import transmask.counting

    assert transmask.counting is importlib.import_module("transmask.structures.counting")
