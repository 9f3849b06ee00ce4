"""
A checkpoint with many classes meets other images: what the head brings by itself, and what evolution adds to it.

Compares the parent, what one pass over the features gives (temperature, class prior, the whole head), the preset `adapt` in three
forms, which differ in what is done with the head, and other methods: statistics re-estimated, SGD, evolution strategies, SPSA.

    python examples/studies/imagenet.py --model timm/tf_efficientnet_lite0.in1k --data FOLDER_OR_DATA_SET
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from common import (
    Measurements,
    data_key,
    environment,
    evolution_arguments,
    file_name,
    load_data,
    make_parser,
    markdown_table,
    public_name,
    run_plainly,
    settle,
    with_interval,
    write_results,
)
from imagenet_rivals import RIVALS, Rivals
from imagenet_rivals import SHOWN as RIVALS_SHOWN

from smd_hf import EvolutionTrainer
from smd_hf.reports.steps import step_title
from smd_hf.search.head.baselines import HEAD

METHODS: dict[str, dict[str, Any]] = {
    "adapt": {},
    "children": {"warm_start": False, "refit_head": False},
    "head_first": {"refit_head": False},
}
"""What is done with the head, by arguments beside `--preset adapt`."""

SHOWN = {
    "adapt": "`adapt`: class prior or temperature first, the head fitted last",
    "children": "the same children, without the two",
    "head_first": "the same children, from the fitted head",
}

QUICK = {"max_train": 60, "max_test": 40, "rival_passes": 1, "seeds": [0]}
QUICK["set"] = ["population_size=4", "num_generations=1", "fitness_samples_per_generation=24"]


def parser() -> argparse.ArgumentParser:
    made = make_parser(__doc__.split("\n\n")[0])
    made.add_argument("--model", required=True, help="A checkpoint: a folder or an id of the Hub.")
    made.add_argument("--data", required=True, help="A folder or data set with a training and a test split.")
    made.add_argument("--trust_remote_code", action="store_true", help="The model brings its own code.")
    made.add_argument("--max_train", type=int, help="Training images: a stratified subset.")
    made.add_argument("--max_test", type=int, help="Test images: a stratified subset.")
    every = [*METHODS, *RIVALS]
    made.add_argument(
        "--methods", nargs="+", choices=every, default=every, metavar="METHOD", help=f"Of {', '.join(every)}."
    )
    made.add_argument("--rival_passes", type=float, default=12, help="Passes of SGD, evolution strategies and SPSA.")
    made.add_argument(
        "--set", nargs="+", default=[], metavar="ARGUMENT=VALUE", help="Of EvolutionArguments, beside the preset."
    )
    made.add_argument("--runtime", default="auto", help="As --runtime of smd-hf evolve.")
    made.add_argument("--batch_size", type=int, default=75, help="Images a batch of scoring.")
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="Of the runs of each method.")
    return made


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser()
    args = made.parse_args(argv)
    settle(args, QUICK, made)
    name = f"imagenet_{file_name(args.model)}"
    document = measure(args, Measurements(args.output_dir / f"{name}.jsonl"))
    write_results(args.output_dir, name, document, render(document))
    print(render(document))
    return document


def measure(args: argparse.Namespace, measurements: Measurements) -> dict[str, Any]:
    """Runs what has not been run."""
    train, test = load_data(args.data, max_train=args.max_train, max_test=args.max_test, seed=args.seed)
    chosen = {name: yaml.safe_load(value) for name, value in (each.split("=", 1) for each in args.set)}
    about = {
        "model": public_name(args.model),
        "train": data_key(train),
        "test": data_key(test),
        "runtime": args.runtime,
        "arguments": chosen,
    }
    rivals = lru_cache(1)(partial(Rivals, args, train, test))
    runs = []
    for seed in args.seeds:
        for method in args.methods:
            if method in METHODS:
                settings, measured = about, partial(run, args, train, test, chosen | METHODS[method], seed)
            else:
                runtime = args.runtime if RIVALS[method].get("forward_only") else "eager"
                settings = about | {"runtime": runtime, "arguments": {"passes": args.rival_passes}}
                # The step size is chosen once.
                rate = next((each["rate"] for each in runs if each["method"] == method), None)
                measured = partial(rival_run, rivals, seed, method, args.rival_passes, rate)
            result = measurements.get(settings | {"method": method, "seed": seed}, measured)
            runs.append({"method": method, "seed": seed} | result)
    return {
        "about": about | {"data": public_name(args.data), "train_images": len(train), "test_images": len(test)},
        "environment": environment(args),
        "runs": runs,
    }


def run(args: argparse.Namespace, train: Any, test: Any, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """One run of `adapt`, and what its report says."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = evolution_arguments(
            folder,
            args,
            preset="adapt",
            seed=seed,
            runtime=args.runtime,
            model_init_kwargs={"trust_remote_code": args.trust_remote_code},
            **options,
        )
        EvolutionTrainer(args.model, arguments, train_dataset=train, eval_dataset=test).train()
        report = json.loads((Path(folder) / "gain_report.json").read_text(encoding="utf-8"))
    found = {
        "parent": scores(report["parent"]),
        "evolved": scores(report["evolved"]),
        "difference": report["difference"],
        "passes": report["cost"]["parent_passes"],
        "seconds": report["cost"]["seconds"],
    }
    if "steps" in report:
        steps = report["steps"]
        found["chosen"] = steps.get("warm_start")
        found["statistics"] = steps.get("statistics")
        found["steps"] = {
            step_title(name, steps).removesuffix(" alone"): {
                "scores": scores(entry["test"]),
                "difference": entry["difference"],
                "evolved_over_it": entry["evolved_over_it"],
            }
            for name, entry in steps["baselines"].items()
            if "test" in entry
        }
        found["generations"] = steps["evolution"]["difference"]
    return found


