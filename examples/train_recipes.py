"""Train a small transformer by the recipes of the literature, and write the table of docs/recipes.md.

    python examples/train_recipes.py

The task, the model and the batches are those of train_charlm.py, at 2:4. Every recipe takes the same number of steps;
the one that starts from a trained model has those of the dense model before. Takes ten minutes on two cores.
"""

import statistics
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from masked_training import SEEDS, seeds_in_words, spread, versions, write_section
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional
from train_charlm import BATCH, CONTEXT, STEPS, data, make_task

from transmask.torch import MaskController, prune_gradients, sparsify

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
LAYERS, FEED_FORWARD = "blocks.*", ["blocks.*.wide", "blocks.*.narrow"]

Loss = Callable[[nn.Module, Tensor], Tensor]


@dataclass
class Recipe:
    """What a recipe does to a model: its masks, what happens before some steps, the loss of (B, T + 1) windows."""

    controller: MaskController | None = None
    before_step: dict[int, Callable[[], object]] = field(default_factory=dict)
    loss: Loss | None = None


def cross_entropy(model: nn.Module, windows: Tensor) -> Tensor:
    """Return the loss in nats a character."""
    return functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def dense(model: nn.Module) -> Recipe:
    """Train without masks."""
    return Recipe()


def sr_ste(model: nn.Module) -> Recipe:
    """Zhou et al. 2021: plain masks, new ones at every step, decay."""
    return Recipe(sparsify(model, "2:4", layers=LAYERS, transposable=False, refresh_every=1, decay=2e-4))


def hubara(model: nn.Module) -> Recipe:
    """Hubara et al. 2021: transposable masks, new ones every 40 steps, no decay."""
    return Recipe(sparsify(model, "2:4", layers=LAYERS, estimator="ste", refresh_every=40))


def decaying_pattern(model: nn.Module) -> Recipe:
    """Kao et al. 2022: dense, then ever fewer of 4."""
    controller = sparsify(model, "3:4", layers=LAYERS, refresh_every=40)
    return Recipe(controller, {STEPS // 2: lambda: controller.change_pattern("2:4")})


def fst(model: nn.Module) -> Recipe:
    """Hu et al. 2024: feed-forward layers alone, sparse gradients, dense for the last sixth."""
    controller = sparsify(model, "2:4", layers=FEED_FORWARD, refresh_every=40, decay=2e-4)
    drawn = [prune_gradients(module) for name, module in model.named_modules() if name.endswith((".wide", ".narrow"))]

    def finish() -> None:
        controller.dense()
        for gradients in drawn:
            gradients.remove()

    return Recipe(controller, {5 * STEPS // 6: finish})


def ast(model: nn.Module) -> Recipe:
    """Huang et al. 2025: from a trained model, which teaches; the decay is ramped up."""
    teacher = deepcopy(model).eval()
    ramp = STEPS // 4
    controller = sparsify(
        model, "2:4", layers=LAYERS, refresh_every=10, decay=lambda steps: 2e-3 * min(1.0, steps / ramp)
    )

    def loss(student: nn.Module, windows: Tensor) -> Tensor:
        with torch.no_grad():
            taught = teacher(windows[:, :-1]).log_softmax(-1)
        learnt = student(windows[:, :-1]).log_softmax(-1)
        apart = functional.kl_div(learnt.flatten(0, 1), taught.flatten(0, 1), reduction="batchmean", log_target=True)
        return 2 / 3 * apart + 1 / 3 * functional.nll_loss(learnt.flatten(0, 1), windows[:, 1:].flatten())

    return Recipe(controller, loss=loss)


FROM_SCRATCH = {
    "dense": dense,
    "SR-STE (Zhou et al. 2021), plain": sr_ste,
    "transposable (Hubara et al. 2021)": hubara,
    "3:4, then 2:4 (after Kao et al. 2022), transposable": decaying_pattern,
    "FST (Hu et al. 2024), feed-forward layers, dense at the end": fst,
}
FROM_TRAINED = {
    "dense, twice as long": dense,
    "AST (Huang et al. 2025), from the dense model, transposable": ast,
}


def train(model: nn.Module, make: Callable[[nn.Module], Recipe], seed: int, advance: Callable[[], object]) -> None:
    """Follow a recipe, with a learning rate that falls to zero along a cosine."""
    task, windows = make_task(seed), data()[0].unfold(0, CONTEXT + 1, 1)
    starts = torch.randint(len(windows), (STEPS, BATCH), generator=torch.Generator().manual_seed(seed))
    recipe = make(model)
    optimizer = task.optimizer(model.parameters())
    if recipe.controller is not None:
        recipe.controller.attach(optimizer)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    model.train()
    for step in range(STEPS):
        recipe.before_step.get(step, lambda: None)()
        optimizer.zero_grad()
        (recipe.loss or cross_entropy)(model, windows[starts[step]]).backward()
        optimizer.step()
        schedule.step()
        advance()
    if any(hasattr(module, "parametrizations") for module in model.modules()):
        recipe.controller.remove()


def density(model: nn.Module) -> float:
    """Return the share of the weights in the matrices of the blocks that is not zero."""
    weights = [weight for name, weight in model.named_parameters() if name.startswith("blocks") and weight.ndim == 2]
    return sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)


def run_seed(seed: int, advance: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """Return the held-out loss and the density of every recipe."""
    task, found, trained = make_task(seed), {}, None
    for name, make in (FROM_SCRATCH | FROM_TRAINED).items():
        model = deepcopy(trained) if name in FROM_TRAINED else task.build()
        train(model, make, seed, advance)
        found[name] = task.score(model), density(model)
        trained = model if trained is None else trained  # the first is dense
    return found


def main() -> None:
    """Train, write and print."""
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    runs = []
    with Progress() as progress:
        bar = progress.add_task("recipes", total=len(SEEDS) * STEPS * len(FROM_SCRATCH | FROM_TRAINED))
        for seed in SEEDS:
            runs.append(run_seed(seed, lambda: progress.advance(bar)))
    lines = ["| recipe | held-out loss, nats a character | weights that are not zero |", "|---|---|---|"]
    for name in FROM_SCRATCH | FROM_TRAINED:
        losses = [run[name][0] for run in runs]
        loss = " ± ".join(f"{value:.3f}" for value in [statistics.mean(losses), *spread(losses)])
        lines.append(f"| {name} | {loss} | {statistics.mean(run[name][1] for run in runs):.1%} |")
    notes = f"2:4 on matrices of 2 transformer blocks, {STEPS} steps of {BATCH} windows of {CONTEXT} characters, "
    body = "\n".join([f"{notes}{seeds_in_words()}.", "", *lines, "", f"{versions()}."])
    write_section("recipes", body, PAGE)
    print(body)


if __name__ == "__main__":
    main()
