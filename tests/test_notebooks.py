"""Every notebook runs from start to end at a small size, and what is committed of it is source and figures alone."""

import base64
import json
import re
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [pytest.mark.surface, pytest.mark.torch]

CHECKOUT = Path(__file__).parents[1]
NOTEBOOKS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
SMALL = {"01_quickstart": 8, "02_quality_vs_speed": 0.25, "03_mask_diversity": 1, "04_train_and_convert": 4}
"""What stands in for the SIZE of each notebook here."""

EXTRAS = {"matplotlib": "transmask[plot]", "torch": "transmask[torch]", "sklearn": '".[notebooks]"'}
"""Which extra a notebook must name where a package is missing."""

SIZE_LINE = re.compile(r"^SIZE = ([\d.]+)(?=  # )", re.MULTILINE)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path, kind):
    """Return the sources of the cells of one kind."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def needs(path):
    """Return the packages of EXTRAS that the first code cell imports."""
    first = cells_of(path, "code")[0]
    return [package for package in EXTRAS if re.search(rf"^ *(from|import) {package}\b", first, re.MULTILINE)]


def shrunk(first_cell, size):
    """Return the first cell with another SIZE; fail if it has not exactly one, or that very one."""
    found = SIZE_LINE.findall(first_cell)
    assert len(found) == 1, f"the first code cell must set SIZE once, found {found}"
    assert float(found[0]) > size, f"SIZE = {found[0]} is not larger than the {size} of the test"
    return SIZE_LINE.sub(f"SIZE = {size}", first_cell)


def figures_of(path):
    """Return the PNG bytes of every figure that is committed in a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return [base64.b64decode(output["data"]["image/png"]) for output in outputs]


def run_clean(folder, *arguments):
    """Run the style check on the notebooks of a folder that holds a copy of it."""
    return subprocess.run([sys.executable, folder / "clean.py", *arguments], capture_output=True, text=True)


def test_every_notebook_needs_what_it_draws_with():
    assert [needs(path) for path in NOTEBOOKS] == [["matplotlib"]] * 2 + [["matplotlib", "torch", "sklearn"]] * 2


def test_every_notebook_has_a_size_here():
    assert [path.stem for path in NOTEBOOKS] == list(SMALL)


@each_notebook
def test_it_runs_at_a_small_size(path):
    for package in ("nbclient", "ipykernel", *needs(path)):
        pytest.importorskip(package, reason='notebooks need pip install ".[notebooks]"')
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = shrunk(first.source, SMALL[path.stem])
    notebook.cells.append(nbformat.v4.new_code_cell("print('SIZE was', SIZE)"))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert notebook.cells[-1].outputs[0].text == f"SIZE was {SMALL[path.stem]}\n"
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    drawn = sum("image/png" in output.get("data", {}) for output in outputs)
    assert drawn == len(figures_of(path)), "it draws as many figures as are committed"


@each_notebook
def test_it_begins_with_a_question_and_ends_with_what_was_learned(path):
    kinds = [cell["cell_type"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert kinds[:2] == ["markdown", "code"]
    assert kinds[-1] == "markdown"
    texts = cells_of(path, "markdown")
    assert texts[0].split("\n")[0].endswith("?")
    assert texts[-1].startswith("## What we learned\n")


@each_notebook
def test_it_holds_nothing_worth_importing(path):
    source = "\n".join(cells_of(path, "code"))
    assert not re.search(r"^ *(def|class|async def) ", source, re.MULTILINE)


@pytest.mark.parametrize(
    ("path", "package"),
    [pytest.param(path, package, id=f"{path.stem}-{package}") for path in NOTEBOOKS for package in needs(path)],
)
def test_it_names_the_extra_where_a_package_is_missing(path, package):
    first = cells_of(path, "code")[0]
    if package == "sklearn" and find_spec("torch") is None:
        pytest.skip("fails for want of torch before it asks for scikit-learn")
    if package != "matplotlib" and find_spec("matplotlib") is None:
        pytest.skip("fails for want of matplotlib before")
    code = f"import sys\nsys.modules[{package!r}] = None\n{first}"
    ran = subprocess.run([sys.executable, "-c", code], cwd=path.parent, capture_output=True, text=True)
    assert ran.returncode == 1
    last = ran.stderr.rstrip().splitlines()[-1]
    assert "MissingDependencyError" in last
    assert EXTRAS[package] in last


@each_notebook
def test_its_figures_are_committed_and_fit_a_page(path):
    figures = figures_of(path)
    assert figures
    for figure in figures:
        assert figure[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", figure[16:24])
        assert 300 < width <= 800
        assert 150 < height <= 800


def test_nothing_but_figures_is_committed():
    ran = run_clean(CHECKOUT / "notebooks", "--check")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_pictures_of_the_readme_are_those_of_the_notebooks(tmp_path):
    script = CHECKOUT / "examples" / "notebook_figures.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True)
    assert sorted(drawn.name for drawn in tmp_path.iterdir()) == [f"notebook-{path.name[:2]}.png" for path in NOTEBOOKS]
    for drawn, path in zip(sorted(tmp_path.iterdir()), NOTEBOOKS, strict=True):
        assert drawn.read_bytes() in figures_of(path)
        assert drawn.read_bytes() == (CHECKOUT / "docs" / "img" / drawn.name).read_bytes(), "run the script"


def test_cleaning_takes_all_but_figures(tmp_path):
    (tmp_path / "clean.py").write_bytes((CHECKOUT / "notebooks" / "clean.py").read_bytes())
    figure = {"output_type": "display_data", "data": {"image/png": "abc\n", "text/plain": ["<Figure>"]}, "metadata": {}}
    printed = {"output_type": "stream", "name": "stdout", "text": ["12.3 s\n"]}
    shown = {"output_type": "execute_result", "data": {"text/plain": ["1"]}, "metadata": {}, "execution_count": 7}
    cell = {"cell_type": "code", "id": "a", "source": ["1"], "execution_count": 7, "metadata": {"tags": ["readme"]}}
    note = {"cell_type": "markdown", "id": "b", "source": ["# Why?"], "metadata": {"editable": True}}
    cells = [note, {**cell, "outputs": [printed, figure, shown], "metadata": {"tags": ["readme"], "trusted": True}}]
    path = tmp_path / "dirty.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {"x": 1}, "nbformat": 4, "nbformat_minor": 5}))

    refused = run_clean(tmp_path, "--check")
    assert (refused.returncode, refused.stdout) == (1, "dirty.ipynb: holds more than figures, run notebooks/clean.py\n")
    assert run_clean(tmp_path).returncode == 0
    cleaned = json.loads(path.read_text())
    kept = {"output_type": "display_data", "data": {"image/png": "abc"}, "metadata": {}}
    assert cleaned["cells"] == [{**note, "metadata": {}}, {**cell, "execution_count": None, "outputs": [kept]}]
    assert "x" not in cleaned["metadata"]
    assert run_clean(tmp_path, "--check").returncode == 0


@pytest.mark.parametrize(
    "first_cell", ["size = 3", "SIZE = 3  # a\nSIZE = 4  # b", "SIZE = 0.1  # as small as the test's"]
)
def test_a_size_that_cannot_be_replaced_fails(first_cell):
    with pytest.raises(AssertionError, match="SIZE"):
        shrunk(first_cell, 0.1)