def rival_run(
    rivals: Callable[[int], Rivals], seed: int, method: str, passes: float, rate: float | None
) -> dict[str, Any]:
    """One run of another method. The parent is loaded for what is to be measured alone."""
    found = rivals(seed).run(method, passes, rate)
    return found | {"parent": scores(found["parent"]), "evolved": scores(found["evolved"])}


def scores(entry: dict[str, Any]) -> dict[str, float]:
    return {name: entry[name] for name in ("accuracy", "nll", "calibration_error")}


def render(document: dict[str, Any]) -> str:
    """The table: the mean over seeds, and the interval of the first one."""
    about, runs = document["about"], document["runs"]
    rows = [row("parent", [{"scores": runs[0]["parent"], "difference": None, "passes": 0.0}])]
    fitted = next((each for each in runs if "steps" in each), None)
    for name, step in fitted["steps"].items() if fitted else ():
        rows.append(row(f"{name}, alone", [step | {"passes": 1.0}]))
    for method in dict.fromkeys(each["method"] for each in runs):
        mine = [each for each in runs if each["method"] == method]
        rows.append(row((SHOWN | RIVALS_SHOWN)[method], [each | {"scores": each["evolved"]} for each in mine]))
    head = ["", "accuracy (%)", "gain (points)", "NLL", "calibration error", "passes", "seconds"]
    lines = [
        f"# {about['model']} on {about['data']}",
        "",
        f"{about['train_images']:,} training images, {about['test_images']:,} test images; runtime {about['runtime']}, "
        f"{document['environment']['threads']} thread(s). Means over {len({each['seed'] for each in runs})} seed(s); the interval is "
        "that of the test images, for the first seed. Beside the preset: "
        f"{', '.join(f'{name} {value}' for name, value in about['arguments'].items()) or 'nothing'}.",
        "",
        markdown_table(head, rows),
    ]
    if ahead := seeds_over_the_head(runs):
        lines += ["", ahead]
    return "\n".join(lines)


def seeds_over_the_head(runs: Sequence[dict[str, Any]]) -> str:
    """How far `adapt` is over the fit of the whole head alone, for each seed."""
    ahead = [
        step["evolved_over_it"]["accuracy"]
        for each in runs
        if each["method"] == "adapt"
        for name, step in each["steps"].items()
        if HEAD in name and "evolved_over_it" in step
    ]
    shown = "; ".join(with_interval(each["estimate"], each["interval"], 2, 100) for each in ahead)
    return f"`adapt` over the fit of the head alone, in points, by seed: {shown}." if ahead else ""


def row(name: str, found: list[dict[str, Any]]) -> list[str]:
    def mean(key: str) -> float:
        return fmean(each["scores"][key] for each in found)

    first = found[0]["difference"]
    gain = "" if first is None else with_interval(first["accuracy"]["estimate"], first["accuracy"]["interval"], 2, 100)
    seconds = [each["seconds"] for each in found if "seconds" in each]
    return [
        name,
        f"{100 * mean('accuracy'):.2f}",
        gain,
        f"{mean('nll'):.4f}",
        f"{mean('calibration_error'):.4f}",
        f"{fmean(each['passes'] for each in found):.1f}",
        f"{fmean(seconds):.0f}" if seconds else "",
    ]


if __name__ == "__main__":
    run_plainly(main)
