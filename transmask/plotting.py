"""Pictures of masks, structures and solvers, for reports and notebooks.

Every function draws into the Axes you pass, or into a new figure of 640 x 400 pixels, and returns the Axes; none shows
or saves anything. The colours are those of Okabe and Ito, which colour-blind readers can tell apart, and no picture
relies on colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from ._arguments import as_integer, as_mask, as_weights
from ._signals import signals_later
from .certificate import PROVEN_GAP
from .errors import InvalidArgumentError, MissingDependencyError
from .shown import shown
from .structures.comparison import StructureComparison
from .structures.diversity import MaskDiversity
from .tables import Table

try:
    with signals_later():
        from matplotlib import pyplot
        from matplotlib.colors import ListedColormap
        from matplotlib.ticker import MaxNLocator, PercentFormatter
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise
    raise MissingDependencyError('transmask.plotting needs matplotlib. Run: pip install "transmask[plot]"') from None

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_divergence", "plot_diversity", "plot_diversity_against_kept", "plot_mask", "plot_solver_quality"]

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
LINE, PALE = "#888888", "#E4E4E4"

_CELLS_DRAWN = 4096  # a larger matrix has no line between its entries: they would be thinner than a pixel


def _axes(ax: Axes | None) -> Axes:
    """Return `ax`, or the Axes of a new figure."""
    return pyplot.subplots(figsize=(6.4, 4.0), dpi=100, layout="constrained")[1] if ax is None else ax


def _open_frame(ax: Axes, grid: Literal["both", "x"]) -> None:
    """Remove the frame's top and right sides, and draw a pale grid below everything else."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=grid, color=PALE, linewidth=0.8)
    ax.set_axisbelow(True)


def _styles() -> Iterator[tuple[str, str]]:
    """Pairs of a colour and a marker; 42 pass before one comes again."""
    return zip(cycle((BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)), cycle("osD^vPX"), strict=False)


def plot_mask(mask: ArrayLike, m: int, ax: Axes | None = None, *, weights: ArrayLike | None = None) -> Axes:
    """Draw a mask over its grid of M x M blocks: kept entries dark, pruned ones pale.

    Parameters
    ----------
    mask : array_like of bool or of 0 and 1, shape (R, C)
        True = kept.
    m : int
        Side of a block, at least 1.
    ax : matplotlib Axes, optional
        Where to draw. Default: a new figure.
    weights : array_like, shape (R, C), optional
        Shades the kept entries by their magnitudes.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `mask` is not one matrix of 0 and 1, `m` is below 1, or `weights` has another shape.
    """
    kept = as_mask(mask)
    if kept.ndim != 2 or kept.size == 0:
        raise InvalidArgumentError(f"`mask` must be one matrix, got shape {kept.shape}. Choose one of a batch.")
    m = as_integer(m, argument="m", least=1)
    shades = np.ones(kept.shape)
    if weights is not None:
        shades = np.abs(as_weights(weights).astype(np.float64))
        if shades.shape != kept.shape:
            raise InvalidArgumentError(f"`weights` must have the shape of the mask, {kept.shape}, got {shades.shape}.")
    ax = _axes(ax)
    rows, columns = kept.shape
    ax.set_facecolor(PALE)
    colours = ListedColormap([BLUE]) if weights is None else "viridis_r"
    mesh = ax.pcolormesh(np.ma.masked_where(~kept, shades), cmap=colours, vmin=0, vmax=float(shades.max()) or 1.0)
    if weights is not None:
        ax.figure.colorbar(mesh, ax=ax, shrink=0.85, label="magnitude of the kept weights")
    if kept.size <= _CELLS_DRAWN:
        ax.vlines(range(columns + 1), 0, rows, colors="white", linewidth=0.8)
        ax.hlines(range(rows + 1), 0, columns, colors="white", linewidth=0.8)
    ax.vlines([*range(0, columns, m), columns], 0, rows, colors="black", linewidth=1.4, clip_on=False)
    ax.hlines([*range(0, rows, m), rows], 0, columns, colors="black", linewidth=1.4, clip_on=False)
    ax.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal", xlabel="column", ylabel="row")
    for axis, length in ((ax.xaxis, columns), (ax.yaxis, rows)):
        indices = _labelled(length, m)
        axis.set_ticks([index + 0.5 for index in indices], list(map(str, indices)))
    ax.tick_params(length=0)
    return ax


