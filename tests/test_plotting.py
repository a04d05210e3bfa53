"""What the pictures show, read back from the Axes, and that nothing of them is cut off."""

import ast
import inspect
import io
import subprocess
import sys

import numpy as np
import pytest

import transmask as tm
from transmask import NM, Block, Channel, SADTracker, Transposable, Unstructured, compare_structures, mask_diversity

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from transmask import plotting  # noqa: E402

STRUCTURES = [Unstructured(0.5), NM(2, 4), Transposable(2, 4), Transposable(2, 4, "at_most"), Block((4, 4), 0.5)]
ROWS = [
    {"solver": "fast", "constraint": "exactly", "kept_fraction": 0.81, "gap": 0.0, "seconds": 0.016},
    {"solver": "slow", "constraint": "exactly", "kept_fraction": 0.81, "gap": 2e-15, "seconds": 20.0},
    {"solver": "greedy", "constraint": "exactly", "kept_fraction": 0.80, "gap": 0.0146, "seconds": 0.01},
    {"solver": "entropic", "constraint": "exactly", "kept_fraction": 0.8087, "gap": 0.0016, "seconds": 2.0},
]


@pytest.fixture(autouse=True)
def _never_shown(monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("a plotting function called show")

    monkeypatch.setattr(pyplot, "show", refuse)
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(0).standard_normal((16, 24))


@pytest.fixture(scope="module")
def comparison(weights):
    return compare_structures(weights, [*STRUCTURES, Channel(0.5)])


@pytest.fixture(scope="module")
def tracker():
    rng = np.random.default_rng(0)
    tracker = SADTracker()
    for step in range(8):
        tracker.update({"a": rng.random((8, 8)) < 0.5, "b": rng.random((4, 4)) < 0.5}, step=40 * step)
    return tracker


@pytest.fixture(
    params=["mask", "shaded mask", "diversity", "both counts", "against kept", "divergence", "quality", "all proven"]
)
def draw(request, weights, comparison, tracker):
    """Every picture, as a function of the Axes."""
    mask = tm.transposable_mask(weights, "2:4")
    counts = [mask_diversity(structure, (8, 8)) for structure in STRUCTURES]
    paper = [mask_diversity(structure, (8, 8), method="hubara2021") for structure in STRUCTURES[:3]]
    return {
        "mask": lambda ax=None: plotting.plot_mask(mask, 4, ax),
        "shaded mask": lambda ax=None: plotting.plot_mask(mask, 4, ax, weights=weights),
        "diversity": lambda ax=None: plotting.plot_diversity(counts, ax),
        "both counts": lambda ax=None: plotting.plot_diversity(counts[:3] + paper, ax),
        "against kept": lambda ax=None: plotting.plot_diversity_against_kept(comparison, ax),
        "divergence": lambda ax=None: plotting.plot_divergence(tracker, ax),
        "quality": lambda ax=None: plotting.plot_solver_quality(ROWS, ax),
        "all proven": lambda ax=None: plotting.plot_solver_quality(ROWS[:2], ax),
    }[request.param]


def test_every_function_returns_the_axes_it_is_given(draw):
    ax = Figure(figsize=(6.4, 4.0), layout="constrained").subplots()
    before = pyplot.get_fignums()
    assert draw(ax) is ax
    assert pyplot.get_fignums() == before


def test_every_picture_fits_640_pixels_with_both_axes_labelled(draw):
    ax = draw()
    figure = ax.figure
    assert tuple(figure.get_size_inches() * figure.dpi) == (640, 400)
    assert ax.get_ylabel() or [label.get_text() for label in ax.get_yticklabels()]
    assert ax.get_xlabel()
    figure.savefig(io.BytesIO(), format="png")
    drawn = figure.get_tightbbox()
    assert (drawn.x0 >= -0.02, drawn.y0 >= -0.02, drawn.x1 <= 6.42, drawn.y1 <= 4.02) == (True,) * 4, drawn
    assert drawn.width > 3
    assert min(text.get_fontsize() for text in figure.findobj(matplotlib.text.Text) if text.get_text().strip()) >= 9


def test_a_mask_is_drawn_entry_by_entry_over_its_blocks(weights):
    mask = tm.transposable_mask(weights, "2:4")[:9, :10]
    ax = plotting.plot_mask(mask, 4)
    (mesh,) = [item for item in ax.collections if hasattr(item, "get_coordinates")]
    drawn = mesh.get_array()
    assert np.array_equal(~np.ma.getmaskarray(drawn), mask)
    assert ax.yaxis_inverted()
    black = [item for item in ax.collections if item is not mesh and to_hex(item.get_color()[0]) == "#000000"]
    across, down = ([segment[0] for segment in lines.get_segments()] for lines in black)
    assert [x for x, _ in across] == [0, 4, 8, 10]
    assert [y for _, y in down] == [0, 4, 8, 9]
    assert [label.get_text() for label in ax.get_xticklabels()] == [str(index) for index in range(10)]


def test_a_large_mask_has_lines_between_blocks_only():
    mask = np.tile(np.eye(4, dtype=bool), (20, 20))
    ax = plotting.plot_mask(mask, 4)
    assert [len(item.get_segments()) for item in ax.collections if hasattr(item, "get_segments")] == [21, 21]
    assert [label.get_text() for label in ax.get_yticklabels()] == [str(12 * index) for index in range(7)]


def test_a_shaded_mask_shows_the_magnitudes_of_what_is_kept(weights):
    mask = tm.transposable_mask(weights, "2:4")
    ax = plotting.plot_mask(mask, 4, weights=weights)
    drawn = next(item for item in ax.collections if hasattr(item, "get_coordinates")).get_array()
    assert np.allclose(drawn.compressed(), np.abs(weights)[mask])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "4", "8", "12", "16", "20"]


