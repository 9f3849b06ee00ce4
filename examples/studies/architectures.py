"""
One generation of children for each of a dozen architectures: parent, best child, ensemble, Gauss-Newton model.

Claims of the paper: (c) an ensemble of one generation's sparse children beats the parent by a small, reliable margin; (d)
sparse children are diverse at equal accuracy. Each parent is trained here on real images; fitness, selection and test images
are disjoint, and none of them trained the parent.

    python examples/studies/architectures.py                            # scikit-learn's digits
    python examples/studies/architectures.py --data FOLDER_OR_PARQUET
    python examples/studies/architectures.py --imagenet --data FOLDER   # timm's checkpoints, with access to the Hub
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from architectures_analysis import LOSS, ROLES, compare_diversity, summarise
from architectures_measure import Ground, diversity, logits_of, one_generation
from common import (
    COLORS,
    DIGITS,
    Measurements,
    data_key,
    environment,
    file_name,
    image_batches,
    make_parser,
    markdown_table,
    panels,
    progress,
    public_name,
    run_plainly,
    series,
    settle,
    with_interval,
    write_results,
)
from parents import ARCHITECTURES, IMAGENET, Images, Parent, load_images

from smd_hf.metrics.statistics import accuracy, format_p
from smd_hf.reports.plots import legend_above, save_figure
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.search.evolution import PARENT

PARENTS = Path(__file__).parents[2] / "outputs" / "studies" / "parents"
QUICK = {
    "architectures": ["resnet", "mixer"],
    "epochs": 1,
    "children": 4,
    "members": 2,
    "max_test": 40,
    "max_train": 80,
}
KINDS = {"partition": "sparse", "dense": "dense"}
NAMES = {
    "best_child": "best child",
    "ensemble": "ensemble",
    "ensemble_of_all": "ensemble of all",
    "gauss_newton": "Gauss-Newton",
}


def parser() -> argparse.ArgumentParser:
    made = generation_parser(__doc__.split("\n\n")[0])
    made.add_argument(
        "--imagenet", nargs="*", metavar="CHECKPOINT",
        help="Trained checkpoints by name or folder instead of parents trained here; without names, a dozen of timm's of "
        "ImageNet. --data must hold their classes.",
    )  # fmt: skip
    made.add_argument("--members", type=int, default=8, help="Votes of the ensemble.")
    made.add_argument(
        "--factors",
        type=float,
        nargs="+",
        default=[0.5, 1.0, 2.0, 4.0],
        help="Sigmas at which children are compared, times the calibrated one.",
    )
    return made


def generation_parser(description: str) -> argparse.ArgumentParser:
    """The arguments of a study of one generation of each of these architectures."""
    made = make_parser(description)
    made.set_defaults(imagenet=None)
    made.add_argument(
        "--data", default=DIGITS, help="digits, a folder or data set that `datasets` reads, or a Parquet file."
    )
    made.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), help="Which of them.")
    made.add_argument("--epochs", type=int, default=60, help="Of the parents' training.")
    made.add_argument("--children", type=int, default=24, help="Of one generation: the parts of one dense mutation.")
    made.add_argument("--max_train", type=int, help="At most so many images to train and evolve on. All by default.")
    made.add_argument("--max_test", type=int, help="At most so many images to report on. All by default.")
    made.add_argument("--batch_size", type=int, default=128, help="Images a batch, in scoring.")
    made.add_argument("--parents_dir", type=Path, default=PARENTS, help="Keeps trained parents.")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser()
    args = made.parse_args(argv)
    settle(args, QUICK, made)
    document = measure(args)
    name = f"architectures_{'imagenet' if args.imagenet is not None else file_name(args.data)}"
    write_results(args.output_dir, name, document, render(document))
    draw(document, args.output_dir / f"{name}.png")
    print(render(document))
    return document


# ---- Measuring --------------------------------------------------------------------------------------------------------


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All measurements, and what they show together."""
    images = load_images(args)
    names = args.architectures if args.imagenet is None else args.imagenet or list(IMAGENET)
    parents = [Parent(name, images, args) for name in names]
    settings = settings_of(args, images)
    name = "imagenet" if args.imagenet is not None else file_name(args.data)
    store = Measurements(args.output_dir / f"architectures_{name}.jsonl")
    rows, points = {}, {}
    with progress(4 * len(parents), "measurement") as bar:
        for parent in parents:
            bar.set_description(parent.settings["name"])
            key = settings | {"parent": parent.settings}

            def found(extra: dict[str, Any], work: Any, key: dict[str, Any] = key) -> Any:
                result = store.get(key | extra, work)
                bar.update()
                return result

            known = found({"what": "parent"}, partial(describe, parent, args))
            row = found(
                {"what": "generation", "members": args.members},
                lambda parent=parent: one_generation(ground(parent, args), args.children, args.members),
            )
            rows[parent.settings["name"]] = known | row
            points[parent.settings["name"]] = {
                kind: found(
                    {"what": "diversity", "kind": kind, "factors": args.factors},
                    lambda parent=parent, kind=kind: diversity(
                        ground(parent, args), kind, args.children, args.factors
                    ),
                )
                for kind in KINDS
            }
    return {
        "study": "architectures",
        "settings": settings | {"members": args.members, "factors": args.factors, "epochs": args.epochs},
        "environment": environment(args),
        "images": {
            "parent": None if images.parent is None else len(images.parent),
            "evolve_on": len(images.evolve_on),
            "test": len(images.test),
        },
        "architectures": {name: without_answers(row) for name, row in rows.items()},
        "diversity": points,
        "claim_c": summarise(rows, args.seed),
        "claim_d": compare_diversity(points),
    }


