"""Keep what paused forwards have computed in the memory of the CPU.

A dispatch mode notes every tensor that operations of a forward make. While the forward is paused, the storages of those
that are still alive are copied to the CPU and emptied in place, so that views stay views; before it goes on, they are
filled again. A tensor that the model keeps beyond one forward, such as a cache of rotary embeddings, is filled again
for good as soon as another forward uses it. Parameters, buffers and the batches themselves stay where they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Offload", "Offloaded"]


def is_movable(tensor: object) -> bool:
    """Tell whether a value is a tensor with a storage of its own on an accelerator."""
    if type(tensor) is not Tensor or tensor.is_nested or tensor.layout != torch.strided:
        return False
    return tensor.device.type not in ("cpu", "meta")


class _Emptied:
    """A storage whose values are on the CPU for now."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self._storage = storage
        self._copy = torch.UntypedStorage(storage.nbytes())  # type: ignore[no-untyped-call]
        self._copy.copy_(storage)
        self.empty()

    def empty(self) -> None:
        self._storage.resize_(0)

    def fill(self) -> None:
        self._storage.resize_(self._copy.nbytes())
        self._storage.copy_(self._copy)


class Offload:
    """What is on the CPU, of all forwards."""

    def __init__(self) -> None:
        self.emptied: dict[int, _Emptied] = {}

    def fill(self, key: int) -> None:
        """Fill a storage again, if it has been emptied."""
        if (storage := self.emptied.pop(key, None)) is not None:
            storage.fill()


class Offloaded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Note what one forward makes; entered in its thread.

    Parameters
    ----------
    offload : Offload
        Shared by all forwards.
    """

    def __init__(self, offload: Offload) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._offload = offload
        self._made: list[weakref.ref[Tensor]] = []
        self._own: set[int] = set()  # an address may be used again; what others use is filled again anyway
        self._emptied: list[int] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Fill what an operation reads, run it, and note what it makes."""
        inputs = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if is_movable(leaf)}
        for key in inputs & self._offload.emptied.keys():
            self._offload.fill(key)
        outputs = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(outputs):
            if is_movable(leaf) and ((key := _key(leaf)) in self._own or key not in inputs):
                self._own.add(key)
                self._made.append(weakref.ref(leaf))
        return outputs

    def empty(self) -> None:
        """Move what the forward has made, and still holds, to the CPU."""
        self._made = [made for made in self._made if made() is not None]
        for made in self._made:
            tensor = made()
            if tensor is not None and (key := _key(tensor)) not in self._offload.emptied:
                self._offload.emptied[key] = _Emptied(tensor.untyped_storage())
                self._emptied.append(key)

    def fill(self) -> None:
        """Move it back."""
        for key in self._emptied:
            self._offload.fill(key)
        self._emptied = []

    @contextmanager
    def filled(self, tensor: Tensor) -> Iterator[None]:
        """Move one tensor back for a while, in which nothing writes to it."""
        storage = self._offload.emptied.get(_key(tensor)) if is_movable(tensor) else None
        if storage is None:
            yield
            return
        storage.fill()
        yield
        storage.empty()


def _key(tensor: Tensor) -> int:
    """Return the address of a tensor's storage."""
    return int(tensor.untyped_storage()._cdata)
