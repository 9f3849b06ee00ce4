"""
Accuracy of children against sigma, for several densities: how far may a child go before it loses, and how sure is that?

Claims of the paper: (a) at equal sigma children lose less accuracy, with less variance, as density falls; (b) the window of
usable sigma widens with sparsity. The control compares children at equal norm: `match_norm` with sigma s is the same child
as a plain one with sigma s / sqrt(density), so one set of measurements serves both, read along two axes.

    python examples/studies/window.py --model MODEL --data FOLDER_OR_PARQUET
"""

import argparse
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    COLORS,
    DIGITS,
    Measurements,
    data_key,
    environment,
    file_name,
    image_batches,
    load_data,
    make_parser,
    markdown_table,
    pack,
    panels,
    progress,
    public_name,
    run_plainly,
    series,
    settle,
    unpack,
    variants,
    with_interval,
    write_results,
)
from matplotlib.axes import Axes
from window_analysis import FLIPPED, LOST, Curve, analyse

from smd_hf.errors import SMDError
from smd_hf.models.checkpoints import weights_hash
from smd_hf.models.load import load_image_processor, load_model
from smd_hf.reports.plots import save_figure
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.search.fitness_scorer import PARENT, check_parent
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition

QUICK = {"densities": [1.0, 1 / 4], "norms": [-5.0, -1.0], "step": 1.0, "children": 3, "images": 24}


def parser() -> argparse.ArgumentParser:
    made = make_parser(__doc__.split("\n\n")[0])
    made.add_argument("--model", required=True, help="A model id on the Hub, or the folder of a checkpoint.")
    made.add_argument(
        "--trust_remote_code", action="store_true", help="Run the Python files of the model's repository."
    )
    made.add_argument(
        "--data", default=DIGITS, help="digits, a folder or data set that `datasets` reads, or a Parquet file."
    )
    made.add_argument(
        "--densities", type=float, nargs="+", default=[1.0, 1 / 4, 1 / 16, 1 / 64], help="Powers of 1/2."
    )
    made.add_argument(
        "--norms", type=float, nargs=2, default=[-8.0, -1.0], help="First and last log2 of sigma x sqrt(density)."
    )
    made.add_argument("--step", type=float, default=0.5, help="Octaves between sigmas: 1/2, or a multiple of it.")
    made.add_argument("--children", type=int, default=16, help="Children of each density and sigma.")
    made.add_argument(
        "--images", type=int, default=500, help="Images of the test split, drawn evenly over the classes."
    )
    made.add_argument("--batch_size", type=int, default=100, help="Images a batch.")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser()
    args = made.parse_args(argv)
    settle(args, QUICK, made)
    halvings = sorted(halvings_of(density) for density in set(args.densities))
    curves, parent, settings = measure(args, halvings)
    document = {
        "study": "window",
        "settings": settings,
        "environment": environment(args),
        "usable": {"accuracy_lost_at_most": LOST, "predictions_flipped_at_least": FLIPPED},
        "parent_accuracy": float(parent.mean()),
        **analyse(curves, parent, args.chance, args.seed),
    }
    name = f"window_{file_name(args.model)}"
    write_results(args.output_dir, name, document, render(document))
    draw(document, args.output_dir / f"{name}.png")
    print(render(document))
    return document


def halvings_of(density: float) -> int:
    """How often 1 is halved to give the density."""
    halvings = round(-math.log2(density)) if 0 < density <= 1 else -1
    if halvings < 0 or density != 2.0**-halvings:
        raise SMDError(
            f"The density {density} is not 1, 1/2, 1/4 or another power of 1/2. Give such, so that children of all densities "
            "meet at the same sigmas and at the same norms."
        )
    return halvings


