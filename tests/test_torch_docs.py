"""The examples of the pages on PyTorch run, and their tables stand where the scripts write them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

CHECKOUT = Path(__file__).parents[1]
PAGE = (CHECKOUT / "docs" / "training.md").read_text(encoding="utf-8")


def run_examples(name, least):
    blocks = re.findall(r"```py\n(.*?)```", (CHECKOUT / "docs" / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= least
    names = {}
    for block in blocks:
        exec(compile(block, f"docs/{name}", "exec"), names)
    return names


def test_the_examples_on_training_run_in_order(capsys):
    names = run_examples("training.md", 5)
    assert "(40, '0.weight', 0.0" in capsys.readouterr().out
    assert (names["resumed"][0].weight == 0).float().mean() == 0.5


def test_the_examples_on_reconstruction_run_in_order(capsys):
    names = run_examples("reconstruction.md", 2)
    printed = capsys.readouterr().out
    assert "+ 0.weight" in printed
    assert "\n2:8\n" in printed
    assert (names["model"][0].weight == 0).float().mean() >= 0.5


def test_the_recipes_run_in_order(capsys):
    names = run_examples("recipes.md", 6)
    assert capsys.readouterr().out.startswith("[(40, ")
    assert (names["model"][0].weight == 0).float().mean() == 0.5


@pytest.mark.parametrize(
    ("seeds", "words", "cell"), [((0,), "one seed", "0.500"), ((0, 1), "2 seeds, ", "0.500 ± 0.000")]
)
def test_a_table_says_how_many_seeds_it_has(monkeypatch, seeds, words, cell):
    monkeypatch.syspath_prepend(CHECKOUT / "examples")
    import masked_training

    monkeypatch.setattr(masked_training, "SEEDS", seeds)
    runs = [dict.fromkeys(masked_training.WAYS, masked_training.Outcome(0.5, None, None, 0.0, 1.0)) for _ in seeds]
    assert f"| dense | {cell} |" in masked_training.table(runs, "loss", "{:.3f}".format)
    assert masked_training.seeds_in_words().startswith(words)
    for script in ("train_digits.py", "train_charlm.py"):
        assert "{seeds_in_words()}" in (CHECKOUT / "examples" / script).read_text(encoding="utf-8")


def test_rows_that_are_measured_alone_leave_the_others_as_they_are(monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "examples")
    import masked_training

    old = ["| way |", "| dense | 1 |", "| dynamic thresholds (9% kept) | 2 |", "| dense, then | 3 |", "", "v1."]
    monkeypatch.setattr(masked_training, "read_section", lambda name: "\n".join(["old notes", "", *old]))
    monkeypatch.setattr(masked_training, "versions", lambda: "v1")
    outcome = masked_training.Outcome(0.5, None, None, 0.0, 1.0, 0.25)
    rows = masked_training.table([{"dynamic thresholds": outcome}], "loss", "{:.3f}".format)
    new = "| dynamic thresholds (25.0% kept) | 0.500 |  |  |  |  |"
    expected = ["notes", "", *old[:2], new, *old[3:]]
    assert masked_training.with_rows_replaced("digits", rows, "notes") == "\n".join(expected)
    monkeypatch.setattr(masked_training, "versions", lambda: "v2")
    with pytest.raises(ValueError, match="that stay must be of v2"):
        masked_training.with_rows_replaced("digits", rows, "notes")


@pytest.mark.parametrize(
    ("name", "section", "script"),
    [
        ("training.md", "refresh", "benchmarks/torch_refresh.py"),
        ("training.md", "digits", "examples/train_digits.py"),
        ("training.md", "charlm", "examples/train_charlm.py"),
        ("recipes.md", "recipes", "examples/train_recipes.py"),
        ("reconstruction.md", "transformer", "benchmarks/reconstruction_models.py"),
        ("reconstruction.md", "crepe-tiny", "benchmarks/reconstruction_models.py"),
        ("reconstruction.md", "crepe-full", "benchmarks/reconstruction_models.py"),
        ("reconstruction.md", "reconstruction", "benchmarks/reconstruction_problems.py"),
    ],
)
def test_every_table_has_its_script(name, section, script):
    page = (CHECKOUT / "docs" / name).read_text(encoding="utf-8")
    assert page.count(f"<!-- begin: {section} -->\n") == page.count(f"<!-- end: {section} -->") == 1
    assert f'"{section}"' in (CHECKOUT / script).read_text(encoding="utf-8")