def settings_of(args: argparse.Namespace, images: Images) -> dict[str, Any]:
    """What each measurement depends on, beside the parent and what is measured."""
    return {
        "data": public_name(args.data),
        "evolve_on": data_key(images.evolve_on),
        "test": data_key(images.test),
        "children": args.children,
        "seed": args.seed,
    }


def without_answers(found: dict[str, Any]) -> dict[str, Any]:
    """Without the images that each model has right, which the measurements keep."""
    return {
        key: without_answers(value) if isinstance(value, dict) else value
        for key, value in found.items()
        if key != "correct"
    }


def ground(parent: Parent, args: argparse.Namespace) -> Ground:
    model, processor = parent.load()
    return Ground(model, processor, parent.images.evolve_on, parent.images.test, args.batch_size, args.seed)


def describe(parent: Parent, args: argparse.Namespace) -> dict[str, Any]:
    """What kind of parent it is, and its accuracy on images of the kind that it knows."""
    model, processor = parent.load()
    batches = image_batches(model, processor, parent.images.clean, batch_size=args.batch_size)
    [logits] = logits_of(Evaluator(model, model.device), [PARENT], batches)
    return {
        "family": parent.family,
        "library": parent.library,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "clean_accuracy": accuracy(logits, batches.labels),
    }


# ---- Table and figure -------------------------------------------------------------------------------------------------


def render(document: dict[str, Any]) -> str:
    """The results in Markdown."""
    images, settings, claim = document["images"], document["settings"], document["claim_d"]
    sparse, rows = claim["sparse_at_calibrated_sigma"], in_order(document["architectures"])
    return "\n\n".join(
        [
            f"{len(document['architectures'])} architectures on {settings['data']}: {images['evolve_on']} images to evolve on "
            f"(a quarter of them for selection), {images['test']} to report on. {settings['children']} children of one "
            f"generation (density 1/{settings['children']}), {settings['members']} votes in the ensemble. 95 % intervals in "
            "brackets.",
            "**Accuracy (%) on the test images**, with McNemar's exact p-value against the parent.",
            accuracy_table(rows),
            "**NLL and calibration error (%)** on the same images.",
            likelihood_table(rows),
            "**Claim (c)** and its kin: gains of accuracy over the parent, in points, all architectures together.",
            gains_table(document["claim_c"]),
            f"The ensemble over its generation's best child: {mean(document['claim_c']['ensemble']['over_best_child'], 100)} points. "
            f"It has {ensemble_sizes(rows)} different members.",
            "**Claim (d)**: disagreement of two children (%) where the mean child of either kind loses equally much accuracy, 2 points at the most.",
            diversity_table(claim, rows),
            f"Sparse against dense: log2 of the ratio {mean(claim['log2_ratio'])}; more diverse on {claim['more_diverse']}, "
            f"less on {claim['less_diverse']} architectures, signed-rank {format_p(claim['signed_rank_p'])}: "
            f"{claim['verdict']}. Sparse children of the calibrated sigma lose {mean(sparse['loss'], 100, signed=False)} points and disagree "
            f"on {mean(sparse['disagreement'], 100, signed=False)} % of the images.",
        ]
    )


def in_order(rows: dict[str, Any]) -> dict[str, Any]:
    """By family, then by name, whatever order the JSON has."""
    return dict(sorted(rows.items(), key=lambda item: (item[1]["family"], item[0])))


