"""``transmask sad``: how many entries one file keeps and the other prunes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ..errors import InvalidArgumentError
from ..tables import Column
from ._options import ExcludeOption, IncludeOption, JsonOption
from ._output import count, percent, print_json, print_line, print_table, shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..checkpoint import TensorInfo

__all__ = ["sad"]

COLUMNS = (
    Column("name", "tensor"),
    Column("shape", "shape", shape),
    Column("kept_before", "kept in A", count, right=True),
    Column("kept_after", "kept in B", count, right=True),
    Column("differ", "differ", count, right=True),
    Column("share", "share", percent, right=True),
)


def sad(
    before: Annotated[
        Path, typer.Argument(metavar="A", help="A masks file, or what `transmask prune` takes: zeros count as pruned.")
    ],
    after: Annotated[Path, typer.Argument(metavar="B", help="The same tensors at another time.")],
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count the entries that are kept in A and pruned in B, or vice versa (SAD, Zhou et al. 2021).

    Compares the tensors that A or B says were pruned; if neither says anything, all with two or more axes.
    """
    from ..divergence import sparse_architecture_divergence

    first, second = _Source(before), _Source(after)
    names = _names(first, second, include, exclude)
    rows = []
    for name in names:
        masks = first.mask(name), second.mask(name)
        differ = sparse_architecture_divergence({name: masks[0]}, {name: masks[1]}).total
        rows.append(_row(name, masks, int(differ)))
    total = {key: sum(row[key] for row in rows) for key in ("size", "kept_before", "kept_after", "differ")}
    total["share"] = total["differ"] / max(total["size"], 1)
    if as_json:
        print_json({"before": str(before), "after": str(after), "tensors": rows, "total": total})
        return
    print_table(rows, COLUMNS)
    print_line()
    print_line(f"SAD {count(total['differ'])} of {count(total['size'])} entries, {percent(total['share'])}")


class _Source:
    """A file from which masks are read one at a time."""

    def __init__(self, path: Path) -> None:
        from ..checkpoint import masks_in, open_checkpoint

        self.path = path
        self._checkpoint = open_checkpoint(path)
        self._tensors = {tensor.name: tensor for tensor in self._checkpoint.tensors if _is_matrix(tensor)}
        self._masks = masks_in(self._checkpoint)
        self.pruned: list[str] = []
        if self._masks is not None:
            self.pruned = list(self._masks)
        elif self._checkpoint.record is not None:
            self.pruned = list(self._checkpoint.record.axes)
        elif self._checkpoint.is_named_after_file:  # two files never share a name
            self._tensors = dict(zip(["array"], self._tensors.values(), strict=False))
        self.names = dict.fromkeys(self.pruned if self._masks is not None else self._tensors)

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Read which entries of a tensor are kept."""
        if self._masks is not None:
            return self._masks[name]
        with np.errstate(invalid="ignore"):  # a NaN is not zero either
            kept: NDArray[np.bool_] = self._checkpoint.read(self._tensors[name]) != 0
        return kept


def _is_matrix(tensor: TensorInfo) -> bool:
    """Whether a tensor can have a mask at all."""
    dtype = tensor.numpy_dtype
    return len(tensor.shape) >= 2 and dtype is not None and (tensor.is_floating or dtype.kind in "biu")


def _names(first: _Source, second: _Source, include: str | None, exclude: str | None) -> list[str]:
    """Choose the tensors to compare, which must be in both files."""
    from ..checkpoint import matching_names

    known = dict.fromkeys([*first.pruned, *second.pruned]) or dict.fromkeys([*first.names, *second.names])
    names = matching_names(known, include=include, exclude=exclude)
    if not names:
        raise InvalidArgumentError(
            f"`A` and `B` must hold a tensor to compare, got none in {str(first.path)!r} and {str(second.path)!r}."
        )
    for argument, source in (("A", first), ("B", second)):
        missing = [name for name in names if name not in source.names]
        if missing:
            raise InvalidArgumentError(
                f"`{argument}` must hold all tensors to compare, got {str(source.path)!r} without {missing[0]!r}. "
                "Choose those that both have with --include or --exclude."
            )
    return names


def _row(name: str, masks: tuple[NDArray[np.bool_], NDArray[np.bool_]], differ: int) -> dict[str, Any]:
    """Describe the masks of a tensor."""
    return {
        "name": name,
        "shape": list(masks[0].shape),
        "size": masks[0].size,
        "kept_before": int(np.count_nonzero(masks[0])),
        "kept_after": int(np.count_nonzero(masks[1])),
        "differ": differ,
        "share": differ / max(masks[0].size, 1),
    }
