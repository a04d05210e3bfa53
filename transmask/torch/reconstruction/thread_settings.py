"""Settings that torch keeps for each thread, carried into another one.

Carried: automatic mixed precision, inference mode, the default device, the current device and stream of CUDA, and
Python's context variables, where numpy keeps its error state. Gradients are never recorded. The default dtype, the
number of threads, deterministic algorithms and the choice of kernels belong to the process and hold in every thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from typing import TypeAlias

import torch

__all__ = ["capture_settings"]

Context: TypeAlias = AbstractContextManager[object]


def capture_settings() -> Callable[[Callable[[], None]], None]:
    """Return a function that calls another one, in any thread, under the settings of the thread that captured them."""
    makers = list(_makers())
    variables = copy_context()

    def call(function: Callable[[], None]) -> None:
        with _entered(makers):
            variables.copy().run(function)

    return call


def _makers() -> Iterator[Callable[[], Context]]:
    """Yield what makes contexts: each thread needs its own, because torch's keep what they found on entry."""
    for device in dict.fromkeys(["cpu", "cuda", _accelerator()]):
        if torch.is_autocast_enabled(device):
            cached = torch.is_autocast_cache_enabled()
            yield partial(torch.autocast, device, dtype=torch.get_autocast_dtype(device), cache_enabled=cached)
    if torch.is_inference_mode_enabled():
        yield torch.inference_mode
    if (default := torch.get_default_device()).type != "cpu":
        yield partial(torch.device, default)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield partial(torch.cuda.device, torch.cuda.current_device())
        yield partial(torch.cuda.stream, torch.cuda.current_stream())


@contextmanager
def _entered(makers: list[Callable[[], Context]]) -> Iterator[None]:
    """Record no gradients, and enter new contexts."""
    with ExitStack() as stack, torch.no_grad():
        for make in makers:
            stack.enter_context(make())
        yield


def _accelerator() -> str:
    """Return the type of the accelerator of this machine, or "cpu"."""
    device = torch.accelerator.current_accelerator()
    return "cpu" if device is None else device.type
