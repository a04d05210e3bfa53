"""What is installed: the modules, the public names, the data, and how little an import costs."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.metadata
import importlib.util
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import conftest
import pytest

import transmask

pytestmark = [pytest.mark.surface, pytest.mark.torch]

CHECKOUT = Path(__file__).parents[1]
FOLDERS = {"transmask": CHECKOUT / "transmask", "transmask.solvers": CHECKOUT / "solvers"}
OPTIONAL = {"transmask.torch": "torch", "transmask.plotting": "matplotlib"}
"""Modules that need an extra, and the package that the extra installs."""


def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    return parser


def source_modules():
    """Name every module in the checkout's folders as it is installed."""
    for package, folder in FOLDERS.items():
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), file


def in_fresh_interpreter(code, cwd):
    """Run code that prints JSON, isolated from the environment and from the folder it runs in."""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def installation():
    """What pip installed; an egg-info that a build left in the checkout is none."""
    (found,) = (dist for dist in importlib.metadata.distributions(name="transmask") if dist.read_text("RECORD"))
    return found


def is_editable():
    text = installation().read_text("direct_url.json") or "{}"
    return json.loads(text).get("dir_info", {}).get("editable", False)


def test_setup_cfg_lists_every_package():
    listed = setup_cfg()["options"]["packages"].split()
    found = sorted(name for name, file in source_modules() if file.name == "__init__.py")
    assert listed == found


def test_every_module_stands_in_a_package():
    for _, file in source_modules():
        assert (file.parent / "__init__.py").exists(), file


def test_package_data_covers_every_file_that_is_not_python():
    patterns = setup_cfg()["options.package_data"]
    declared = {
        file
        for package, globs in patterns.items()
        for glob in globs.split(",")
        for file in CHECKOUT.joinpath(*package.split(".")).glob(glob.strip())
    }
    found = {
        file
        for folder in FOLDERS.values()
        for file in folder.rglob("*")
        if file.is_file() and file.suffix not in {".py", ".pyc", ".nbi", ".nbc"}
    }
    assert declared == found
    assert CHECKOUT / "transmask" / "data" / "digits.safetensors" in found


def test_the_installed_package_is_the_one_under_test():
    """An installed wheel must not be shadowed by the checkout: these tests would say nothing about it."""
    expected = CHECKOUT if is_editable() else Path(installation().locate_file(""))
    assert Path(transmask.__file__).resolve() == (expected / "transmask" / "__init__.py").resolve()
    solvers = Path(importlib.import_module("transmask.solvers").__file__).resolve().parent
    assert solvers == (expected / ("solvers" if is_editable() else "transmask/solvers")).resolve()


class Distribution:
    def __init__(self, folder, **files):
        self.locate_file, self.read_text = folder.joinpath, lambda name: files.get(name.replace(".json", ""))


def test_a_wheel_that_the_checkout_shadows_is_refused(tmp_path):
    wheel = Distribution(tmp_path, RECORD="transmask/__init__.py,,")
    editable = Distribution(tmp_path, RECORD="x.pth,,", direct_url='{"dir_info": {"editable": true}}')
    left_by_a_build = Distribution(CHECKOUT)
    assert conftest.shadowed(tmp_path / "transmask", [left_by_a_build, wheel]) is None
    assert conftest.shadowed(CHECKOUT / "transmask", [left_by_a_build, editable]) is None
    problem = conftest.shadowed(CHECKOUT / "transmask", [left_by_a_build, wheel])
    assert problem.startswith(f"the tests would import {CHECKOUT / 'transmask'}, not what is installed in {tmp_path}")
    assert "Run `pytest`, or make the install editable" in problem


def test_the_wheel_holds_every_module_and_all_data():
    if is_editable():
        pytest.skip("an editable install has no wheel")
    installed = {str(file) for file in installation().files}
    for name, file in source_modules():
        path = name.replace(".", "/")
        assert (f"{path}/__init__.py" if file.name == "__init__.py" else f"{path}.py") in installed
    for name in ("py.typed", "data/digits.safetensors", "data/digits_held_out.safetensors"):
        assert f"transmask/{name}" in installed
    assert not [name for name in installed if name.startswith(("solvers/", "tests/", "benchmarks/"))]


