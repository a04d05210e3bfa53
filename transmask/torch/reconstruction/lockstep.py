"""Run a model once on every batch, with all batches paused before the same layer: sequential treatment in one pass.

The forward of every batch runs in a thread of its own, and one thread runs at a time. A hook pauses it before each of
the chosen layers. When all batches that still run are paused, the layer that comes first is handed out with the calls
that wait for it; these go on when the next one is asked for, and the rest of the model sees what the layer has become.
Nothing needs to be known of the model's structure.

A stop may also be behind a block of layers: its calls then hold the block's arguments, and `again` has the block run
once more on them when they go on, as it is then, in place of what it answered before.

"First" is the order of `stops` among those that are waited for. Where all batches wait for the same one, which is the
rule, their own order decides. Where they do not, as with experts, a batch may come late to a layer that has been handed
out, or call it again: it is handed out once more, and the caller decides what that means.

A thread ends when its forward does. An error in one, or the end of the generator for any reason, ends the others at
their next call of a layer, by an exception that only passes through the model's code.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread, get_ident
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from .block_matching import copied
from .calibration import Calibration, evaluating
from .gram import SupportedLayer, layer_input
from .offload import Offload, Offloaded
from .thread_settings import capture_settings

__all__ = ["BlockCall", "Call", "Stop", "waiting_calls"]


@dataclass(slots=True, eq=False)
class Call:
    """A call of a layer that waits.

    Attributes
    ----------
    batch : int
        Whose forward waits.
    stop : int
        The index of the stop.
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
    stop: int
    value: Tensor
    row_weights: Tensor | None
    same_input: bool
    offloaded: Offloaded | None

    def filled(self) -> AbstractContextManager[None]:
        """Have the values of `value` on its device for a while."""
        return nullcontext() if self.offloaded is None else self.offloaded.filled(self.value)


@dataclass(slots=True, eq=False)
class BlockCall:
    """A call of a block that waits at its end.

    Attributes
    ----------
    batch, stop, row_weights, offloaded
        As in `Call`.
    args, kwargs : tuple, dict
        Copies of what the block was called with.
    again : bool
        Whether the block is to run again when the call goes on.
    """

    batch: int
    stop: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    row_weights: Tensor | None
    offloaded: Offloaded | None
    again: bool = False

    @contextmanager
    def filled(self) -> Iterator[None]:
        """Have the values of the arguments on their device for a while."""
        with ExitStack() as stack:
            if self.offloaded is not None:
                for tensor in tree_leaves((self.args, self.kwargs)):
                    stack.enter_context(self.offloaded.filled(tensor))
            yield


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """Where batches wait: before a layer, or behind a block."""

    module: nn.Module
    behind: bool = False


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
        self.silent = False  # while a block runs again
        self.entered: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}  # the arguments of blocks that run
        self._turns: SimpleQueue[None] = SimpleQueue()
        self._answers: SimpleQueue[Call | BlockCall | BaseException | None] = SimpleQueue()
        self._last_input: Callable[[], Tensor | None] = lambda: None
        self._last_version = 0
        # A daemon: a model that never calls a layer again must not keep the interpreter alive.
        self._thread = Thread(target=self._run, name=f"transmask-batch-{batch}", daemon=True)
        # Before Python 3.13, a `join` that is interrupted takes a thread that still runs for one that has ended.
        self._over = Event()

    def go_on(self) -> Call | BlockCall | None:
        """Run up to the next stop and return it, or None at the end; raise what the forward raises."""
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

    def call_layer(self, index: int, value: Tensor) -> None:
        """Wait before a layer; called within the forward."""
        # Inference tensors count no versions: whether one has changed cannot be told.
        version = -1 if value.is_inference() else value._version
        same = self._last_input() is value and version == self._last_version >= 0
        self._last_input, self._last_version = weakref.ref(value), version
        self._pause(Call(self.batch, index, value, self.row_weights, same, self._offloaded))

    def leave_block(self, index: int) -> BlockCall:
        """Wait behind a block; called within the forward."""
        call = BlockCall(self.batch, index, *self.entered.pop(index), self.row_weights, self._offloaded)
        self._pause(call)
        return call

    def _pause(self, call: Call | BlockCall) -> None:
        """Wait for the next turn."""
        if self._ended:
            raise _Ended
        self._answers.put(call)
        self._turns.get()
        if self._ended:
            raise _Ended

    def end(self) -> None:
        """End the thread at its next call of a layer, and wait for that, whatever is pressed meanwhile."""
        self._ended = True
        if self._offloaded is not None:
            self._offloaded.fill()  # the model may keep some of it
        interrupt = None
        while self._thread.ident is not None:
            try:
                self._turns.put(None)
                self._over.wait()
                self._thread.join()
                break
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
        self._over.set()


