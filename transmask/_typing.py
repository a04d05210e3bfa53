"""The one type that every floor of the package names."""

from __future__ import annotations

from typing import Any, TypeAlias

from numpy.typing import NDArray

__all__ = ["Array"]

Array: TypeAlias = NDArray[Any]
"""An array of any dtype."""
