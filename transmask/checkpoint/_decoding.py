"""The boundary of every checkpoint format: whatever a decoder raises becomes one clear CheckpointError.

A damaged file meets zipfile, zlib, bz2, lzma, json, numpy and Rust, and each has errors of its own. They are not listed
here: everything that is not ours, not an error of the system and not a lack of memory is the decoder's.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CheckpointError, TransmaskError
from ..shown import shown

__all__ = ["decoding", "guard_methods"]

Outside = Callable[[Callable[..., Any]], Callable[..., Any]]
Method = TypeVar("Method", bound=Callable[..., Any])


@contextmanager
def decoding(path: Path, suffix: str, doing: str) -> Iterator[Outside]:
    """Turn what a decoder raises in the block into a CheckpointError that names the file and what was being done.

    Our own errors pass, and so do MemoryError and an OSError in which the system says what is wrong. Other OSErrors are
    the decoder's: bz2 raises them without a number, and a damaged offset makes the system refuse it (EINVAL).

    Parameters
    ----------
    path : Path
    suffix : str
        What a file of this format ends with; empty stands for the suffix of `path`.
    doing : str
        Such as "opening it".

    Yields
    ------
    callable
        Wraps a function of the caller's that is called in the block: what it raises passes unchanged.
    """
    passing: list[BaseException] = []

    def outside(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except Exception as error:
                passing.append(error)
                raise

        return call

    try:
        yield outside
    except (TransmaskError, MemoryError):
        raise
    except Exception as error:
        by_system = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
        if by_system or any(error is other for other in passing):
            raise
        text = shown(f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: "))
        raise CheckpointError(
            f"{str(path)!r} must be a {suffix or path.suffix} file, but it is damaged: {doing} failed, {text}. "
            "Was it copied completely?"
        ) from error


def guard_methods(kind: type[Any]) -> None:
    """Run the methods of a subclass of `Checkpoint` that touch its file within `decoding`, where it defines them."""
    methods = vars(kind)
    for name, guard in (
        ("__init__", _guarded_init),
        ("read", _guarded_read),
        ("stretches", _guarded_stretches),
        ("rewrite", _guarded_rewrite),
        ("rewrite_renamed", _guarded_rewrite),
    ):
        if name in methods:
            setattr(kind, name, guard(methods[name]))


def _guarded_init(init: Method) -> Callable[..., None]:
    @wraps(init)
    def guarded(self: Any, path: Path, *more: Any, **options: Any) -> None:
        with decoding(path, self.suffix, "opening it"):
            init(self, path, *more, **options)

    return guarded


def _guarded_read(read: Method) -> Callable[..., Any]:
    @wraps(read)
    def guarded(self: Any, tensor: Any) -> Any:
        with decoding(self.path, self.suffix, f"reading {tensor.name!r}"):
            return read(self, tensor)

    return guarded


def _guarded_stretches(stretches: Method) -> Callable[..., Any]:
    @wraps(stretches)
    def guarded(self: Any, tensor: Any, sizes: Any) -> Iterator[Any]:
        with decoding(self.path, self.suffix, f"reading {tensor.name!r}"):
            yield from stretches(self, tensor, sizes)

    return guarded


def _guarded_rewrite(rewrite: Method) -> Callable[..., None]:
    @wraps(rewrite)
    def guarded(self: Any, target: Path, replace: Callable[..., Any], *more: Any) -> None:
        with decoding(self.path, self.suffix, "copying it") as outside:

            def replacing(tensor: Any) -> Iterator[Any] | None:
                stretches = outside(replace)(tensor)
                return None if stretches is None else _outside_each(stretches, outside)

            rewrite(self, target, replacing, *more)

    return guarded


def _outside_each(items: Iterable[Any], outside: Outside) -> Iterator[Any]:
    """Iterate over what the caller makes, so that what it raises passes."""
    iterator = iter(items)
    end = object()
    while (item := outside(next)(iterator, end)) is not end:
        yield item
