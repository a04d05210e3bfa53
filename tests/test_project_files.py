"""The files around the code say what is true: the citation, the checklists, the templates, the stages of `.ci/run`."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.surface

CHECKOUT = Path(__file__).parents[1]
ROOT_FILES = r"[A-Z]+\.md|CITATION\.cff|LICENSE|setup\.cfg|pyproject\.toml|\.pre-commit-config\.yaml|\.ci/[\w./-]+"
FOLDERS = r"(?:benchmarks|docs|examples|notebooks|solvers|tests|transmask)/[\w./-]*"


def read(name):
    return (CHECKOUT / name).read_text(encoding="utf-8")


def named_files(text):
    """Return every file of the checkout that a document names: in code, in a link, after python, as a module."""
    code = " ".join(re.findall(r"`([^`]+)`", text) + re.findall(r"\]\(([^)#]+)\)", text))
    words = {word.rstrip(".,:") for word in code.split()}
    modules = re.findall(r"python -m (benchmarks\.\w+)", text)
    return {word for word in words if re.fullmatch(f"{ROOT_FILES}|{FOLDERS}", word)} | {
        module.replace(".", "/") + ".py" for module in modules
    }


def test_the_files_that_a_document_names_are_found():
    text = "`setup.cfg`, `python docs/refresh.py`, [x](RELEASING.md), `python -m benchmarks.solvers --json a`, setup.py"
    assert named_files(text) == {"setup.cfg", "docs/refresh.py", "RELEASING.md", "benchmarks/solvers.py"}


@pytest.mark.parametrize(
    "document",
    [
        "CONTRIBUTING.md",
        "RELEASING.md",
        "SECURITY.md",
        *(str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob(".github/**/*.md")),
    ],
)
def test_every_file_that_a_document_names_exists(document):
    for name in named_files(read(document)) - {"docs/img"}:
        assert (CHECKOUT / name).exists(), f"{document}: {name}"


def test_the_citation_is_of_this_version_and_license():
    citation = dict(re.findall(r"^([a-z-]+): (.+)$", read("CITATION.cff"), re.MULTILINE))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == importlib.metadata.version("transmask")
    assert citation["title"] == "transmask"
    assert f"{citation['license']} License" in read("LICENSE")
    (holder,) = re.findall(r"^Copyright \(c\) \d+ (.+)$", read("LICENSE"), re.MULTILINE)
    assert f"\n  - name: {holder}\n" in read("CITATION.cff")


@pytest.mark.parametrize("name", ["CITATION.cff", ".pre-commit-config.yaml"])
def test_it_is_yaml(name):
    """With a parser where one is installed; else no line has a tab, an odd indent or a colon that must be quoted."""
    text = read(name)
    try:
        import yaml
    except ImportError:
        for line in text.splitlines():
            indent, _, value = re.fullmatch(r"( *)(?:- )?([\w-]+:(?: |$))?(.*)", line).groups()
            assert len(indent) % 2 == 0, line
            assert "\t" not in line, line
            assert value.startswith('"') or not re.search(": |:$| #", value), line
    else:
        assert isinstance(yaml.safe_load(text), dict)


def test_a_hook_runs_what_is_there():
    for script in re.findall(r"entry: python (\S+)", read(".pre-commit-config.yaml")):
        assert (CHECKOUT / script).exists(), script


def test_every_issue_template_has_a_name_and_says_when_to_use_it():
    templates = sorted((CHECKOUT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    assert templates
    for path in templates:
        assert re.match(r"---\nname: .+\nabout: .+\n---\n", path.read_text(encoding="utf-8")), path.name


def test_the_continuous_integration_selects_by_markers_and_never_by_file():
    script = read(".ci/run")
    assert not re.search(r"\btests/", script)
    parser = configparser.ConfigParser()
    parser.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    markers = {line.split(":")[0] for line in parser["tool:pytest"]["markers"].strip().splitlines()}
    selected = set(re.findall(r"\w+", " ".join(re.findall(r'-m "?([^"\n]+)"?', script)))) & markers
    assert selected == markers


REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_passes[x]"/>
<testcase classname="tests.test_a" name="test_device"><skipped message="needs a CUDA device"/></testcase>
<testcase classname="tests.test_a" name="test_extra"><skipped message="could not import 'torch'"/></testcase>
</testsuite></testsuites>"""


def every_test_ran(folder, *tests):
    (folder / "collected").write_text("\n".join([*tests, "", f"{len(tests)} tests collected in 1.00s"]))
    (folder / "report.xml").write_text(REPORT)
    command = [sys.executable, CHECKOUT / ".ci" / "every_test_ran.py", folder / "collected", folder / "report.xml"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()


def test_a_test_that_ran_nowhere_is_named(tmp_path):
    ran = "tests/test_a.py::test_passes[x]", "tests/test_a.py::test_device"
    assert every_test_ran(tmp_path, *ran) == (0, ["2 of 2 tests ran in at least one of 1 runs"])
    code, lines = every_test_ran(tmp_path, *ran, "tests/test_a.py::test_extra", "tests/test_b.py::test_new")
    assert code == 1
    assert lines[1:] == ["ran nowhere: tests.test_a::test_extra", "ran nowhere: tests.test_b::test_new"]
    assert every_test_ran(tmp_path) == (1, ["nothing was collected"])


@pytest.mark.parametrize("path", sorted(CHECKOUT.glob("tests/test_*.py")), ids=lambda path: path.stem)
def test_tests_of_an_extra_are_skipped_where_it_is_not_installed(path):
    """An import of torch or matplotlib at the top would break the test command of the README, which has neither."""
    skipped = set()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        source = ast.unparse(statement)
        skipped |= set(re.findall(r"importorskip\('(\w+)", source))
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            imported = set(re.findall(r"\b(torch|matplotlib)\b", source.replace("transmask.torch", "torch")))
            assert imported <= skipped, source