def mean(entry: dict[str, Any], factor: float = 1, digits: int = 2, signed: bool = True) -> str:
    return with_interval(entry["mean"], entry["interval"], digits, factor, signed)


def accuracy_table(rows: dict[str, Any]) -> str:
    body = []
    for name, row in rows.items():
        cells = [f"{100 * row['clean_accuracy']:.2f}", f"{100 * row['parent']['scores']['accuracy']:.2f}"]
        for role in ROLES:
            p = row[role]["difference"]["mcnemar"]["p_value"]
            cells.append(f"{100 * row[role]['scores']['accuracy']:.2f} ({format_p(p)})")
        body.append([name, row["family"], row["library"], f"{row['parameters']:,}", *cells])
    head = [
        "",
        "family",
        "library",
        "parameters",
        "parent, images it knows",
        "parent",
        *(NAMES[role] for role in ROLES),
    ]
    return markdown_table(head, body)


def likelihood_table(rows: dict[str, Any]) -> str:
    body = []
    for name, row in rows.items():
        scores = [row[role]["scores"] for role in ("parent", *ROLES)]
        body.append([name, *(f"{each['nll']:.4f}, {100 * each['calibration_error']:.1f}" for each in scores)])
    return markdown_table(["", "parent", *(NAMES[role] for role in ROLES)], body)


def ensemble_sizes(rows: dict[str, Any]) -> str:
    sizes = [row["members"] for row in rows.values()]
    return f"{min(sizes)} to {max(sizes)} (median {np.median(sizes):g})"


def gains_table(claim: dict[str, Any]) -> str:
    body = [
        [
            NAMES[role],
            with_interval(each["mean_gain"], each["interval"], 2, 100),
            f"{each['better']} / {each['worse']}",
            format_p(each["sign_test_p"]),
            str(each["significant_after_holm"]),
            mean(each["mean_nll_difference"], digits=4),
            mean(each["mean_calibration_error_difference"], 100),
            each["verdict"],
        ]
        for role, each in claim.items()
    ]
    head = [
        "",
        "mean gain",
        "better / worse",
        "sign test",
        "significant after Holm",
        "NLL",
        "calibration error",
        "gain",
    ]
    return markdown_table(head, body)


def diversity_table(claim: dict[str, Any], rows: dict[str, Any]) -> str:
    found = claim["at_equal_loss"]
    body = [
        [name, f"{100 * found[name]['loss']:.2f}", *(f"{100 * found[name][kind]:.2f}" for kind in KINDS)]
        for name in rows
        if name in found
    ]
    return markdown_table(["", "points lost", *KINDS.values()], body)


def draw(document: dict[str, Any], path: Path) -> None:
    """Gains of each architecture, and diversity against the accuracy lost."""
    figure, grid = panels(2, size=(5.6, 0.8 + 0.32 * max(9, len(document["architectures"]))))
    gains, diverse = grid[0]
    names = list(in_order(document["architectures"]))
    for number, role in enumerate(ROLES, start=1):
        differences = [document["architectures"][name][role]["difference"]["accuracy"] for name in names]
        places = np.arange(len(names)) + 0.16 * (number - 2.5)
        series(gains, number, [100 * each["estimate"] for each in differences], places, NAMES[role], linestyle="none")
        for place, each in zip(places, differences):
            gains.hlines(place, *(100 * end for end in each["interval"]), color=COLORS[number], linewidth=1)
    gains.axvline(0, color="black", linewidth=1, linestyle="--")
    gains.set_yticks(range(len(names)), names)
    gains.invert_yaxis()
    gains.set_xlabel("accuracy over the parent's (points)")
    legend_above(gains, columns=2)
    for number, kind in enumerate(KINDS):
        for place, name in enumerate(names):
            points = document["diversity"][name][kind]
            x, y = ([100 * point[key] for point in points] for key in ("loss", "disagreement"))
            label = f"{KINDS[kind]} children" if place == 0 else None
            series(diverse, 2 - number, [0, *x], [0, *y], label, linewidth=0.8, alpha=0.8)
    diverse.set_xlim(-1, 5 * 100 * LOSS)
    diverse.set_ylim(0, 40)
    diverse.axvline(100 * LOSS, color="black", linewidth=1, linestyle="--")
    diverse.set_xlabel("accuracy that the mean child loses (points)")
    diverse.set_ylabel("images on which two children disagree (%)")
    legend_above(diverse)
    save_figure(figure, path)


if __name__ == "__main__":
    run_plainly(main)
