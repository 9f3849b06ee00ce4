"""
What do images without labels bring? Checkpoints, and small parents of scikit-learn's digits, adapt to images from another source.

For each parent: BatchNorm statistics alone and the whole run, both without a label; the preset `adapt` with labels; and the statistics
that labelled selection images choose. The claim, fixed beforehand: a significant gain in accuracy without labels for two of four parents, and no
significant loss.

    python examples/studies/unlabeled.py --case MODEL DATA --case MODEL DATA
"""

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from architectures import PARENTS
from common import (
    DIGITS,
    Measurements,
    environment,
    evolution_arguments,
    load_data,
    make_parser,
    markdown_table,
    public_name,
    run_plainly,
    settle,
    with_interval,
    write_results,
)
from imagenet import scores
from parents import Parent, load_images

from smd_hf import EvolutionTrainer
from smd_hf.reports.steps import STATISTICS

METHODS: dict[str, dict[str, Any]] = {"without labels": {"unlabeled": True}, "with labels": {}}

QUICK = {"max_train": 60, "max_test": 40, "epochs": 2, "architectures": ["resnet"]}
QUICK["set"] = {"population_size": 6, "num_generations": 1, "fitness_samples_per_generation": 0}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = make_parser(__doc__.split("\n\n")[0])
    made.add_argument(
        "--case",
        nargs=2,
        action="append",
        default=[],
        metavar=("MODEL", "DATA"),
        help="A checkpoint and images. Several may be given.",
    )
    made.add_argument(
        "--architectures", nargs="*", default=["resnet", "efficientnet"], help="Small parents of digits."
    )
    made.add_argument(
        "--blind",
        nargs="*",
        default=[],
        metavar="MODEL",
        help="Of these checkpoints, the run with labels is left out.",
    )
    made.add_argument("--max_train", type=int, help="At most so many images to adapt to.")
    made.add_argument("--max_test", type=int, help="At most so many test images.")
    made.add_argument("--batch_size", type=int, default=75, help="Images a batch of scoring.")
    made.add_argument("--epochs", type=int, default=60, help="Of the training of small parents.")
    made.add_argument("--trust_remote_code", action="store_true", help="Checkpoints may bring their own code.")
    made.add_argument("--parents_dir", type=Path, default=PARENTS, help="Keeps trained parents.")
    made.set_defaults(imagenet=None, data=DIGITS, set={"population_size": 48, "num_generations": 3})
    args = made.parse_args(argv)
    settle(args, QUICK, made)
    document = measure(args, Measurements(args.output_dir / "unlabeled.jsonl"))
    write_results(args.output_dir, "unlabeled", document, render(document))
    print(render(document))
    return document


def measure(args: argparse.Namespace, store: Measurements) -> dict[str, Any]:
    """Runs what has not been run."""
    found: dict[str, dict[str, Any]] = {}
    for model, data in args.case:
        train, test = load_data(data, max_train=args.max_train, max_test=args.max_test, seed=args.seed)
        name = f"{public_name(model)} on {public_name(data)}"
        found[name] = both(
            args, store, {"model": public_name(model), "data": public_name(data)}, model, None, train, test
        )
    images = load_images(args) if args.architectures else None
    for name in args.architectures if images is not None else ():
        parent = Parent(name, images, args)
        model, processor = parent.load()
        settings = {"parent": parent.settings}
        found[f"{name} on {args.data}"] = both(
            args, store, settings, model.name_or_path, processor, images.evolve_on, images.test
        )
    return {"study": "unlabeled", "settings": args.set, "environment": environment(args), "cases": found}


def both(
    args: argparse.Namespace,
    store: Measurements,
    settings: dict[str, Any],
    model: str,
    processor: Any,
    train: Any,
    test: Any,
) -> dict[str, Any]:
    settings = settings | {"images": [len(train), len(test)], "arguments": args.set, "seed": args.seed}
    return {
        name: store.get(settings | {"method": name}, partial(run, args, model, processor, train, test, options))
        for name, options in METHODS.items()
        if options or model not in args.blind
    }


def run(
    args: argparse.Namespace, model: str, processor: Any, train: Any, test: Any, options: dict[str, Any]
) -> dict[str, Any]:
    """One run, and what its report says."""
    if options.get("unlabeled"):
        train = train.select_columns([name for name in train.column_names if name in ("image", "img")])
    with tempfile.TemporaryDirectory() as folder:
        arguments = evolution_arguments(
            folder,
            args,
            preset="adapt",
            seed=args.seed,
            model_init_kwargs={"trust_remote_code": args.trust_remote_code},
            **args.set,
            **options,
        )
        trainer = EvolutionTrainer(
            model, arguments, train_dataset=train, eval_dataset=test, processing_class=processor
        )
        trainer.train()
        report = trainer.report
    assert report is not None
    steps = report.get("steps", {})
    tested = {
        name: entry
        for name, entry in steps.get("baselines", {}).items()
        if name.startswith(STATISTICS) and "test" in entry
    }
    return {
        "images": [len(train), len(test)],
        "parent": scores(report["parent"]),
        "statistics": [
            {"name": name, "difference": entry["difference"], **scores(entry["test"])}
            for name, entry in tested.items()
        ],
        "chosen": steps.get("statistics"),
        "evolved": scores(report["evolved"]) | {"difference": report["difference"]},
        "generations": [each["chosen"] for each in trainer.run.generations],
        "passes": report["cost"]["parent_passes"],
        "verdict": report["verdict"],
    }


def render(document: dict[str, Any]) -> str:
    rows = []
    for name, case in document["cases"].items():
        blind = case["without labels"]
        rows.append([name, *shown(blind["parent"])])
        for method, each in case.items():
            for found in each["statistics"]:
                kept = "" if found["name"] == each["chosen"] else " (not chosen)"
                rows.append([f"{found['name']}, {method}{kept}", *shown(found)])
            rows.append([f"the whole run, {method}", *shown(each["evolved"])])
    options = ", ".join(f"{name} {value}" for name, value in document["settings"].items())
    lines = [
        "# Images without labels",
        "",
        f"The preset `adapt` with {options}, with and without `unlabeled`; one seed. Intervals are those of the test images.",
        "",
        markdown_table(["", "accuracy (%)", "gain (points)", "NLL", "calibration error"], rows),
    ]
    return "\n".join(lines)


def shown(entry: dict[str, Any]) -> list[str]:
    gain = entry.get("difference", {}).get("accuracy")
    return [
        f"{100 * entry['accuracy']:.2f}",
        "" if gain is None else with_interval(gain["estimate"], gain["interval"], 2, 100),
        f"{entry['nll']:.4f}",
        f"{entry['calibration_error']:.4f}",
    ]


if __name__ == "__main__":
    run_plainly(main)
