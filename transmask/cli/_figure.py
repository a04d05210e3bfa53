"""Write a plot that appears complete or not at all, and refuse early one that could not be written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidArgumentError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_plot", "save_plot"]


def check_plot(path: Path) -> None:
    """Refuse, before any work is done, a plot that could not be written in the end.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    InvalidArgumentError
        If `path` does not end with .png, .svg or .pdf.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InvalidArgumentError(f"`plot` must end with '.png', '.svg' or '.pdf', got {str(path)!r}.")
    if find_spec("matplotlib") is None:
        raise MissingDependencyError(
            '`plot` must be left out where matplotlib is not installed. Install it: pip install "transmask[plot]"'
        )


def save_plot(draw: Callable[[Axes], object], path: Path, *, height: float = 4.0, inputs: Iterable[Path] = ()) -> None:
    """Draw and write a plot 6.4 inches wide, at twice the resolution of a page 640 pixels wide.

    Parameters
    ----------
    draw : callable
        Given the Axes to draw into.
    path : Path
        Its suffix is the format.
    height : float
        In inches.
    inputs : iterable of Path
        Files that must not be replaced.

    Raises
    ------
    InvalidArgumentError, CheckpointError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure

    from ..checkpoint import atomic_file

    figure = Figure(figsize=(6.4, height), layout="constrained")  # no pyplot: no window, no state
    draw(figure.subplots())
    with atomic_file(path, argument="plot", inputs=inputs) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=200)
