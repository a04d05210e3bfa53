"""Run a model once on every batch, with all batches paused before the same layer: sequential treatment in one pass.

The forward of every batch runs in a thread of its own, and one thread runs at a time. A hook pauses it before each of
the chosen layers. When all batches that still run are paused, the layer that comes first is handed out with the calls
that wait for it; these go on when the next one is asked for, and the rest of the model sees what the layer has become.
Nothing needs to be known of the model's structure.

"First" is the order of `layers` among those that are waited for. Where all batches wait for the same one, which is the
rule, their own order decides. Where they do not, as with experts, a batch may come late to a layer that has been handed
out, or call it again: it is handed out once more, and the caller decides what that means.

A thread ends when its forward does. An error in one, or the end of the generator for any reason, ends the others at
their next call of a layer, by an exception that only passes through the model's code.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Thread, get_ident
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .calibration import Calibration, evaluating
from .gram import SupportedLayer, layer_input
from .offload import Offload, Offloaded
from .thread_settings import capture_settings

__all__ = ["Call", "waiting_calls"]


@dataclass(slots=True, eq=False)
class Call:
    """A call of a layer that waits.

    Attributes
    ----------
    batch : int
        Whose forward waits.
    layer : int
        The index of the layer.
    value : torch.Tensor
        What the layer is called with.
    row_weights : torch.Tensor or None
        See `Calibration.row_weights`.
    same_input : bool
        Whether the call that this batch waited with before had the same, unchanged tensor.
    offloaded : Offloaded or None
        Keeps `value` on the CPU until it is filled.
    """

    batch: int
    layer: int
    value: Tensor
    row_weights: Tensor | None
    same_input: bool
    offloaded: Offloaded | None

    def filled(self) -> AbstractContextManager[None]:
        """Have the values of `value` on its device for a while."""
        return nullcontext() if self.offloaded is None else self.offloaded.filled(self.value)


class _Ended(BaseException):
    """Ends a thread from within a layer; not an Exception, so that models do not catch it."""


class _Forward:
    """The forward of one batch, in a thread of its own."""

    def __init__(
        self, batch: int, work: Callable[[], None], row_weights: Tensor | None, offloaded: Offloaded | None
    ) -> None:
        self.batch, self.row_weights = batch, row_weights
        self._work, self._offloaded = work, offloaded
        self._ended = False
        self._turns: SimpleQueue[None] = SimpleQueue()
        self._answers: SimpleQueue[Call | BaseException | None] = SimpleQueue()
        self._last_input: Callable[[], Tensor | None] = lambda: None
        self._last_version = 0
        # A daemon: a model that never calls a layer again must not keep the interpreter alive.
        self._thread = Thread(target=self._run, name=f"transmask-batch-{batch}", daemon=True)

    def go_on(self) -> Call | None:
        """Run up to the next call of a layer and return it, or None at the end; raise what the forward raises."""
        if self._offloaded is not None:
            self._offloaded.fill()
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._turns.put(None)
        answer = self._answers.get()
        if answer is None or isinstance(answer, BaseException):
            self._thread.join()
        if isinstance(answer, BaseException):
            raise answer
        if answer is not None and self._offloaded is not None:
            self._offloaded.empty()
        return answer

    def pause(self, layer: int, value: Tensor) -> None:
        """Wait for the next turn; called within the forward."""
        if self._ended:
            raise _Ended
        # Inference tensors count no versions: whether one has changed cannot be told.
        version = -1 if value.is_inference() else value._version
        same = self._last_input() is value and version == self._last_version >= 0
        self._last_input, self._last_version = weakref.ref(value), version
        self._answers.put(Call(self.batch, layer, value, self.row_weights, same, self._offloaded))
        self._turns.get()
        if self._ended:
            raise _Ended

    def end(self) -> None:
        """End the thread at its next call of a layer, and wait for that, whatever is pressed meanwhile."""
        self._ended = True
        if self._offloaded is not None:
            self._offloaded.fill()  # the model may keep some of it
        interrupt = None
        while self._thread.is_alive():
            try:
                self._turns.put(None)
                self._thread.join()
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _run(self) -> None:
        answer: BaseException | None = None
        try:
            with nullcontext() if self._offloaded is None else self._offloaded:
                self._work()
        except _Ended:
            pass
        except BaseException as error:
            answer = error
        self._answers.put(answer)


def waiting_calls(
    model: nn.Module, layers: Sequence[SupportedLayer], calibration: Calibration, *, offload: bool
) -> Generator[tuple[int, list[Call]], None, None]:
    """Yield layers, first in execution order, with the calls that wait for them; they go on when the next is asked for.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode until the generator ends or is closed.
    layers : sequence of torch.nn.Module
        Layers of the model. One that no batch calls is not yielded; one is yielded again for a batch that calls it
        again, or that comes to it after it was yielded.
    calibration : Calibration
    offload : bool
        Whether what paused forwards have computed on an accelerator is kept on the CPU.

    Yields
    ------
    int
        The index of the layer in `layers`.
    list of Call
        At least one, in the order of the batches.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        As `Calibration.run`.
    """
    caller = get_ident()
    running: list[_Forward] = []  # the one that has its turn

    def watch(index: int, layer: SupportedLayer) -> RemovableHandle:
        def pause(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = layer_input(layer, args, kwargs)
            if value is not None and get_ident() != caller:  # who may run the model while a layer is treated
                running[-1].pause(index, value)

        return layer.register_forward_pre_hook(pause, with_kwargs=True)

    under = capture_settings()
    shared = Offload() if offload else None

    def forward_of(index: int, batch: Any) -> _Forward:
        work = partial(under, partial(calibration.forward, model, batch, index))
        offloaded = None if shared is None else Offloaded(shared)
        return _Forward(index, work, calibration.row_weights(batch, index), offloaded)

    forwards = [forward_of(index, batch) for index, batch in enumerate(calibration)]
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for index, layer in enumerate(layers):
            stack.callback(watch(index, layer).remove)
        for forward in forwards:
            stack.callback(forward.end)
        ready = forwards
        waiting: dict[_Forward, Call] = {}
        while True:
            for forward in ready:
                running[:] = [forward]
                if (call := forward.go_on()) is not None:
                    waiting[forward] = call
                del call  # nothing here may keep its tensor
            if not waiting:
                return
            first = min(call.layer for call in waiting.values())
            ready = [forward for forward in forwards if forward in waiting and waiting[forward].layer == first]
            yield first, [waiting.pop(forward) for forward in ready]