def test_bars_are_as_long_as_the_diversity_is():
    counts = [mask_diversity(structure, (8, 8)) for structure in STRUCTURES[:3]]
    paper = [mask_diversity(structure, (8, 8), method="hubara2021") for structure in STRUCTURES[:3]]
    ax = plotting.plot_diversity(counts + paper)
    assert [bar.get_width() for bar in ax.patches] == [found.bits_per_weight for found in counts + paper]
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [str(structure) for structure in STRUCTURES[:3]]
    centres = [bar.get_y() + bar.get_height() / 2 for bar in ax.patches]
    assert centres == pytest.approx([-0.2, 0.8, 1.8, 0.2, 1.2, 2.2])
    assert [text.get_text() for text in ax.texts] == [f"{found.bits_per_weight:.3f}" for found in counts + paper]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "exact count",
        "formula of Hubara et al. 2021",
    ]


def test_points_lie_at_diversity_and_kept_weight(comparison):
    ax = plotting.plot_diversity_against_kept(comparison)
    points = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines}
    assert points == {found.label: (found.bits_per_weight, found.relative_kept) for found in comparison.structures}
    looks = {(line.get_color(), line.get_marker()) for line in ax.lines}
    assert len(looks) == len(comparison.structures)


def test_a_structure_without_a_count_is_left_out():
    comparison = compare_structures(np.eye(32), [NM(16, 32), Transposable(16, 32, "at_most")])
    ax = plotting.plot_diversity_against_kept(comparison)
    assert [line.get_label() for line in ax.lines] == ["16:32 row-wise"]


@pytest.mark.parametrize("layer", [None, "a"])
def test_the_lines_are_the_columns_of_the_trackers_table(tracker, layer):
    table = tracker.table(layer).to_dict()
    ax = tracker.plot(layer=layer)
    first, previous = ax.lines
    assert first.get_xdata().tolist() == previous.get_xdata().tolist() == table["step"]
    assert first.get_ydata().tolist() == table["share_from_first"]
    assert previous.get_ydata().tolist()[1:] == table["share_from_previous"][1:]
    assert np.isnan(previous.get_ydata()[0])
    assert ax.get_title() == (layer or "")


def test_proven_solvers_lie_on_one_line_below_the_others():
    ax = plotting.plot_solver_quality(ROWS)
    points = {
        line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() != "None"
    }
    assert points == {
        "fast: 81.00% kept": (0.016, 1e-4),
        "slow: 81.00% kept": (20.0, 1e-4),
        "greedy: 80.00% kept": (0.01, 0.0146),
        "entropic: 80.87% kept": (2.0, 0.0016),
    }
    labels = dict(zip(ax.get_yticks().tolist(), [label.get_text() for label in ax.get_yticklabels()], strict=True))
    assert labels == {1e-4: "0, proven", 1e-3: "0.1%", 1e-2: "1%", 1e-1: "10%"}
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_constraints_are_named_where_they_differ():
    ax = plotting.plot_solver_quality([*ROWS[:1], {**ROWS[1], "constraint": "at_most"}])
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["fast, exactly: 81.00% kept", "slow, at most: 81.00% kept"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plotting.plot_mask(np.ones((2, 4, 4)), 4), r"`mask` must be one matrix, got shape \(2, 4, 4\)"),
        (lambda: plotting.plot_mask(np.ones((0, 4)), 4), r"`mask` must be one matrix, got shape \(0, 4\)"),
        (lambda: plotting.plot_mask(np.eye(4), 0), "`m` must be at least 1, got 0"),
        (
            lambda: plotting.plot_mask(np.eye(4), 4, weights=np.eye(3)),
            r"`weights` must have the shape of the mask, \(4, 4\), got \(3, 3\)",
        ),
        (lambda: plotting.plot_diversity([]), "`diversities` must have at least one MaskDiversity"),
        (lambda: plotting.plot_divergence(SADTracker()), "`tracker` must have at least one update"),
        (lambda: plotting.plot_solver_quality([]), "`rows` must have at least one solver, got none"),
        (lambda: plotting.plot_solver_quality([{**ROWS[0], "seconds": 0.0}]), "`rows` must have positive times"),
    ],
)
def test_bad_input_gets_one_clear_error(call, message):
    with pytest.raises(tm.InvalidArgumentError, match=message):
        call()


def test_without_matplotlib_the_error_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import transmask\n"
        "tracker = transmask.SADTracker(); tracker.update([[1]])\n"
        "try: tracker.plot()\n"
        "except transmask.MissingDependencyError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == 'transmask.plotting needs matplotlib. Run: pip install "transmask[plot]"\n'


def test_plotting_does_not_import_the_tracker_that_imports_it():
    tree = ast.parse(inspect.getsource(plotting))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "tables" in modules
    assert "sad_tracker" not in modules
