"""The command line is built on what users can import, too."""

import ast
from pathlib import Path

import pytest

import transmask.cli

pytestmark = pytest.mark.surface

FILES = sorted(Path(transmask.cli.__file__).parent.glob("*.py"))


def imported_from_outside(code):
    """Dotted names that a module of the command line imports from other parts of the package."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.level > 1 or (node.module or "").startswith("transmask")):
            for alias in node.names:
                yield f"{node.module or ''}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("transmask"))


def is_private(part):
    return part.startswith("_") and not part.endswith("__")  # __version__ is public


def private(code):
    return [name for name in imported_from_outside(code) if any(map(is_private, name.split(".")))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_command_line_imports_public_modules_only(file):
    assert private(file.read_text(encoding="utf-8")) == []


def test_there_are_imports_to_look_at():
    assert len({name for file in FILES for name in imported_from_outside(file.read_text(encoding="utf-8"))}) > 20


@pytest.mark.parametrize(
    "code",
    [
        "from ..checkpoint._staging import Staging",
        "def f():\n    from .._arguments import as_axes",
        "from ..structures.structure import _structure",
        "from .. import _arguments",
        "import transmask._arguments",
        "from transmask.checkpoint import _staging",
    ],
)
def test_a_private_import_is_found(code):
    assert private(code)
