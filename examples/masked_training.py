"""What train_digits.py and train_charlm.py share: the ways of training, the loop, and the table of results.

Every way starts from the same weights and sees the same batches. The masked layers, the density, the refresh interval
and the decay are the same too; only the structure of the mask and who finds it differ. Dynamic thresholds learn their
density: each task has the alpha that brings it near that of the others, and the table says what was kept.

``python examples/train_digits.py dynamic`` measures the ways that start with "dynamic" again and leaves the other rows
as they are.
"""

import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.utils import parametrize

import transmask as tm
from transmask.torch import convert_unstructured, reconstruct, sparsify, sparsify_by_threshold

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
SEEDS = (0, 1, 2)
REFRESH_EVERY = 40
DECAY = 2e-4
CONFIDENCE = 0.5
"""With this one, 75 % of zeros support 1:4 and 2:8."""

MASKED = {
    "plain N:M, SR-STE": {"transposable": False},
    "transposable, greedy, SR-STE": {"solver": "greedy"},
    "transposable, exact, SR-STE": {},
    "transposable, exact, first mask kept": {"estimator": "fixed"},
}
"""Ways that train with masks, as options of `sparsify`."""

DYNAMIC = ("dynamic thresholds", "dynamic thresholds, then plain N:M", "dynamic thresholds, then transposable N:M")

WAYS = (
    "dense",
    "unstructured, SR-STE",
    *MASKED,
    *DYNAMIC,
    "dense, then transposable mask in one shot",
    "dense, then one shot and reconstruct",
)


@dataclass(frozen=True)
class Task:
    """What there is to learn."""

    name: str
    pattern: tm.Pattern
    layers: str | list[str]
    build: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    steps: int
    loss: Callable[[nn.Module, int], Tensor]
    """The training loss on the batch of a step."""
    score: Callable[[nn.Module], float]
    """The result on held-out data."""
    calibration: Callable[[], list[Tensor]]
    alpha: float
    """The regulariser of dynamic thresholds."""


@dataclass(frozen=True)
class Outcome:
    """What one run gave; times are in seconds."""

    score: float
    flips: float | None
    last_flip_rate: float | None
    mask_s: float
    run_s: float
    density: float | None = None
    """What was kept of the masked weights, where training decides that."""


class UnstructuredMask(nn.Module):
    """Keep the largest magnitudes of a weight wherever they are: the same density and gradient, no structure."""

    def __init__(self, weight: Tensor, density: float) -> None:
        super().__init__()
        self.kept = round(density * weight.numel())
        self.register_buffer("mask", self.find(weight))

    def find(self, weight: Tensor) -> Tensor:
        """Return the mask of the largest magnitudes."""
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        mask[weight.detach().abs().flatten().topk(self.kept).indices] = True
        return mask.view(weight.shape)

    def forward(self, weight: Tensor) -> Tensor:
        """Return S * W with a straight-through gradient."""
        return weight - weight.detach().masked_fill(self.mask, 0)


class UnstructuredController:
    """Treat the weights of a model as `sparsify` would, under unstructured masks."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.weights = []
        self.steps, self.flips, self.mask_s = 0, [], 0.0
        for name in sparsify(deepcopy(model), task.pattern, layers=task.layers).masks():
            path, _, attribute = name.rpartition(".")
            module = model.get_submodule(path)
            structure = UnstructuredMask(getattr(module, attribute), task.pattern.density)
            parametrize.register_parametrization(module, attribute, structure)
            self.weights.append((module.parametrizations[attribute].original, structure))

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the decay before a step and refresh the masks after it."""
        optimizer.register_step_pre_hook(self._add_decay)
        optimizer.register_step_post_hook(self._refresh)

    def _add_decay(self, *_: object) -> None:
        for weight, structure in self.weights:
            weight.grad += DECAY * weight.detach().masked_fill(structure.mask, 0)

    def _refresh(self, *_: object) -> None:
        self.steps += 1
        if self.steps % REFRESH_EVERY:
            return
        began, flipped = time.perf_counter(), 0
        for weight, structure in self.weights:
            mask = structure.find(weight)
            flipped += int((mask ^ structure.mask).sum())
            structure.mask.copy_(mask)
        self.flips.append(flipped / sum(weight.numel() for weight, _ in self.weights))
        self.mask_s += time.perf_counter() - began