# ---- Measuring ------------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace, halvings: Sequence[int]) -> tuple[list[Curve], np.ndarray, dict[str, Any]]:
    """The curve of each density, which images the parent has right, and what both depend on."""
    model = load_model(args.model, trust_remote_code=args.trust_remote_code, dtype="float32").to(args.device)
    processor = load_image_processor(args.model, model=model, trust_remote_code=args.trust_remote_code)
    _, images = load_data(args.data, max_test=args.images, seed=args.seed)
    batches = image_batches(model, processor, images, batch_size=args.batch_size)
    evaluator = Evaluator(model, torch.device(args.device))
    args.chance = 1 / model.config.num_labels
    settings = {
        "model": public_name(args.model),
        "weights": weights_hash(model)[:16],
        "data": public_name(args.data),
        "data_key": data_key(images),
        "images": len(images),
        "children": args.children,
        "seed": args.seed,
    }
    # In half octaves, as sqrt(density) is: so children of all densities meet at the same sigmas and at the same norms.
    norms = np.arange(round(2 * args.norms[0]), round(2 * args.norms[1]) + 1, max(1, round(2 * args.step)))
    store = Measurements(args.output_dir / f"window_{file_name(args.model)}.jsonl")
    n = len(images)

    @cache
    def parent_predictions() -> np.ndarray:
        [score] = evaluator.score([PARENT], batches, keep_logits=True)
        check_parent(score)
        return score.logits.argmax(-1)

    def cell(mutation: Mutation, sigma: float) -> dict[str, list[str]]:
        children = mutation.children(0, sigma)
        scores = evaluator.score(variants(mutation, children), batches, keep_logits=True)
        return {
            "correct": [pack(score.correct) for score in scores],
            "flipped": [pack(score.logits.argmax(-1) != parent_predictions()) for score in scores],
        }

    parent = store.get(settings | {"child": None}, lambda: {"correct": pack(parent_predictions() == batches.labels)})
    curves = []
    with progress(len(halvings) * len(norms), "sigma") as bar:
        for halving in halvings:
            space = parameter_space(model)
            kind, density = ("dense", None) if halving == 0 else ("random", 2.0**-halving)
            mutation = Mutation(model, make_decomposition(kind, space, args.children, density, args.seed), args.seed)
            sigmas = 2.0 ** ((norms + halving) / 2)
            cells = []
            for sigma in sigmas.tolist():
                key = settings | {"density": 2.0**-halving, "sigma": sigma}
                cells.append(store.get(key, lambda mutation=mutation, sigma=sigma: cell(mutation, sigma)))
                bar.update()
            correct, flipped = (
                np.array([[unpack(child, n) for child in each[what]] for each in cells])
                for what in ("correct", "flipped")
            )
            curves.append(Curve(halving, sigmas, correct, flipped))
    return curves, unpack(parent["correct"], n), settings


# ---- Table and figure -----------------------------------------------------------------------------------------------


def render(document: dict[str, Any]) -> str:
    """The results in Markdown."""
    settings, usable = document["settings"], document["usable"]
    parts = [
        f"Parent: {settings['model']}, {100 * document['parent_accuracy']:.2f} % of {settings['images']} images of "
        f"{settings['data']}. {settings['children']} children for each density and sigma. 95 % intervals (bootstrap over "
        "children and images) in brackets.",
        f"**The window of usable sigmas**: the mean child loses at most {100 * usable['accuracy_lost_at_most']:g} point of "
        f"accuracy and flips at least {100 * usable['predictions_flipped_at_least']:g} % of the predictions.",
        windows_table(document["windows"]),
        "**Claim (b)**: growth for each fourth of the density, in octaves (factors of two).",
        trend_table(document["claim_b"]),
        "**Claim (a)**: each density against a fourth of it, mean over the sigmas at which the denser children lose at least 1 "
        "point and keep at least half of the parent's accuracy above chance.",
        pairs_table(document["claim_a"]),
        "**Accuracy of children (%), mean and standard deviation**, by sigma and density.",
        accuracy_table(document["curves"]),
    ]
    return "\n\n".join(parts)


def fraction(density: float) -> str:
    return "1" if density == 1 else f"1/{round(1 / density)}"


def estimate(entry: dict[str, Any] | None, digits: int = 2, factor: float = 1, signed: bool = True) -> str:
    return "-" if entry is None else with_interval(entry["estimate"], entry["interval"], digits, factor, signed)


def windows_table(windows: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            fraction(window["density"]),
            *(estimate(window[key], 3, signed=False) for key in ("lower", "upper", "upper_at_matched_norm")),
            estimate(window["octaves"], signed=False),
        ]
        for window in windows
    ]
    return markdown_table(["density", "from sigma", "to sigma", "to, at matched norm", "octaves"], rows)


