"""How the patterns of a report are shown: one for all tensors, or one for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..tables import Column

if TYPE_CHECKING:
    from ..pattern import Pattern

__all__ = ["listed_patterns", "only_pattern", "with_patterns"]


def only_pattern(patterns: Mapping[str, Pattern]) -> str | None:
    """Return the pattern that all tensors have, for JSON; None if there are several."""
    different = set(patterns.values())
    return str(different.pop()) if len(different) == 1 else None


def listed_patterns(patterns: Mapping[str, Pattern]) -> str:
    """List the different patterns of tensors, as a sentence has them."""
    *others, last = dict.fromkeys(map(str, patterns.values()))
    return f"{', '.join(others)} and {last}" if others else last


def with_patterns(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Add a column for the pattern of each tensor, if they differ."""
    if len({row["pattern"] for row in rows}) < 2:
        return tuple(columns)
    return (*columns[:2], Column("pattern", "pattern"), *columns[2:])