def test_every_module_imports_by_its_dotted_name_outside_the_checkout(tmp_path):
    wanted = sorted(
        name
        for name, _ in source_modules()
        if not name.endswith("__main__")
        and not any(
            name.startswith(prefix) and importlib.util.find_spec(package) is None
            for prefix, package in OPTIONAL.items()
        )
    )
    code = f"import importlib, json; print(json.dumps([importlib.import_module(n).__name__ for n in {wanted}]))"
    assert in_fresh_interpreter(code, tmp_path) == wanted
    assert {"transmask.demo", "transmask.solvers.enumeration"} < set(wanted)


@pytest.mark.parametrize(
    "use",
    [
        "import transmask",
        "import transmask; transmask.list_solvers(); transmask.choose_solver('4:8')",
        "import transmask; transmask.Pattern.parse('2:4'); transmask.check_mask([[True]], '1:1')",
        "import transmask.solvers; transmask.solvers.exact_solvers(transmask.Pattern(4, 8), 'exactly')",
    ],
)
def test_an_import_loads_numpy_and_nothing_heavier(use, tmp_path):
    code = (
        "import json, sys, numpy; before = set(sys.modules)\n"
        f"{use}\n"
        "print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))"
    )
    before, loaded = in_fresh_interpreter(code, tmp_path)
    foreign = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"transmask"}
    assert foreign - {name.split(".")[0] for name in before} == set()
    assert "transmask.pattern" in loaded
    modules = {name for name in [*before, *loaded] if name.startswith("transmask.solvers")}
    assert modules <= {f"transmask.solvers{part}" for part in ("", "._base", "._plugins", "._table")}
    heavy = {
        "scipy",
        "numba",
        "networkx",
        "ortools",
        "torch",
        "matplotlib",
        "typer",
        "rich",
        "ml_dtypes",
        "safetensors",
    }
    assert not heavy & {name.split(".")[0] for name in [*before, *loaded]}


@pytest.mark.parametrize("package", ["transmask", "transmask.solvers"])
def test_public_names_are_sorted_and_exist(package):
    module = importlib.import_module(package)
    assert module.__all__ == sorted(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name).__doc__, name


def test_the_package_imports_its_public_names_and_nothing_else():
    tree = ast.parse((FOLDERS["transmask"] / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert sorted(imported) == transmask.__all__
    for name, module in imported.items():
        assert name in importlib.import_module(f"transmask.{module}").__all__


def test_every_module_says_what_it_offers():
    for info in pkgutil.walk_packages(transmask.__path__[:1], "transmask."):
        if info.name.startswith(tuple(OPTIONAL)) or info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        assert module.__doc__, info.name
        for name in module.__all__:
            assert hasattr(module, name), f"{info.name}.{name}"


def test_solvers_are_the_registered_classes():
    package = importlib.import_module("transmask.solvers")
    for info in transmask.list_solvers():
        solver = getattr(package, info.class_name)
        assert issubclass(solver, package.Solver)
        assert solver.info is info
        assert solver.__module__ == f"transmask.solvers.{info.name}"
        assert info.class_name in package.__all__
    with pytest.raises(AttributeError, match="has no attribute 'Gredy'"):
        _ = package.Gredy


def test_both_ways_to_call_the_command_line_agree(tmp_path):
    script = Path(sys.executable).with_name("transmask")
    assert script.exists(), "the console script is not installed beside this interpreter"
    answers = [
        subprocess.run([*command, "solvers"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for command in ([str(script)], [sys.executable, "-m", "transmask"])
    ]
    assert answers[0] == answers[1]
    for info in transmask.list_solvers():
        assert info.name in answers[0]


def test_the_version_is_the_one_in_setup_cfg():
    assert setup_cfg()["metadata"]["version"] == "attr: transmask.__version__"
    assert installation().version == transmask.__version__
    changelog = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {transmask.__version__}" in changelog


def test_the_wings_of_torch_do_not_import_each_other():
    """Training and reconstruction share what lies above them, which imports neither; model_folder is built on one."""
    folder = FOLDERS["transmask"] / "torch"
    for file in folder.rglob("*.py"):
        if file == folder / "__init__.py":
            continue
        wing = file.relative_to(folder).parts[0] if file.parent != folder else None
        package = ["torch", *file.relative_to(folder).parts[:-1]]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                target = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
                built_on = {"reconstruction"} if wing == "model_folder" else set()
                assert {"training", "reconstruction"} & {*target} <= {wing} | built_on, file