def train(
    model: nn.Module,
    task: Task,
    advance: Callable[[], None],
    attach: Callable[[torch.optim.Optimizer], object] = lambda optimizer: None,
) -> float:
    """Run the steps of the task, with a learning rate that falls to zero along a cosine; return the seconds."""
    began = time.perf_counter()
    optimizer = task.optimizer(model.parameters())
    attach(optimizer)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.steps)
    model.train()
    for step in range(task.steps):
        optimizer.zero_grad()
        task.loss(model, step).backward()
        optimizer.step()
        schedule.step()
        advance()
    return time.perf_counter() - began


def run_masked(task: Task, options: dict[str, object], advance: Callable[[], None]) -> Outcome:
    """Train with masks from the start."""
    model = task.build()
    began = time.perf_counter()
    controller = sparsify(model, task.pattern, layers=task.layers, refresh_every=REFRESH_EVERY, decay=DECAY, **options)
    mask_s = time.perf_counter() - began
    run_s = mask_s + train(model, task, advance, controller.attach)
    mask_s += sum(record.seconds for record in controller.history)
    size = sum(mask.numel() for mask in controller.masks().values())
    last_step = max((record.step for record in controller.history), default=0)
    last = sum(record.flipped for record in controller.history if record.step == last_step)
    flips = sum(record.flipped for record in controller.history)
    controller.remove()
    return Outcome(task.score(model), flips / size, last / size, mask_s, run_s)


def run_unstructured(task: Task, advance: Callable[[], None]) -> Outcome:
    """Train with unstructured masks from the start."""
    model = task.build()
    controller = UnstructuredController(model, task)
    run_s = train(model, task, advance, controller.attach)
    return Outcome(task.score(model), sum(controller.flips), controller.flips[-1], controller.mask_s, run_s)


def density_of(model: nn.Module, names: Iterable[str]) -> float:
    """Return the share of the named weights that is not zero."""
    weights = [model.get_parameter(name) for name in names]
    return sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)


def run_dynamic(task: Task, advance: Callable[[], None]) -> dict[str, Outcome]:
    """Train with dynamic thresholds from the start, and convert what they learnt to N:M."""
    model = task.build()
    controller = sparsify_by_threshold(model, task.alpha, layers=task.layers, record_every=REFRESH_EVERY)
    run_s = train(model, task, advance, controller.attach)
    names = list(controller.masks())
    size = sum(mask.numel() for mask in controller.masks().values())
    flips = sum(record.flipped for record in controller.history)
    last_step = max(record.step for record in controller.history)
    last = sum(record.flipped for record in controller.history if record.step == last_step)
    controller.remove()
    score, density = task.score(model), density_of(model, names)
    found = {DYNAMIC[0]: Outcome(score, flips / size, last / size, 0.0, run_s, density)}
    for way, transposable in zip(DYNAMIC[1:], (False, True), strict=True):
        converted, m = deepcopy(model), task.pattern.m
        options = {"confidence": CONFIDENCE, "transposable": transposable, "progress": False}
        convert_unstructured(converted, task.calibration(), m, **options)
        found[way] = Outcome(task.score(converted), None, None, 0.0, run_s, density_of(converted, names))
    return found


def run_seed(make_task: Callable[[int], Task], seed: int, advance: Callable[[], None]) -> dict[str, Outcome]:
    """Run every way with one seed, or the dynamic ones alone."""
    task = make_task(seed)
    if only_dynamic():
        return run_dynamic(task, advance)
    dense = task.build()
    run_s = train(dense, task, advance)
    found = {
        "dense": Outcome(task.score(dense), None, None, 0.0, run_s),
        "unstructured, SR-STE": run_unstructured(task, advance),
    }
    for way, options in MASKED.items():
        found[way] = run_masked(task, options, advance)
    found |= run_dynamic(task, advance)
    pruned, refitted = deepcopy(dense), deepcopy(dense)
    began = time.perf_counter()
    sparsify(pruned, task.pattern, layers=task.layers).remove()
    mask_s = time.perf_counter() - began
    found[WAYS[-2]] = Outcome(task.score(pruned), None, None, mask_s, run_s + mask_s)
    began = time.perf_counter()
    reconstruct(refitted, task.calibration(), task.pattern, layers=task.layers, progress=False)
    found[WAYS[-1]] = Outcome(task.score(refitted), None, None, mask_s, run_s + time.perf_counter() - began)
    return found


def spread(scores: list[float]) -> list[float]:
    """Return the sample standard deviation; nothing for a single score, which has none."""
    return [statistics.stdev(scores)] if len(scores) > 1 else []