class _Turn:
    """Whose turn it is."""

    def __init__(self) -> None:
        self._caller = get_ident()
        self.forward: _Forward | None = None

    def holder(self) -> _Forward | None:
        """Return the forward that runs; None while nothing is to pause: at a stop, or where a block runs again."""
        if get_ident() == self._caller or self.forward is None or self.forward.silent:
            return None
        return self.forward


def _watch_layer(turn: _Turn, index: int, layer: SupportedLayer) -> list[RemovableHandle]:
    """Pause before a layer."""

    def pause(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value, forward = layer_input(layer, args, kwargs), turn.holder()
        if value is not None and forward is not None:
            forward.call_layer(index, value)

    return [layer.register_forward_pre_hook(pause, with_kwargs=True)]


def _watch_block(turn: _Turn, index: int, block: nn.Module) -> list[RemovableHandle]:
    """Pause behind a block, and run it again if that is asked for."""

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (forward := turn.holder()) is not None:
            forward.entered[index] = copied(args), copied(kwargs)

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        forward = turn.holder()
        call = None if forward is None else forward.leave_block(index)
        if forward is None or call is None or not call.again:
            return None
        forward.silent = True
        try:
            return module(*call.args, **call.kwargs)
        finally:
            forward.silent = False

    # The first of its hooks and the last: its others run again when it does.
    return [
        block.register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
        block.register_forward_hook(leave, with_kwargs=True),
    ]


def waiting_calls(
    model: nn.Module, stops: Sequence[Stop], calibration: Calibration, *, offload: bool
) -> Generator[tuple[int, list[Call | BlockCall]], None, None]:
    """Yield stops, first in execution order, with the calls that wait there; they go on when the next is asked for.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode until the generator ends or is closed.
    stops : sequence of Stop
        At modules of the model. One that no batch comes to is not yielded; one is yielded again for a batch that comes
        to it again, or that comes to it after it was yielded.
    calibration : Calibration
    offload : bool
        Whether what paused forwards have computed on an accelerator is kept on the CPU.

    Yields
    ------
    int
        The index of the stop in `stops`.
    list of Call or of BlockCall
        At least one, in the order of the batches; the second behind a block.

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        As `Calibration.run`.
    """
    turn = _Turn()
    under = capture_settings()
    shared = Offload() if offload else None

    def forward_of(index: int, batch: Any) -> _Forward:
        work = partial(under, partial(calibration.forward, model, batch, index))
        offloaded = None if shared is None else Offloaded(shared)
        return _Forward(index, work, calibration.row_weights(batch, index), offloaded)

    forwards = [forward_of(index, batch) for index, batch in enumerate(calibration)]
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for index, stop in enumerate(stops):
            watch = _watch_block if stop.behind else _watch_layer
            for handle in watch(turn, index, cast(SupportedLayer, stop.module)):
                stack.callback(handle.remove)
        for forward in forwards:
            stack.callback(forward.end)
        ready = forwards
        waiting: dict[_Forward, Call | BlockCall] = {}
        while True:
            for forward in ready:
                turn.forward = forward
                if (call := forward.go_on()) is not None:
                    waiting[forward] = call
                del call  # nothing here may keep its tensor
            if not waiting:
                return
            first = min(call.stop for call in waiting.values())
            ready = [forward for forward in forwards if forward in waiting and waiting[forward].stop == first]
            yield first, [waiting.pop(forward) for forward in ready]
