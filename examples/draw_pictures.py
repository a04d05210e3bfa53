"""Draw the pictures of docs/mask-diversity.md.

    python examples/draw_pictures.py docs/img

Needs ``pip install "transmask[plot]"``. Everything is computed here, from the small network that ships with transmask.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib import pyplot

import transmask as tm
from transmask import plotting
from transmask.data.digits import load_network

SIDES = (8, 8)


def draw_diversity(figure):
    """Draw the mask diversity of an 8 x 8 block at 50 %, exact and by the published formula."""
    structures = [tm.Unstructured(0.5), tm.NM(2, 4), tm.NM(4, 8), tm.Transposable(2, 4), tm.Transposable(4, 8)]
    counts = [tm.mask_diversity(s, SIDES, method=method) for method in ("exact", "hubara2021") for s in structures]
    plotting.plot_diversity(counts, figure.subplots())


def draw_structures(figure):
    """Draw what structures keep of a trained layer, over how free they are."""
    weights = load_network()["fc1.weight"][:96]
    structures = [
        tm.Unstructured(0.5),
        *(tm.NM(n, 2 * n) for n in (2, 4, 8)),
        *(tm.Transposable(n, 2 * n) for n in (2, 4, 8)),
        tm.Block((4, 4), 0.5),
        tm.Channel(0.5),
    ]
    plotting.plot_diversity_against_kept(tm.compare_structures(weights, structures), figure.subplots())


def draw_mask(figure):
    """Draw the same weights under a plain and under a transposable mask."""
    weights = load_network()["fc1.weight"][:8, :8].astype(np.float32)
    masks = {"plain 2:4": tm.nm_mask(weights, "2:4"), "transposable 2:4": tm.transposable_mask(weights, "2:4")}
    for ax, (title, mask) in zip(figure.subplots(1, 2, sharey=True), masks.items(), strict=True):
        plotting.plot_mask(mask, 4, ax, weights=weights)
        ax.set_title(title)


def main():
    """Draw every picture into the folder that is named, docs/img if none is."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/img")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"mask-diversity": draw_diversity, "structures": draw_structures, "masks": draw_mask}
    for name, draw in pictures.items():
        figure = pyplot.figure(figsize=(6.4, 3.6 if name != "masks" else 3.0), layout="constrained")
        draw(figure)
        figure.savefig(folder / f"{name}.png", dpi=200)
        print(f"wrote {folder / name}.png")


if __name__ == "__main__":
    main()
