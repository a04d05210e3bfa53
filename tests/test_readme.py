"""What the README says is run: its code, its commands, its tables, its links."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import transmask
from transmask.data import DIGITS

pytestmark = pytest.mark.surface

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
USES_TORCH = re.compile(r"^(import|from) torch\b|transmask\.torch", re.MULTILINE)
EXAMPLES = [
    (code, BLOCKS[index + 1][1] if BLOCKS[index + 1 : index + 2] and BLOCKS[index + 1][0] == "text" else None)
    for index, (language, code) in enumerate(BLOCKS)
    if language == "python"
]
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines() if line.strip()]


def sections():
    """Load the script that writes the README's generated sections; benchmarks/ is not installed."""
    spec = importlib.util.spec_from_file_location("readme_sections", CHECKOUT / "benchmarks" / "readme_sections.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("code", "printed"),
    [pytest.param(*example, marks=[pytest.mark.torch] * bool(USES_TORCH.search(example[0]))) for example in EXAMPLES],
    ids=range(len(EXAMPLES)),
)
def test_an_example_prints_what_the_readme_shows(code, printed, tmp_path, monkeypatch):
    if USES_TORCH.search(code):
        pytest.importorskip("torch")
    shutil.copy(DIGITS, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "README.md", "exec"), {})
    assert printed is not None, "an example needs a text block after it with what it prints"
    assert output.getvalue() == printed


def test_there_is_an_example_with_output():
    assert EXAMPLES
    assert "the proven gap is 0.000000" in EXAMPLES[0][1]


@pytest.mark.slow
def test_the_commands_for_a_checkpoint_run_in_their_order(tmp_path):
    shutil.copy(DIGITS, tmp_path / "model.safetensors")
    commands = [command for command in COMMANDS if command.startswith("transmask ")]
    for command in commands:
        arguments = shlex.split(command, comments=True)[1:]
        done = subprocess.run(
            [sys.executable, "-m", "transmask", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout, command


def test_the_two_commands_are_what_the_continuous_integration_runs():
    pip = [command for command in COMMANDS if command.startswith("pip ")]
    assert pip[:2] == ["pip install . && transmask demo", 'pip install ".[test]" && pytest']
    script = (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8")
    for command in pip[:2]:
        assert f"bash -c '{command}'" in script


def test_the_generated_sections_are_current():
    assert sections().render(README) == README


def test_the_table_of_solvers_has_a_row_for_each():
    table = re.search(r"<!-- begin: solvers -->\n(.*?)<!-- end: solvers -->", README, re.DOTALL)[1]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| `")]
    assert rows[1:] == [f"`{info.name}`" for info in transmask.list_solvers()]


def test_a_section_that_is_missing_or_doubled_is_an_error():
    replace = sections().replace_section
    text = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb"
    assert replace(text, "x", r"new \1") == "a\n<!-- begin: x -->\nnew \\1\n<!-- end: x -->\nb"
    for wrong in ("no section", text + text):
        with pytest.raises(ValueError, match="must hold the section 'x' once"):
            replace(wrong, "x", "new")


def test_the_picture_shows_legal_and_illegal_column_sums():
    picture = sections().block_picture()
    plain, transposable = (
        [line.split()[-16:][start : start + 8] for line in picture.splitlines()[-3:-1]] for start in (0, 8)
    )
    assert transposable == [["2"] * 8] * 2
    assert plain != transposable
    assert picture.count("■") == 64


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files_that_exist(document):
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith("https://"):
            assert (CHECKOUT / target).exists(), target


def test_files_named_in_the_documents_exist():
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (CHECKOUT / document).read_text(encoding="utf-8")
        for name in re.findall(r"`((?:examples|benchmarks|docs|tests|solvers|transmask|notebooks)/[\w./-]*)`", text):
            assert (CHECKOUT / name).exists(), f"{document}: {name}"
