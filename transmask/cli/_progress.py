"""Progress through the tensors of a checkpoint, on stderr: a bar on a terminal, a line for each tensor in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from ..compilation import cache_folder, while_compiling
from ..shown import shown
from ._output import print_note

if TYPE_CHECKING:
    from rich.console import ConsoleOptions
    from rich.progress import Progress, Task

__all__ = ["TensorProgress", "compiling_note"]


class TensorProgress:
    """A ``with`` block that shows the current tensor, the weights per second, and the time left.

    Parameters
    ----------
    n_weights : int
        Number of weights in all tensors.
    n_tensors : int
        Number of tensors.
    compiling : str, default ""
        What compiling is for, such as "8:16", to be said on a terminal once while it lasts; "" says nothing.
    """

    def __init__(self, n_weights: int, n_tensors: int, *, compiling: str = "") -> None:
        self._n_weights = n_weights
        self._n_tensors = n_tensors
        self._n_done = 0
        self._n_weights_done = 0
        self._began = time.perf_counter()
        self._name = ""
        self._compiling_for = compiling
        self._listening = ExitStack()
        self._said = False
        self._n_compiling = 0
        self._bar = _bar() if sys.stderr.isatty() else None

    def __enter__(self) -> TensorProgress:
        if self._bar is not None:
            if self._compiling_for:
                self._listening.enter_context(while_compiling(self._compiling))
            self._bar.start()
            self._task = self._bar.add_task("", total=self._n_weights, tensor="", rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()
        if self._bar is not None:
            self._bar.stop()

    def begin(self, name: str) -> None:
        """Show that work on the tensor `name` begins."""
        self._name = shown(name)
        self._show(self._name)

    def _compiling(self, begins: bool) -> None:
        """Say that kernels are being compiled, which happens in the first run on a machine."""
        self._n_compiling += 1 if begins else -1  # compiling one function compiles those that it calls
        self._show("compiling" if self._n_compiling else self._name)
        if not self._said and self._bar is not None:
            self._said = True
            self._bar.console.print(compiling_note(self._compiling_for), markup=False, highlight=False, soft_wrap=True)

    def _show(self, text: str) -> None:
        """Show `text` in the bar, if there is one."""
        if self._bar is not None:
            self._bar.update(self._task, tensor=text)

    def advance(self, name: str, n_weights: int, outcome: str) -> None:
        """Count a tensor with `n_weights` as done; in a pipe, print a line with its `outcome`."""
        self._n_done += 1
        if self._bar is not None:
            self._n_weights_done += n_weights
            rate = self._n_weights_done / (time.perf_counter() - self._began)
            self._bar.update(self._task, advance=n_weights, rate=f"{rate / 1e6:.3g} M weights/s")
        else:
            print_note(f"[{self._n_done}/{self._n_tensors}] {name}: {outcome}")


def compiling_note(purpose: str) -> str:
    """Say that something compiles, and where the code will be."""
    folder = cache_folder()
    kept = f"once: kept below {folder}" if folder else "and again next time: set NUMBA_CACHE_DIR to a folder to keep it"
    return f"compiling for {purpose}, {kept}"


def _bar() -> Progress:
    """Build the bar of rich, which is slow to import."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Tail:
        """A name that a narrow terminal cuts at the front, because names differ at the end."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
            fits = len(self.name) <= options.max_width
            yield Text(self.name if fits else "…" + self.name[len(self.name) - options.max_width + 1 :], end="")

        def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
            return Measurement(1, len(self.name))

    class Name(ProgressColumn):
        """The tensor at work."""

        max_refresh = None

        def render(self, task: Task) -> Tail:
            return Tail(task.fields["tensor"])

    return Progress(
        SpinnerColumn(),
        Name(table_column=Column(ratio=1, no_wrap=True)),
        BarColumn(bar_width=16),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
        transient=True,
        expand=True,
    )