TRENDS = {
    "octaves": "width in octaves (the same at matched norm)",
    "log2_upper": "upper end, at equal sigma",
    "log2_width": "upper minus lower end, at equal sigma",
    "log2_upper_at_matched_norm": "upper end, at matched norm",
    "log2_width_at_matched_norm": "upper minus lower end, at matched norm",
}


def trend_table(trends: dict[str, Any]) -> str:
    rows = [[text, estimate(trends[key]), trends[key]["verdict"]] for key, text in TRENDS.items()]
    return markdown_table(["", "octaves for each fourth", "growth"], rows)


def pairs_table(claim: dict[str, list[dict[str, Any]]]) -> str:
    rows = [
        [
            f"equal {axis}: {' against '.join(fraction(density) for density in pair['densities'])}",
            str(len(pair[axis])),
            *(cell for key, factor in (("loss", 100), ("log2_spread", 1)) for cell in claimed(pair.get(key), factor)),
        ]
        for axis in ("sigma", "norm")
        for pair in claim[axis]
    ]
    head = ["", "sigmas", "points lost less", "less loss", "log2 of the ratio of stds", "less variance"]
    return markdown_table(head, rows)


def claimed(entry: dict[str, Any] | None, factor: float) -> tuple[str, str]:
    return estimate(entry, factor=factor), "-" if entry is None else entry["verdict"]


def accuracy_table(curves: Sequence[dict[str, Any]]) -> str:
    cells = {
        (round(2 * math.log2(sigma)), curve["density"]): f"{100 * mean:.1f} ({100 * std:.1f})"
        for curve in curves
        for sigma, mean, std in zip(curve["sigma"], curve["accuracy"], curve["accuracy_std"])
    }
    densities = [curve["density"] for curve in curves]
    rows = [
        [f"{2 ** (place / 2):.4g}", *(cells.get((place, density), "") for density in densities)]
        for place in sorted({place for place, _ in cells})
    ]
    return markdown_table(["sigma", *(f"density {fraction(density)}" for density in densities)], rows)


def draw(document: dict[str, Any], path: Path) -> None:
    """Accuracy, its spread and the windows: above at equal sigma, below at equal norm."""
    figure, grid = panels(3, 2)
    for (accuracy, spread, windows), axis, label in zip(grid, ("sigma", "norm"), ("sigma", "sigma at equal norm")):
        for number, curve in enumerate(document["curves"]):
            name = f"density {fraction(curve['density'])}"
            series(accuracy, number, curve[axis], 100 * np.array(curve["accuracy"]), name)
            series(spread, number, curve[axis], 100 * np.array(curve["accuracy_std"]), name)
        accuracy.axhline(100 * document["parent_accuracy"], color="black", linewidth=1, linestyle="--", label="parent")
        accuracy.set_ylabel("mean accuracy of children (%)")
        spread.set_ylabel("standard deviation (points)")
        for number, window in enumerate(document["windows"]):
            draw_window(windows, number, window, axis)
        densities = [fraction(window["density"]) for window in document["windows"]]
        windows.set_yticks(range(len(densities)), densities)
        windows.invert_yaxis()
        windows.set_ylabel("density")
        for axes in (accuracy, spread, windows):
            axes.set_xscale("log", base=2)
            axes.set_xlabel(f"usable {label}" if axes is windows else label)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper left", ncols=6, frameon=False)
    save_figure(figure, path)


def draw_window(axes: Axes, number: int, window: dict[str, Any], axis: str) -> None:
    factor = window["density"] ** 0.5 if axis == "norm" else 1.0
    ends = [window[end]["estimate"] for end in ("lower", "upper")]
    if None not in ends and ends[0] < ends[1]:
        axes.plot([factor * end for end in ends], [number, number], color=COLORS[number], linewidth=6, alpha=0.5)
    for end in ("lower", "upper"):
        if window[end]["interval"] is not None:
            bounds = [factor * bound for bound in window[end]["interval"]]
            axes.plot(bounds, [number, number], color=COLORS[number], marker="|", markersize=10, linewidth=1.5)


if __name__ == "__main__":
    run_plainly(main)