def seeds_in_words() -> str:
    """Say over how many seeds the table is taken, and what its first column holds."""
    if len(SEEDS) == 1:
        return "one seed"
    return f"{len(SEEDS)} seeds, mean ± standard deviation"


def table(runs: list[dict[str, Outcome]], score: str, form: Callable[[float], str]) -> str:
    """Return the mean over the seeds, and the sample standard deviation if there are several, a row for every way."""
    lines = [
        f"| way of training | {score} | flips per weight | flipped at the last refresh | finding masks | of the run |",
        "|---|---|---|---|---|---|",
    ]
    for way in runs[0]:
        outcomes = [run[way] for run in runs]
        scores = [outcome.score for outcome in outcomes]
        cells = [" ± ".join(form(value) for value in [statistics.mean(scores), *spread(scores)])]
        for key, spec in (("flips", ".2f"), ("last_flip_rate", ".2%")):
            values = [getattr(outcome, key) for outcome in outcomes]
            cells.append("" if None in values else format(statistics.mean(values), spec))
        mask_s = statistics.mean(outcome.mask_s for outcome in outcomes)
        share = mask_s / statistics.mean(outcome.run_s for outcome in outcomes)
        cells += [f"{1000 * mask_s:.0f} ms", f"{share:.1%}"] if mask_s else ["", ""]
        kept = [outcome.density for outcome in outcomes if outcome.density is not None]
        label = f"{way} ({statistics.mean(kept):.1%} kept)" if kept else way
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def versions() -> str:
    """Say what ran."""
    return f"Python {platform.python_version()}, torch {torch.__version__}, transmask {version('transmask')}"


def only_dynamic() -> bool:
    """Tell whether the command line asks for the dynamic ways alone."""
    return sys.argv[1:] == ["dynamic"]


def read_section(name: str, page: Path = PAGE) -> str:
    """Return what stands between the markers of a section of a page."""
    begin, end = f"<!-- begin: {name} -->\n", f"\n<!-- end: {name} -->"
    found = re.findall(f"{re.escape(begin)}(.*?){re.escape(end)}", page.read_text(encoding="utf-8"), re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"{page} must hold the section {name!r} once")
    return found[0]


def write_section(name: str, body: str, page: Path = PAGE) -> None:
    """Put `body` between the markers of a section of a page."""
    before, text = read_section(name, page), page.read_text(encoding="utf-8")
    begin = f"<!-- begin: {name} -->\n"
    page.write_text(text.replace(f"{begin}{before}", f"{begin}{body}"), encoding="utf-8")


def with_rows_replaced(name: str, rows: str, notes: str) -> str:
    """Return the section with its dynamic rows replaced by those of the table `rows`.

    Raises
    ------
    ValueError
        If the rows that stay were made by other versions.
    """
    before = read_section(name)
    if not before.endswith(f"{versions()}."):
        raise ValueError(f"the rows of {name!r} that stay must be of {versions()}. Run without 'dynamic'.")
    kept = [line for line in before.splitlines() if line.startswith("|") and not line.startswith("| dynamic")]
    new = [line for line in rows.splitlines() if line.startswith("| dynamic")]
    place = next(index for index, line in enumerate(kept) if line.startswith("| dense, then"))
    return "\n".join([notes, "", *kept[:place], *new, *kept[place:], "", f"{versions()}."])


def experiment(make_task: Callable[[int], Task], score: str, form: Callable[[float], str], notes: str) -> None:
    """Run every way with every seed, and write and print the table."""
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    task = make_task(SEEDS[0])
    tm.transposable_mask(torch.ones(task.pattern.m, task.pattern.m), task.pattern)  # compile before the clock runs
    tm.transposable_mask(torch.ones(task.pattern.m, task.pattern.m), task.pattern, solver="greedy")
    runs = []
    with Progress() as progress:
        total = len(SEEDS) * task.steps * (1 if only_dynamic() else 3 + len(MASKED))
        bar = progress.add_task(task.name, total=total)
        for seed in SEEDS:
            runs.append(run_seed(make_task, seed, lambda: progress.advance(bar)))
    notes += f" Dynamic thresholds: one a row, alpha {task.alpha:g}; converted with confidence {CONFIDENCE}."
    rows = table(runs, score, form)
    body = with_rows_replaced(task.name, rows, notes) if only_dynamic() else f"{notes}\n\n{rows}\n\n{versions()}."
    write_section(task.name, body)
    print(body)