def _labelled(length: int, m: int) -> range:
    """Return which rows or columns get a label: all of a short side, else the first of up to 9 blocks."""
    return range(length) if length <= 16 else range(0, length, m * -(-length // (8 * m)))


def plot_diversity(diversities: Sequence[MaskDiversity], ax: Axes | None = None) -> Axes:
    """Draw mask diversities as bars, in bits per weight; the paper's count below the exact one of its structure.

    Parameters
    ----------
    diversities : sequence of MaskDiversity
        From `mask_diversity`, of any structures and methods.
    ax : matplotlib Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidArgumentError
        If `diversities` is empty.
    """
    if not diversities:
        raise InvalidArgumentError("`diversities` must have at least one MaskDiversity, got none.")
    ax = _axes(ax)
    structures = list(dict.fromkeys(diversity.structure for diversity in diversities))
    methods = list(dict.fromkeys(diversity.method for diversity in diversities))
    looks = {"exact": (BLUE, None, "exact count"), "hubara2021": (ORANGE, "//", "formula of Hubara et al. 2021")}
    height = 0.8 / len(methods)
    for place, method in enumerate(methods):
        shown = [diversity for diversity in diversities if diversity.method == method]
        where = [
            structures.index(diversity.structure) + (place - (len(methods) - 1) / 2) * height for diversity in shown
        ]
        colour, hatch, label = looks[method]
        bits = [diversity.bits_per_weight for diversity in shown]
        bars = ax.barh(where, bits, height * 0.92, color=colour, hatch=hatch, edgecolor="white", label=label)
        ax.bar_label(bars, fmt="{:.3f}", padding=3, fontsize=9)
    _open_frame(ax, "x")
    ax.set_yticks(range(len(structures)), structures)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("mask diversity, bits per weight")
    ax.margins(x=0.12)
    if len(methods) > 1:
        ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax


def plot_diversity_against_kept(comparison: StructureComparison, ax: Axes | None = None) -> Axes:
    """Draw, for every structure, the weight it keeps over its mask diversity.

    Parameters
    ----------
    comparison : StructureComparison
        From `compare_structures`. A structure whose masks could not be counted is left out.
    ax : matplotlib Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    Axes
    """
    ax = _axes(ax)
    for found, (colour, marker) in zip(comparison.structures, _styles(), strict=False):
        if found.bits_per_weight is not None:
            place = found.bits_per_weight, found.relative_kept
            ax.plot(*place, marker, color=colour, markersize=9, clip_on=False, label=found.label)
    _open_frame(ax, "both")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_xlim(left=0)
    ax.set(xlabel="mask diversity, bits per weight", ylabel="kept weight, relative to unstructured")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


class Divergences(Protocol):
    """What `plot_divergence` needs of a `SADTracker`, which itself knows how to be plotted."""

    @property
    def records(self) -> Sequence[object]:
        """One for every update."""

    def table(self, layer: str | None = None) -> Table:
        """Return the shares of the entries that differ, one row for every update."""


def plot_divergence(tracker: Divergences, ax: Axes | None = None, *, layer: str | None = None) -> Axes:
    """Draw the sparse architecture divergence over time, from the masks before and from the first ones.

    Parameters
    ----------
    tracker : SADTracker
        With at least one update.
    ax : matplotlib Axes, optional
        Where to draw. Default: a new figure.
    layer : str, optional
        The layer to show. Default: all together.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidArgumentError
        If there is no update yet, or no such layer.
    """
    if not tracker.records:
        raise InvalidArgumentError("`tracker` must have at least one update, got none. Call its update() first.")
    table = tracker.table(layer).to_dict()
    ax = _axes(ax)
    for key, label, colour, marker in (
        ("share_from_first", "from the first mask", BLUE, "o"),
        ("share_from_previous", "from the mask before", VERMILION, "s"),
    ):
        shares = [np.nan if share is None else share for share in table[key]]
        marked = marker if len(shares) <= 50 else None
        ax.plot(table["step"], shares, color=colour, marker=marked, markersize=4, clip_on=False, label=label)
    _open_frame(ax, "both")
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="step", ylabel="entries whose state differs (SAD)", title="" if layer is None else shown(layer))
    ax.title.set_parse_math(False)  # a layer may have any name
    ax.legend(frameon=False)
    return ax


def plot_solver_quality(rows: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw, for every solver, how far its masks may be from the optimum over the time it takes.

    Down and to the left is better. Masks that are proven optimal lie on a line of their own below the logarithmic
    scale.

    Parameters
    ----------
    rows : sequence of mapping
        With "solver" and "constraint" (str), "kept_fraction" and "gap" (fractions) and "seconds" (float): what
        `transmask compare --json` prints under "solvers". Without "unproven_blocks" (int), gaps up to 1e-12 count as
        zero.
    ax : matplotlib Axes, optional
        Where to draw. Default: a new figure.

    Returns
    -------
    Axes

    Raises
    ------
    InvalidArgumentError
        If `rows` is empty, or a time is not positive.
    """
    if not rows:
        raise InvalidArgumentError("`rows` must have at least one solver, got none.")
    if any(row["seconds"] <= 0 for row in rows):
        raise InvalidArgumentError("`rows` must have positive times in 'seconds', got one that is not.")
    ax = _axes(ax)
    open_rows = [bool(row.get("unproven_blocks", row["gap"] > PROVEN_GAP)) for row in rows]
    gaps = [max(row["gap"], PROVEN_GAP) for row, is_open in zip(rows, open_rows, strict=True) if is_open]
    lowest, highest = (int(np.floor(np.log10(edge(gaps, default=1e-2)))) for edge in (min, max))
    proven = 10.0 ** (lowest - 1)
    several = len({row["constraint"] for row in rows}) > 1
    for row, is_open, (colour, marker) in zip(rows, open_rows, _styles(), strict=False):
        name = f"{row['solver']}, {row['constraint'].replace('_', ' ')}" if several else row["solver"]
        height = max(row["gap"], PROVEN_GAP) if is_open else proven
        label = f"{name}: {row['kept_fraction']:.2%} kept"
        ax.plot(row["seconds"], height, marker, color=colour, markersize=9, clip_on=False, label=label)
    _open_frame(ax, "both")
    ax.set(xscale="log", yscale="log", xlabel="time, s", ylabel="proven gap to the optimum")
    decades = range(lowest, highest + 2) if gaps else ()
    ax.set_yticks([proven, *(10.0**decade for decade in decades)])
    ax.set_yticklabels(["0, proven", *(f"{10.0 ** (decade + 2):g}%" for decade in decades)])
    ax.minorticks_off()
    ax.axhline(proven, color=LINE, linewidth=0.8, zorder=0)
    ax.set_ylim(proven / 2, 10.0 ** (highest + 1))
    ax.margins(x=0.1)
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9)
    return ax
