"""Compare what finds masks and weights of single layers, and write the tables of docs/reconstruction.md.

    python -m benchmarks.reconstruction_problems

The layers are 512 x 512 with student-t weights (5 degrees of freedom). Their 4096 inputs are Gaussian with a covariance
of eigenvalues i^-a in a random basis; each input is then scaled by exp(0.5 g). Errors are those of the outputs relative
to the outputs, both with the ridge of 1 % in the Gram matrix, as the methods minimise them; means over four seeds.
Takes four minutes on one thread.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from benchmarks.readme_sections import replace_section
from benchmarks.report import table
from transmask import nm_mask, transposable_mask
from transmask.torch import ALPS, LayerProblem, LeastSquares
from transmask.torch.reconstruction import alps, conjugate_gradients
from transmask.torch.reconstruction.layer_problem import penalties
from transmask.torch.reconstruction.scores import compute_scores

__all__ = ["make_problem"]

PAGE = Path(__file__).parents[1] / "docs" / "reconstruction.md"
SIDE, SAMPLES, SEEDS = 512, 4096, range(4)
CASES = ((0.5, "2:4"), (0.5, "8:16"), (1.5, "2:4"), (1.5, "16:32"))
PLAIN_CASES = ((0.5, "2:4"), (1.5, "2:4"))
WIDTHS, EXPONENTS = (64, 128, 256, 512, 1024), (0.5, 1.0, 1.5, 2.0)
RIDGE = 0.01


def make_problem(exponent: float, pattern: str, seed: int, *, side: int = SIDE, plain: bool = False) -> LayerProblem:
    """Return a layer; its mask is that of magnitudes."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(5, (side, side))
    basis = np.linalg.qr(rng.standard_normal((side, side)))[0]
    scale = np.exp(0.5 * rng.standard_normal(side))
    eigenvalues = np.arange(1.0, side + 1) ** -exponent
    inputs = rng.standard_normal((SAMPLES, side)) * np.sqrt(eigenvalues) @ basis.T * scale

    def find_mask(scores: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy((nm_mask if plain else transposable_mask)(scores.numpy(), pattern))

    gram = torch.from_numpy(inputs.T @ inputs / SAMPLES)[None]
    dense = torch.from_numpy(weight)[None]
    return LayerProblem(dense, find_mask(dense.abs()), gram, False, find_mask)


def with_scores(problem: LayerProblem, scores: str, *, squared: bool = False) -> LayerProblem:
    """Return the layer with the mask of other scores."""
    values = compute_scores(scores, problem.weight[0], problem.gram, squared=squared, name="layer")
    return replace(problem, mask=problem.find_mask(values.abs()[None]))


def error(problem: LayerProblem, weight: torch.Tensor) -> float:
    """Return the error of weights with the ridge in the Gram matrix."""
    ridge = torch.diag_embed(penalties(problem.gram, problem.gram.shape[1], RIDGE))
    return replace(problem, gram=problem.gram + ridge).error(weight)


METHODS: dict[str, Callable[[LayerProblem], torch.Tensor]] = {
    "magnitude + LS": lambda problem: LeastSquares(RIDGE).fit(problem, name="").weight,
    "wanda + LS": lambda problem: LeastSquares(RIDGE).fit(with_scores(problem, "wanda"), name="").weight,
    "wanda^2 + LS": lambda problem: (
        LeastSquares(RIDGE).fit(with_scores(problem, "wanda", squared=True), name="").weight
    ),
    "obs + LS": lambda problem: LeastSquares(RIDGE).fit(with_scores(problem, "obs"), name="").weight,
    "ALPS": lambda problem: ALPS(RIDGE).fit(problem, name="").weight,
}


def compare_methods() -> list[dict[str, object]]:
    """Return the mean errors of every method, for transposable masks and for plain ones."""
    rows: list[dict[str, object]] = []
    for plain in (False, True):
        for exponent, pattern in track(PLAIN_CASES if plain else CASES, "methods"):
            problems = [make_problem(exponent, pattern, seed, plain=plain) for seed in SEEDS]
            row: dict[str, object] = {"a": exponent, "pattern": pattern, "mask": "plain" if plain else "transposable"}
            for name, fit in METHODS.items():
                row[name] = f"{np.mean([error(problem, fit(problem)) for problem in problems]):.4f}"
            rows.append(row)
    return rows


@contextmanager
def in_float64() -> Iterator[None]:
    """Iterate in float64."""
    modules = alps, conjugate_gradients
    for module in modules:
        module._DTYPE = torch.float64
    try:
        yield
    finally:
        for module in modules:
            module._DTYPE = torch.float32


def best_ms(call: Callable[[], object], rounds: int) -> float:
    """Return the shortest of some times."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds)


def compare_solvers() -> list[dict[str, object]]:
    """Return times of factorisation and of conjugate gradients, and how much larger an objective the latter leave."""
    rows: list[dict[str, object]] = []
    gradients, exact = LeastSquares(RIDGE, exact_up_to=0), LeastSquares(RIDGE, exact_up_to=SIDE * 8)
    for side in track(WIDTHS, "least squares"):
        row: dict[str, object] = {"side": side}
        rounds, excess = 3 if side <= SIDE else 1, 0.0
        for exponent in EXPONENTS:
            problem = with_scores(make_problem(exponent, "2:4", 0, side=side), "wanda", squared=True)
            answers = [method.fit(problem, name="").weight for method in (gradients, exact)]
            if exponent == EXPONENTS[0]:
                row["factorised, ms"] = best_ms(lambda p=problem: exact.fit(p, name=""), rounds)
            row[f"CG, a = {exponent:g}, ms"] = best_ms(lambda p=problem: gradients.fit(p, name=""), rounds)
            with in_float64():
                row[f"float64, a = {exponent:g}"] = best_ms(lambda p=problem: gradients.fit(p, name=""), rounds)
            excess = max(excess, largest_excess(problem, *answers))
        rows.append(row | {"largest excess of a row": excess})
    return rows


def largest_excess(problem: LayerProblem, found: torch.Tensor, least: torch.Tensor) -> float:
    """Return by how much the objective of a row exceeds its minimum, relative to the minimum, at most over the rows."""
    ridge = torch.diag_embed(penalties(problem.gram, problem.gram.shape[1], RIDGE))
    objectives = []
    for weight in (found, least):
        residual, change = problem.weight - weight, weight - problem.masked()
        objectives.append((residual @ problem.gram * residual + change @ ridge * change).sum(dim=2))
    return float((objectives[0] / objectives[1] - 1).max())


def compare_precisions() -> str:
    """Say what float32 changes in ALPS."""
    errors, entries = [], []
    for exponent, pattern in CASES:
        problem = make_problem(exponent, pattern, 0)
        single = ALPS(RIDGE).fit(problem, name="")
        with in_float64():
            double = ALPS(RIDGE).fit(problem, name="")
        errors.append(abs(error(problem, single.weight) / error(problem, double.weight) - 1))
        entries.append(int((single.mask != double.mask).sum()))
    return (
        f"Iterating in float32 instead of float64 changes at most {max(entries)} of the {SIDE * SIDE} entries of an "
        f"ALPS mask, and its error by at most {max(errors):.1e} of itself."
    )


def main() -> None:
    """Measure, write and print."""
    torch.set_num_threads(1)
    described = f"{platform.machine()}, one thread, torch {torch.__version__}, transmask {version('transmask')}"
    parts = [
        f"Layers of {SIDE} x {SIDE}: student-t weights, inputs with a spectrum i^-a and sizes exp(0.5 g), {SAMPLES} "
        f"samples, a ridge of 1 %. Error of the outputs, mean over {len(SEEDS)} seeds:",
        table(compare_methods()),
        compare_precisions(),
        "Least squares on square layers at transposable 2:4, milliseconds, by factorisation and by conjugate gradients "
        "(CG) with iterations in float32 or in float64, and how much a row's objective exceeds its minimum, relative "
        f"to the minimum ({described}):",
        table(compare_solvers()),
    ]
    text = "\n\n".join(parts)
    section = replace_section(PAGE.read_text(encoding="utf-8"), "reconstruction", text)
    PAGE.write_text(section, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
