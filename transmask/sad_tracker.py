"""Follow masks over time: how far they move from refresh to refresh, and from where they began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._arguments import as_integer
from .divergence import LayerDivergence, MaskLike, PackedMask, sparse_architecture_divergence
from .errors import InvalidArgumentError
from .tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SADRecord", "SADTracker"]


@dataclass(frozen=True, slots=True)
class SADRecord:
    """The masks at one time, compared with earlier ones.

    Attributes
    ----------
    step : int
    from_previous : LayerDivergence or None
        Entries that differ from the masks of the update before; None at the first update.
    from_first : LayerDivergence
        Entries that differ from the masks of the first update.
    sizes : dict of str to int
        Number of entries of every layer.
    """

    step: int
    from_previous: LayerDivergence | None
    from_first: LayerDivergence
    sizes: dict[str, int]


class SADTracker:
    """Record how far the masks of a network move; it holds two copies of them, at one bit an entry.

    Attributes
    ----------
    records : list of SADRecord
        One for every update.

    Examples
    --------
    >>> tracker = SADTracker()
    >>> for masks in ([[1, 0], [0, 1]], [[0, 1], [1, 0]], [[1, 0], [0, 1]]):
    ...     _ = tracker.update(masks)
    >>> print(tracker.table())
    step  from previous    share  from first    share
       0              -        -           0    0.00%
       1              4  100.00%           4  100.00%
       2              4  100.00%           0    0.00%
    """

    __slots__ = ("_first", "_previous", "records")

    def __init__(self) -> None:
        self.records: list[SADRecord] = []
        self._first: dict[str, PackedMask] = {}
        self._previous: dict[str, PackedMask] = {}

    def update(self, masks: MaskLike | Mapping[str, MaskLike], *, step: int | None = None) -> SADRecord:
        """Compare masks with those of the update before and with the first.

        Parameters
        ----------
        masks : array_like of bool or of 0 and 1, PackedMask, or mapping of str to these
            A mask, or those of the layers of a network; not modified. The layers and their shapes stay the same from
            update to update.
        step : int, optional
            The time, larger than at the update before. Default: one more, beginning with 0.

        Returns
        -------
        SADRecord
            Also the last of `records`.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            If something is not a mask, layers or shapes have changed, or `step` is not larger. Then nothing is
            recorded.
        """
        layers = masks if isinstance(masks, Mapping) else {"mask": masks}
        packed = {
            name: mask if isinstance(mask, PackedMask) else PackedMask.pack(mask) for name, mask in layers.items()
        }
        if self.records:
            self._require_same_layers(packed)
        record = SADRecord(
            step=self._next_step(step),
            from_previous=sparse_architecture_divergence(self._previous, packed) if self.records else None,
            from_first=sparse_architecture_divergence(self._first or packed, packed),
            sizes={name: mask.size for name, mask in packed.items()},
        )
        self._first = self._first or packed
        self._previous = packed
        self.records.append(record)
        return record

    def _next_step(self, step: int | None) -> int:
        """Return the time of an update."""
        last = self.records[-1].step if self.records else None
        if step is None:
            return 0 if last is None else last + 1
        time = as_integer(step, argument="step", expected="an integer or None")
        if last is not None and time <= last:
            raise InvalidArgumentError(f"`step` must be larger than {last}, that of the update before, got {time}.")
        return time

    def _require_same_layers(self, packed: Mapping[str, PackedMask]) -> None:
        """Raise InvalidArgumentError if layers or shapes are not those of the first update."""
        had, has = ({name: mask.shape for name, mask in masks.items()} for masks in (self._first, packed))
        if had != has:
            names = sorted(name for name in {**had, **has} if had.get(name) != has.get(name))
            raise InvalidArgumentError(
                f"`masks` must have the layers and shapes of the first update, got {has.get(names[0], 'nothing')} "
                f"where that had {had.get(names[0], 'nothing')} for {names[0]!r}. Use another tracker for other layers."
            )

    def table(self, layer: str | None = None) -> Table:
        """Return one row for every update.

        Parameters
        ----------
        layer : str, optional
            The layer to show. Default: all together.

        Returns
        -------
        Table
            With "step", and as numbers of entries and as shares of all entries "from_previous", "share_from_previous",
            "from_first" and "share_from_first".

        Raises
        ------
        InvalidArgumentError
            If there is no such layer.
        """
        if layer is not None and layer not in self._first:
            known = ", ".join(map(repr, self._first)) or "none"
            raise InvalidArgumentError(f"`layer` must be one of the layers {known}, got {layer!r}.")
        rows = []
        for record in self.records:
            size = sum(record.sizes.values()) if layer is None else record.sizes[layer]
            row: dict[str, float | None] = {"step": record.step}
            for key, moved in (("from_previous", record.from_previous), ("from_first", record.from_first)):
                count = None if moved is None else moved.total if layer is None else moved.layers[layer]
                row[key] = count
                row[f"share_{key}"] = None if count is None else count / size if size else 0.0
            rows.append(row)
        columns = {
            "step": "step",
            "from_previous": "from previous",
            "share_from_previous": "share",
            "from_first": "from first",
            "share_from_first": "share",
        }
        formats = dict.fromkeys(("step", "from_previous", "from_first"), ",d")
        return Table(columns, rows, formats | dict.fromkeys(("share_from_previous", "share_from_first"), ".2%"))

    def plot(self, ax: Axes | None = None, *, layer: str | None = None) -> Axes:
        """Plot the shares of the table over time; see `plotting.plot_divergence`.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. Default: a new figure.
        layer : str, optional
            The layer to show. Default: all together.

        Returns
        -------
        Axes

        Raises
        ------
        MissingDependencyError
            If matplotlib is not installed.
        InvalidArgumentError
            If there is no such layer.
        """
        from .plotting import plot_divergence

        return plot_divergence(self, ax, layer=layer)
