"""Draws the figures of `how_it_works.md`: `python docs/figures/make_figures.py`. The masks are those of the package."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from smd_hf.keyed_random import keyed_generator
from smd_hf.search.subspaces import DECOMPOSITIONS, ParameterSpace

FOLDER = Path(__file__).parent
SIDE, CHILDREN = 12, 4
GREY, BLUE, ORANGE, GREEN = "#5f5f5f", "#0072B2", "#D55E00", "#009E73"


def draw_decompositions() -> None:
    """One dense mutation of a 12 x 12 matrix, and what four children of each decomposition change of it."""
    noise = keyed_generator("figure", 0).standard_normal((SIDE, SIDE))
    space = ParameterSpace(
        names=tuple(f"block{i}" for i in range(4)),
        keys=tuple(f"block{i}" for i in range(4)),
        sizes=(SIDE * SIDE // 4,) * 4,
        blocks=(0, 1, 2, 3),
    )
    kinds = (("partition", None), ("random", 0.25), ("antirandom", None), ("blocks", None))
    figure = Figure(figsize=(7.2, 6.4), dpi=150, layout="constrained")
    panels = figure.subplots(len(kinds), CHILDREN + 1)
    for row, (kind, density) in enumerate(kinds):
        decomposition = DECOMPOSITIONS[kind](space, CHILDREN, density, seed=3)
        masks = [_mask(decomposition, child, space) for child in range(CHILDREN)]
        for column, values in enumerate([noise, *(np.where(mask, noise, np.nan) for mask in masks)]):
            axes = panels[row][column]
            axes.imshow(values, cmap="RdBu", vmin=-2.5, vmax=2.5)
            axes.set_xticks([]), axes.set_yticks([])
            axes.set_facecolor("#eeeeee")
            if row == 0:
                axes.set_title("one mutation" if column == 0 else f"child {column}", fontsize=10)
        panels[row][0].set_ylabel(kind, fontsize=11)
    figure.savefig(FOLDER / "decompositions.png", metadata={"Software": None})


def _mask(decomposition, child: int, space: ParameterSpace) -> np.ndarray:
    parts = []
    for number, size in enumerate(space.sizes):
        mask = np.zeros(size, dtype=bool)
        found = decomposition.indices(0, child, number)
        mask[slice(None) if found is None else found] = True
        parts.append(mask)
    return np.concatenate(parts).reshape(SIDE, SIDE)


def draw_generation() -> None:
    """The four steps of a generation as boxes."""
    figure = Figure(figsize=(8.4, 2.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    steps = (
        ("parent", "the weights now", GREY),
        ("children", "the parent + one\nsparse part of\nthe noise each", BLUE),
        ("scores", "forward passes\nover the\nfitness images", BLUE),
        ("candidates", "a step in the span\nof all children;\nthe best children", ORANGE),
        ("next parent", "the best on the\nselection images, or\nthe parent itself", GREEN),
    )
    for place, (title, text, color) in enumerate(steps):
        x = place * 2.0
        axes.add_patch(
            FancyBboxPatch((x - 0.75, -0.5), 1.5, 1.0, boxstyle="round,pad=0.05", facecolor=color, edgecolor="none")
        )
        axes.text(x, 0.3, title, ha="center", va="center", fontsize=9, color="white", weight="bold")
        axes.text(x, -0.14, text, ha="center", va="center", fontsize=7.4, color="white", linespacing=1.3)
        if place:
            axes.annotate("", (x - 0.8, 0), (x - 1.2, 0), arrowprops={"arrowstyle": "-|>", "color": "black"})
    arrow = {"arrowstyle": "-|>", "color": GREY, "connectionstyle": "arc3,rad=-0.08"}
    axes.annotate("", (0, -0.6), (8, -0.6), arrowprops=arrow)
    axes.text(4, -1.2, "next generation", ha="center", fontsize=9, color=GREY)
    axes.set_xlim(-0.9, 8.9), axes.set_ylim(-1.3, 0.65)
    axes.set_axis_off()
    figure.savefig(FOLDER / "generation.png", metadata={"Software": None})


if __name__ == "__main__":
    draw_decompositions()
    draw_generation()
