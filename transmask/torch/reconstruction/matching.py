"""The blocks of a model that are trained once their layers are fitted: which they are, and what they must answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...errors import InvalidArgumentError, InvalidTypeError
from .block_matching import BlockMatch, find_blocks, find_tensor, match_block
from .calibration import Calibration
from .lockstep import BlockCall

__all__ = ["Matching", "choose_blocks"]


def choose_blocks(model: nn.Module, match: str | Iterable[str], weights: Iterable[str]) -> dict[str, nn.Module]:
    """Return the blocks to train.

    Parameters
    ----------
    model : torch.nn.Module
    match : "blocks" or iterable of str
        As in `reconstruct`.
    weights : iterable of str
        Names of the weights that are treated; a block without one is left out.

    Returns
    -------
    dict of str to torch.nn.Module

    Raises
    ------
    InvalidTypeError, InvalidArgumentError
        If `match` is of another type, names no module, a module within another, or none that holds a treated weight.
    """
    weights = list(weights)
    if match == "blocks":
        blocks = find_blocks(model)
        if not blocks:
            raise InvalidArgumentError(
                "`match` must be None for a model in which no module repeats, got 'blocks'. "
                "Or name its blocks, as in match=['encoder']."
            )
    else:
        blocks = _named_blocks(model, match)
    chosen = {name: block for name, block in blocks.items() if any(weight.startswith(f"{name}.") for weight in weights)}
    if not chosen:
        raise InvalidArgumentError(
            f"`match` must name blocks with a weight that is treated, got {', '.join(map(repr, blocks))}. "
            "Leave it out, or choose other layers."
        )
    return chosen


def _named_blocks(model: nn.Module, names: str | Iterable[str]) -> dict[str, nn.Module]:
    """Look up the modules that a caller names."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidTypeError(f"`match` must be 'blocks', names of modules in a list, or None, got {names!r}.")
    modules = dict(model.named_modules())
    blocks = {}
    for name in names:
        if not isinstance(name, str) or not name or name not in modules:
            raise InvalidArgumentError(
                f"`match` must name modules of the model, got {name!r}. model.named_modules() lists the names."
            )
        blocks[name] = modules[name]
    for name in blocks:
        for outer in blocks:
            if name.startswith(f"{outer}."):
                raise InvalidArgumentError(f"`match` must name separate blocks, got {name!r}, which is in {outer!r}.")
    if not blocks:
        raise InvalidArgumentError("`match` must name at least one module, got none. Or pass None.")
    return blocks


class Matching:
    """What the blocks of the dense model answer, and the training of the pruned ones on it.

    Parameters
    ----------
    blocks : mapping of str to torch.nn.Module
    steps : int
        Of Adam, for each block.
    offload : bool
        Whether the answers are kept in the memory of the CPU.

    Attributes
    ----------
    blocks : dict of str to torch.nn.Module
        Those that can be trained, once `record` has run.
    left : dict of str to str
        The names of the others, and why they cannot.
    """

    def __init__(self, blocks: Mapping[str, nn.Module], steps: int, *, offload: bool) -> None:
        self.blocks = dict(blocks)
        self.left: dict[str, str] = {}
        self._steps, self._offload = steps, offload
        self._answers: dict[str, dict[int, Tensor]] = {name: {} for name in blocks}

    @torch.no_grad()
    def record(self, model: nn.Module, calibration: Calibration) -> None:
        """Run the dense model once on every batch, and keep what each block answers."""
        batch = -1

        def begin(row_weights: Tensor | None) -> None:
            nonlocal batch
            batch += 1

        def watch(name: str) -> RemovableHandle:
            def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                answer = find_tensor(output)
                if answer is None:
                    self.left[name] = "answers no tensor"
                elif batch in self._answers[name]:
                    self.left[name] = "called more than once a batch"
                elif name not in self.left:
                    self._answers[name][batch] = answer.to("cpu" if self._offload else answer.device, copy=True)

            return self.blocks[name].register_forward_hook(keep)

        with ExitStack() as stack:
            for name in self.blocks:
                stack.callback(watch(name).remove)
            calibration.run(model, before=begin)
        for name, answers in self._answers.items():
            if not answers:
                self.left.setdefault(name, "not called")
        for name in self.left:
            del self.blocks[name], self._answers[name]

    def knows(self, name: str, calls: Iterable[BlockCall]) -> bool:
        """Tell whether the dense block answered to any of the batches that wait."""
        return any(call.batch in self._answers[name] for call in calls)

    def match(self, name: str, calls: Sequence[BlockCall], masks: Mapping[str, Tensor]) -> BlockMatch:
        """Train a block on the calls that wait behind it, of batches that called the dense one.

        Raises
        ------
        InvalidArgumentError
            If the block is called with something that keeps state, or does not answer as the dense one does.
        """
        for call in calls:
            if (state := _stateful(call.args, call.kwargs)) is not None:
                raise InvalidArgumentError(
                    f"`match` must name blocks that are called without anything that keeps state, got a {state} for "
                    f"{name!r}. Run the model without it, as with use_cache=False."
                )
        answers = self._answers[name]
        calls = [call for call in calls if call.batch in answers]
        with ExitStack() as stack, torch.inference_mode(False):
            for call in calls:
                stack.enter_context(call.filled())
            outputs = [answers[call.batch] for call in calls]
            try:
                return match_block(
                    self.blocks[name],
                    [(call.args, call.kwargs) for call in calls],
                    outputs,
                    masks,
                    steps=self._steps,
                    row_weights=[
                        call.row_weights if _counts_rows_of(output, call.row_weights) else None
                        for call, output in zip(calls, outputs, strict=True)
                    ],
                )
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"block {name!r}: {error}") from None


def _counts_rows_of(output: Tensor, row_weights: Tensor | None) -> bool:
    return row_weights is not None and row_weights.shape == output.shape[:-1]


def _stateful(args: Iterable[object], kwargs: Mapping[str, object]) -> str | None:
    """Name the type of the first argument that is neither a value nor made of values; None if there is none."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, tuple | list) and type(value) in (tuple, list):
            found = _stateful(value, {})
        elif type(value) is dict:
            found = _stateful((), value)
        else:
            plain = value is None or isinstance(value, Tensor | bool | int | float | str | torch.dtype | torch.device)
            found = None if plain else type(value).__name__
        if found is not None:
            return found
    return None
