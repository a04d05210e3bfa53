"""Solvers of other packages: one that works appears everywhere, one that is broken is named and harms nobody."""

import json
import site
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

import transmask as tm
from transmask import cli
from transmask.solvers import Enumeration, Solver, SolverInfo, _plugins, as_solver

pytestmark = pytest.mark.surface

PLUGINS = Path(__file__).with_name("plugin")
ROOT = Path(__file__).parents[1]
WARNING = (
    "A third-party solver is left out: `solver` must name a solver that loads, got 'broken' of 'transmask-broken': "
    "ModuleNotFoundError: No module named 'a_package_that_does_not_exist'. Upgrade or uninstall 'transmask-broken'."
)


def build_wheel(project, folder):
    """Zip what a build of a project would put into its wheel: setuptools may be missing or too old to build offline."""
    config = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    name, version = config["project"]["name"].replace("-", "_"), config["project"]["version"]
    info = f"{name}-{version}.dist-info"
    modules = [f"{module}.py" for module in config["tool"]["setuptools"]["py-modules"]]
    files = {module: (project / module).read_text(encoding="utf-8") for module in modules}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {config['project']['name']}\nVersion: {version}\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    groups = config["project"]["entry-points"].items()
    lines = [line for group, names in groups for line in (f"[{group}]", *(f"{n} = {v}" for n, v in names.items()))]
    files[f"{info}/entry_points.txt"] = "\n".join(lines)
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return wheel


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter of a fresh environment with both plug-ins, on top of the packages of this one."""
    pytest.importorskip("pip", reason="the plug-ins are installed with pip")
    folder = tmp_path_factory.mktemp("plugins")
    venv.create(folder / "venv", symlinks=True)
    base = str(folder / "venv")
    packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": base, "platbase": base}))
    mine = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()})
    # addsitedir also reads the .pth files there, one of which an editable install is.
    (packages / "mine.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in mine))
    wheels = [str(build_wheel(PLUGINS / name, folder)) for name in ("working", "broken")]
    executable = folder / "venv" / "bin" / "python"
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--disable-pip-version-check", "--quiet"]
    done = run(executable, *install, *wheels, cwd=folder)
    assert done.returncode == 0, done.stderr
    return executable


def run(python, *arguments, cwd):
    return subprocess.run([str(python), *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
def test_both_are_installed_in_the_fresh_environment_alone(python, tmp_path):
    code = "import best_of_two, sys; print(best_of_two.__file__)"
    assert str(python.parents[1]) in run(python, "-c", code, cwd=tmp_path).stdout
    assert run(sys.executable, "-c", code, cwd=tmp_path).returncode != 0


@pytest.mark.slow
def test_it_is_listed_after_the_built_in_ones_and_the_broken_one_is_named_once(python, tmp_path):
    code = """if True:
        import json, warnings, transmask as tm
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            names = [[info.name for info in tm.list_solvers()] for _ in range(2)]
        kept = tm.solve([[3.0, 1.0], [1.0, 1.0]], "1:2", solver="best_of_two").kept
        print(json.dumps([names, [[type(w.message).__name__, str(w.message)] for w in caught], kept]))
    """
    done = run(python, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names, caught, kept = json.loads(done.stdout)
    assert names[0] == names[1] == [*(info.name for info in tm.list_solvers()), "best_of_two"]
    assert caught == [["RuntimeWarning", WARNING]]
    assert kept == 4.0


@pytest.mark.slow
def test_importing_and_solving_with_a_built_in_solver_reads_no_entry_point(python, tmp_path):
    code = """if True:
        import sys, transmask as tm
        tm.solve([[3.0, 1.0], [1.0, 1.0]], "1:2", solver="enumeration")
        from transmask.solvers import _plugins
        print(_plugins._entry_points.cache_info().misses, "best_of_two" in sys.modules)
        tm.list_solvers()
        print(_plugins._entry_points.cache_info().misses, "best_of_two" in sys.modules)
    """
    assert run(python, "-c", code, cwd=tmp_path).stdout.splitlines() == ["0 False", "1 True"]


@pytest.fixture
def checkpoint(tmp_path):
    np.savez(tmp_path / "w.npz", w=np.random.default_rng(0).standard_normal((16, 16)))
    return tmp_path


@pytest.mark.slow
def test_asking_for_the_broken_one_says_why_in_one_line(python, checkpoint):
    prune = "-m transmask prune w.npz -o new.npz -p 2:4 --solver broken"
    done = run(python, *prune.split(), cwd=checkpoint)
    assert done.returncode == 2
    assert done.stderr == f"transmask: {WARNING.removeprefix('A third-party solver is left out: ')}\n"
    assert not (checkpoint / "new.npz").exists()


@pytest.mark.slow
def test_the_command_line_lists_it_and_warns_in_one_line(python, checkpoint):
    done = run(python, "-m", "transmask", "solvers", cwd=checkpoint)
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if line.startswith("best_of_two ")]
    assert "broken" not in done.stdout
    assert done.stderr == f"transmask: warning: {WARNING}\n"


@pytest.mark.slow
def test_the_command_line_prunes_with_it(python, checkpoint):
    prune = "-m transmask prune w.npz -o new.npz -p 2:4 --solver best_of_two --json"
    done = run(python, *prune.split(), cwd=checkpoint)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert json.loads(done.stdout)["solver"] == "best_of_two"
    assert tm.check_mask(np.load(checkpoint / "new.npz")["w"] != 0, "2:4", constraint="exactly")


@pytest.mark.slow
def test_compare_lets_it_compete(python, checkpoint):
    done = run(python, *["-m", "transmask", "compare", "w.npz", "-p", "2:4", "--sample", "4", "--json"], cwd=checkpoint)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["solvers"]
    built_in = [info.name for info in tm.list_solvers() if "exactly" in info.constraints]
    assert [row["solver"] for row in rows] == [*built_in, "best_of_two"]
    assert done.stderr.count("transmask: warning:") == 1


@pytest.mark.slow
def test_a_misspelt_name_is_answered_with_it(python, checkpoint):
    prune = "-m transmask prune w.npz -o new.npz -p 2:4 --solver best_of_too"
    done = run(python, *prune.split(), cwd=checkpoint)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("'best_of_two', got 'best_of_too'. Did you mean 'best_of_two'?")


@pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are in the repository only")
@pytest.mark.slow
def test_the_benchmark_times_it_and_the_readme_does_not_list_it(python, tmp_path):
    code = f"""if True:
        import sys
        sys.path.append({str(ROOT)!r})
        import numpy as np
        from benchmarks.readme_sections import solver_table
        from benchmarks.contenders import SAMPLE, compare
        from benchmarks.report import readme_section
        from transmask import Pattern
        sample = dict.fromkeys(SAMPLE, 2)
        rows = compare(np.random.default_rng(0).random((8, 8), np.float32), Pattern(2, 4), 1, sample)
        timed = {{row["contender"]: row["blocks timed"] for row in rows}}
        section = readme_section({{"machine": {{}}, "solvers": rows, "shape": [8, 8], "rounds": 1}})
        print(timed["best_of_two"], "best_of_two" in section, "greedy" in section, "best_of_two" in solver_table())
    """
    done = run(python, "-c", code, cwd=tmp_path)
    assert done.stdout == "2 False True False\n", done.stderr


@pytest.mark.slow
def test_it_keeps_the_contract(python, tmp_path):
    code = "from transmask.testing import assert_solver_contract as c; c('best_of_two', patterns=['1:2', '2:4', '2:5'])"
    done = run(python, "-W", "error", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# What an entry point may get wrong, without installing each: the entry points are made here.


class Good(Enumeration):
    info = SolverInfo("good", "Good", "exact", ("exactly", "at_most"), 8, "numpy", "unpublished")


class NoInfo(Good):
    info = {"name": "no_info"}  # noqa: RUF012


class Abstract(Solver):
    info = SolverInfo("abstract", "Abstract", "none", ("exactly",), None, "numpy", "unpublished")


class NeedsOptions(Good):
    info = SolverInfo("needs_options", "NeedsOptions", "none", ("exactly",), None, "numpy", "unpublished")

    def __init__(self, option):
        self.option = option


class Distribution:
    def __init__(self, name):
        self.name = name


def offer(monkeypatch, *offers):
    """Make entry points of (name, attribute of this module, distribution) the installed ones."""
    entries = []
    for name, value, distribution in offers:
        entry = EntryPoint(name, f"{__name__}:{value}", _plugins.GROUP)
        vars(entry)["dist"] = Distribution(distribution)
        entries.append(entry)
    for cached in (_plugins._entry_points, _plugins.plugin_solvers, _plugins.load_plugin):
        cached.cache_clear()
    monkeypatch.setattr(_plugins, "entry_points", lambda group: entries)


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    yield
    monkeypatch.undo()
    for cached in (_plugins._entry_points, _plugins.plugin_solvers, _plugins.load_plugin):
        cached.cache_clear()


class KeepsAll(Good):
    info = SolverInfo("keeps_all", "KeepsAll", "exact", ("exactly", "at_most"), 8, "numpy", "unpublished")

    def solve_scores(self, scores, pattern, constraint):
        return np.ones(scores.shape, bool)


class Raises(Good):
    info = SolverInfo("raises", "Raises", "exact", ("exactly", "at_most"), 8, "numpy", "unpublished")

    def solve_scores(self, scores, pattern, constraint):
        raise ImportError("No module\nnamed 'cupy'.")


@pytest.mark.parametrize("command", ["compare", "demo"])
def test_one_that_fails_while_it_solves_is_left_out_of_a_comparison(monkeypatch, capsys, checkpoint, command):
    monkeypatch.chdir(checkpoint)
    offer(monkeypatch, ("keeps_all", "KeepsAll", "pack"), ("raises", "Raises", "pack"), ("good", "Good", "fine"))
    arguments = {"compare": "compare w.npz -p 2:4 --sample 4 --json", "demo": "demo --json"}[command]
    assert cli.main(arguments.split()) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"good", "primal_dual"} <= {row["solver"] for row in report["solvers"]}
    reasons = {row["solver"]: row["reason"] for row in report["left_out"]}
    assert not {"keeps_all", "raises"} & {row["solver"] for row in report["solvers"]}
    assert "`solver` 'keeps_all' must keep" in reasons["keeps_all"]
    assert reasons["raises"] == (
        "`solver` 'raises' must return masks, got ImportError: No module named 'cupy'. Tell its authors."
    )
    if command == "compare":
        for name in ("keeps_all", "raises"):
            assert cli.main(["compare", "w.npz", "-p", "2:4", "--solver", name]) == 2
            assert capsys.readouterr().err.startswith(f"transmask: `solver` '{name}' must")
            assert cli.main(["prune", "w.npz", "-o", "new.npz", "-p", "2:4", "--solver", name]) == 2
            assert f"`solver` '{name}' must" in capsys.readouterr().err
            assert not (checkpoint / "new.npz").exists()


def test_a_distribution_without_metadata_is_still_sorted_and_named(monkeypatch):
    offer(monkeypatch, ("good", "Good", None), ("good", "Good", "apack"))
    with pytest.warns(RuntimeWarning, match="got 'good' of 'an unnamed distribution' and 'apack'"):
        assert Good.info not in tm.list_solvers()


BAD = {
    ("missing", "Missing"): r"AttributeError: .*Missing'\. Upgrade or uninstall 'pack'\.",
    (
        "function",
        "offer",
    ): r"TypeError: 'test_plugins:offer' must be a subclass of transmask\.solvers\.Solver",
    ("no_info", "NoInfo"): r"TypeError: `NoInfo\.info` must be a SolverInfo, got \{'name': 'no_info'\}\.",
    ("other", "Good"): r"ValueError: `Good\.info\.name` must be the entry point's, 'other', got 'good'\.",
    ("abstract", "Abstract"): r"TypeError: Can't instantiate abstract class Abstract",
    ("needs_options", "NeedsOptions"): r"TypeError: .*missing 1 required positional argument: 'option'\.",
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_used_is_named_and_harms_nobody(monkeypatch, bad):
    offer(monkeypatch, (*bad, "pack"), ("good", "Good", "fine"))
    line = f"`solver` must name a solver that loads, got '{bad[0]}' of 'pack': {BAD[bad]}"
    with pytest.warns(RuntimeWarning, match=f"^A third-party solver is left out: {line}") as caught:
        assert tm.list_solvers()[-1] is Good.info
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert bad[0] not in [info.name for info in tm.list_solvers()]
    assert type(as_solver("good", tm.Pattern(2, 4), "exactly")) is Good
    with pytest.raises(tm.InvalidArgumentError, match=f"^{line}"):
        as_solver(bad[0], tm.Pattern(2, 4), "exactly")


@pytest.mark.parametrize("name", ["greedy", "auto"])
def test_a_name_of_our_own_cannot_be_taken(monkeypatch, name):
    offer(monkeypatch, (name, "Good", "pack"))
    assert type(as_solver(name, tm.Pattern(2, 4), "exactly")).__module__.startswith("transmask.solvers.")
    with pytest.warns(RuntimeWarning, match="the name is taken by transmask itself. Ask the authors of 'pack'"):
        listed = tm.list_solvers()
    assert Good.info not in listed


def test_a_name_that_two_packages_offer_is_given_to_neither(monkeypatch):
    offer(monkeypatch, ("good", "Good", "pack"), ("good", "Good", "apack"))
    line = "got 'good' of 'apack' and 'pack': each of them offers a solver of this name. Uninstall all but one."
    with pytest.warns(RuntimeWarning, match=line):
        assert Good.info not in tm.list_solvers()
    with pytest.raises(tm.InvalidArgumentError, match=line):
        as_solver("good", tm.Pattern(2, 4), "exactly")


def test_neither_auto_nor_alternatives_are_of_another_package(monkeypatch):
    offer(monkeypatch, ("good", "Good", "fine"))
    assert tm.list_solvers()[-1] is Good.info
    assert tm.choose_solver("2:4") == "primal_dual"
    assert "good" not in tm.solvers.exact_solvers(tm.Pattern(2, 4), "exactly")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "", "`name` must be a str that is not empty, got ''"),
        ("reference", None, "`reference` must be a str that is not empty, got None"),
        ("guarantee", "Exact", "`guarantee` must be one of 'exact', .* Did you mean 'exact'"),
        ("constraints", "exactly", "`constraints` must be a tuple that is not empty, got 'exactly'"),
        ("constraints", ("exact",), "Did you mean 'exactly'"),
        ("name", "a b", "`name` must be an identifier, got 'a b'"),
        ("max_m", True, "`max_m` must be an integer, got True"),
        ("max_m", 0, "`max_m` must be at least 1, got 0"),
        ("max_masks", 0, "`max_masks` must be at least 1, got 0"),
        ("note", None, "`note` must be a str, got None"),
    ],
)
def test_a_malformed_row_fails_where_it_is_written(field, value, message):
    row = {"name": "a", "class_name": "A", "guarantee": "none", "constraints": ("exactly",), "max_m": None}
    row |= {"needs": "numpy", "reference": "unpublished"}
    SolverInfo(**row)
    with pytest.raises(tm.TransmaskError, match=message):
        SolverInfo(**row | {field: value})
