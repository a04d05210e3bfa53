"""Cut a tensor into pieces that are solved on their own: memory does not grow with the largest tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator

__all__ = ["cut_into_pieces"]


def cut_into_pieces(shape: tuple[int, ...], axes: tuple[int, int], m: int, limit: int) -> Iterator[tuple[int, ...]]:
    """Cut a tensor into pieces of about `limit` entries that cut no block, each a stretch of it in C order.

    A piece has as many axes as the tensor, so that the same two form its matrix.

    Parameters
    ----------
    shape : tuple of int
        Of the tensor, with no axis of length 0.
    axes : tuple of two int
        The axes that form its matrix.
    m : int
        Block side.
    limit : int
        Entries of a piece; more only if M lines of the first axis of the matrix have more.

    Yields
    ------
    tuple of int
        The shape of each piece, in order.

    Examples
    --------
    >>> list(cut_into_pieces((10, 6), (0, 1), 4, 24))
    [(4, 6), (4, 6), (2, 6)]
    >>> list(cut_into_pieces((3, 4, 8), (1, 2), 4, 40))
    [(1, 4, 8), (1, 4, 8), (1, 4, 8)]
    """
    if math.prod(shape) <= limit:
        yield shape
        return
    first = next(axis for axis, length in enumerate(shape) if length > 1)
    unit = m if first in axes else 1
    rest = math.prod(shape[first + 1 :])
    step = max(1, limit // (rest * unit)) * unit
    for start in range(0, shape[first], step):
        piece = (*shape[:first], min(step, shape[first] - start), *shape[first + 1 :])
        if piece[first] == 1 and unit == 1:
            yield from cut_into_pieces(piece, axes, m, limit)
        else:
            yield piece
