"""Fit every layer of a model to the inputs that reach it, in the order in which they run, in one pass of the model.

`waiting_calls` hands out each layer with the calls that wait for it. Their Gram matrix is complete unless a batch calls
the layer again or comes late to it. Then the pass is given up: that layer and those fitted after it become what they
were, the layer is fitted to all its inputs, which takes a pass of its own, and a new pass goes on from there. A model
that calls every layer once a batch runs once on every batch; each layer that it calls more often adds one pass and the
beginning of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from time import perf_counter
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from ...errors import InvalidArgumentError
from .block_matching import BlockMatch
from .calibration import Calibration
from .gram import Gram, collect_gram, sees_as
from .layer_jobs import LayerJob, Saved
from .lockstep import BlockCall, Call, Stop, waiting_calls
from .matching import Matching
from .report import LayerFit, Seconds

__all__ = ["FitFunction", "Refit", "Treatment"]


class Refit(NamedTuple):
    """What a layer becomes.

    Attributes
    ----------
    report : LayerFit
    weight : torch.Tensor
        As `LayerJob.weight`.
    bias : torch.Tensor or None
        None if the layer has no bias or keeps the one it has.
    """

    report: LayerFit
    weight: Tensor
    bias: Tensor | None


FitFunction: TypeAlias = Callable[[LayerJob, Gram], Refit]
"""Prunes and refits a layer, without changing the model."""


class Treatment:
    """Fit layers in the order in which they run.

    Parameters
    ----------
    model : torch.nn.Module
    jobs : sequence of LayerJob
        In the order of the model.
    calibration : Calibration
    fit : callable
    saved : Saved
        The tensors of the jobs as they are now.
    sequential : bool
        Whether a layer gets its new weights as soon as it is fitted, or when all are.
    offload : bool
        As in `waiting_calls`.
    matching : Matching or None
        Blocks to train when their layers are fitted, with what the dense ones answer.
    advance : callable
        Gets the number of fitted layers, and the report of the last one.

    Attributes
    ----------
    reports : dict of LayerJob to LayerFit
        In the order of treatment.
    matches : dict of str to BlockMatch
        By the name of the block, likewise.
    seconds : Seconds
    """

    def __init__(
        self,
        model: nn.Module,
        jobs: Sequence[LayerJob],
        calibration: Calibration,
        fit: FitFunction,
        saved: Saved,
        *,
        sequential: bool,
        offload: bool,
        matching: Matching | None,
        advance: Callable[[int, LayerFit], object],
    ) -> None:
        self._model, self._jobs, self._calibration = model, jobs, calibration
        self._fit, self._saved, self._advance = fit, saved, advance
        self._sequential, self._offload, self._matching = sequential, offload, matching
        self._collected: set[LayerJob] = set()
        self._repeated: set[nn.Module] = {layer for job in jobs if job.others for layer in job.layers}
        self._reached = False
        self._refits: dict[LayerJob, Refit] = {}  # which wait for the end, unless sequential
        self.reports: dict[LayerJob, LayerFit] = {}
        self.matches: dict[str, BlockMatch] = {}
        self._matched_after: dict[str, int] = {}  # how many layers had been fitted
        self._blocks = {} if matching is None else matching.blocks
        self.seconds = Seconds()

    def run(self) -> None:
        """Fit every layer, and leave the new weights in the model.

        Raises
        ------
        InvalidTypeError, InvalidArgumentError
            As `Calibration.run`, and whatever `fit` raises; also if no layer is called with any rows.
        """
        start = perf_counter()
        while (job := self._pass()) is not None:
            self._undo_from(job)
            watched = [layer for other in self._jobs for layer in other.layers]
            gram, repeated = collect_gram(self._model, job.layers, self._calibration, watched=watched)
            self.seconds.gram += gram.seconds
            self._repeated |= repeated | {job.layer}
            self._collected.add(job)
            self._treat(job, gram)
        if not self._reached:
            raise InvalidArgumentError(
                f"`calibration` must reach at least one layer, got no input for {self._jobs[0].name} or any other. "
                "Check that `forward` calls the model and that some rows count."
            )
        for job in self._jobs:
            if job not in self.reports:
                self._treat(job, Gram(job.layer))
        for job, refit in self._refits.items():
            job.put(refit.weight, refit.bias)
        self.seconds.forward = perf_counter() - start - self.seconds.gram - self.seconds.solving - self.seconds.matching

    def _pass(self) -> LayerJob | None:
        """Run the model once on every batch; return a job whose layer needs a pass of its own, or None at the end."""
        places = self._places()
        seen: set[LayerJob] = set()
        last: tuple[LayerJob, list[int]] | None = None
        gram = None
        with closing(
            waiting_calls(self._model, [stop for _, stop in places], self._calibration, offload=self._offload)
        ) as waiting:
            for index, waiting_here in waiting:
                job, _ = places[index]
                if isinstance(job, str):
                    self._match(job, cast(list[BlockCall], waiting_here))
                    continue
                calls = cast(list[Call], waiting_here)
                if job in seen or job.layer in self._repeated:
                    return job
                seen.add(job)
                if job in self.reports:  # by an earlier pass, to the same calls
                    last = None
                    continue
                batches = [call.batch for call in calls]
                shared = last is not None and last[1] == batches and sees_as(job.layer, last[0].layer)
                if gram is None or not (shared and all(call.same_input for call in calls)):
                    gram = self._gram_of(job, calls)
                del calls[:]  # the batches go on without it
                last = job, batches
                self._treat(job, gram)
        return None

    def _places(self) -> list[tuple[LayerJob | str, Stop]]:
        """List the jobs to come, and the name of each block that has not been trained behind the last of its layers."""
        places: list[tuple[LayerJob | str, Stop]] = []
        for job in self._jobs:
            if job not in self._collected:
                places += [(job, Stop(layer)) for layer in job.layers]
            for name, block in self._blocks.items():
                if name not in self.matches and self._jobs_in(name)[-1] is job:
                    places.append((name, Stop(block, behind=True)))
        return places

    def _jobs_in(self, block: str) -> list[LayerJob]:
        return [job for job in self._jobs if job.name.startswith(f"{block}.")]

    def _gram_of(self, job: LayerJob, calls: list[Call]) -> Gram:
        """Add up the inputs of the calls that wait for a layer."""
        gram = Gram(job.layer)
        for call in calls:
            with call.filled():
                gram.add(call.value, call.row_weights)
        self.seconds.gram += gram.seconds
        return gram

    def _match(self, name: str, calls: list[BlockCall]) -> None:
        """Train a block whose layers are fitted; the batches that wait behind it run it again."""
        jobs = [job for job in self._jobs_in(name) if job in self.reports]
        if self._matching is None or name in self.matches or not jobs or not self._matching.knows(name, calls):
            return
        start = perf_counter()
        masks: dict[str, Tensor] = {}
        for job in jobs:
            parameter = job.parameter.removeprefix(f"{name}.")
            if parameter not in masks:
                masks[parameter] = torch.ones_like(self._blocks[name].get_parameter(parameter), dtype=torch.bool)
            mask = masks[parameter]
            (mask if job.index is None else mask[job.index]).copy_(job.layer.weight.detach() != 0)
        self.matches[name] = self._matching.match(name, calls, masks)
        self._matched_after[name] = len(self.reports)
        for call in calls:
            call.again = True
        self.seconds.matching += perf_counter() - start

    def _treat(self, job: LayerJob, gram: Gram) -> None:
        """Fit one layer; a sequential run goes on with its new weights."""
        start = perf_counter()
        refit = self._fit(job, gram)
        self.seconds.solving += perf_counter() - start
        self._reached |= gram.rows > 0
        self.reports[job] = refit.report
        if self._sequential:
            job.put(refit.weight, refit.bias)
        else:
            self._refits[job] = refit
        self._advance(len(self.reports), refit.report)

    def _undo_from(self, job: LayerJob) -> None:
        """Forget a layer, and the layers and blocks that came after it, and make them what they were."""
        order = list(self.reports)
        start = order.index(job) if job in self.reports else len(order)
        while undone := [name for name in self.matches if self._matched_after[name] > start]:
            for name in undone:  # which changed its layers: all of them are fitted again
                start = min(start, *(order.index(job) for job in self._jobs_in(name) if job in self.reports))
                self._saved.restore(self._blocks[name].parameters())
                del self.matches[name]
        for later in order[start:]:
            self._saved.restore(later.tensors())
            self._collected.discard(later)
            del self.reports[later]
