"""`smd-hf inspect RUN`: what ran, what it found, and what to do next."""

from collections.abc import Iterator, Sequence

import numpy as np

from ..reports.gain_report import format_table, metrics_of_report
from ..reports.saved_run import SavedRun, read_run
from .parsing import SimpleParser
from .tables import print_pairs, print_table


def make_parser() -> SimpleParser:
    parser = SimpleParser(
        "inspect", "Show what a run did, what it found, and what to do next. Works while the run is under way, too."
    )
    parser.add_argument("run", help="the output_dir of a run")
    return parser


def run(argv: Sequence[str]) -> int:
    """
    Prints the run.

    Raises:
        `SMDError`: as [`read_run`].
    """
    found = read_run(make_parser().parse_args(argv).run)
    print_pairs(summary(found))
    if found.generations:
        print()
        print_generations(found)
    if found.report is not None:
        print(f"\n{format_table(found.report)}")
    print("\nNext:")
    for line in next_steps(found):
        print(f"- {line}")
    return 0


def summary(run: SavedRun) -> list[tuple[str, str]]:
    """Names and values about a run."""
    arguments, report = run.arguments, run.report or {}
    planned = f" of {report['num_generations']}" if "num_generations" in report else ""
    pairs = [("run", str(run.folder)), ("state", run.state), ("generations", f"{len(run.generations)}{planned}")]
    if "parent_name" in report:
        pairs.append(("parent", str(report["parent_name"])))
    for name in (
        "population_size",
        "decomposition",
        "sigma",
        "recombination",
        "fitness",
        "mutable_parameters",
        "seed",
    ):
        if arguments.get(name) is not None:
            value = arguments[name]
            pairs.append((name, " ".join(map(str, value)) if isinstance(value, list) else str(value)))
    if "data" in report:
        sizes = (
            f"{part} {entry['num_images']:,}" for part, entry in report["data"].items() if isinstance(entry, dict)
        )
        pairs.append(("images", ", ".join(sizes)))
    if "cost" in report:
        cost = report["cost"]
        pairs.append(("cost", f"{cost['parent_passes']:.1f} passes over the fitness images, {cost['seconds']:.0f} s"))
    return pairs


def print_generations(run: SavedRun) -> None:
    """A line for each generation."""
    name, rows = run.fitness_name, []
    for number, record in enumerate(run.generations):
        values = run.children(number)
        best, middle = (max(values), float(np.median(values))) if values else (None, None)
        rows.append(
            [str(number + 1), f"{record['sigma']:.4g}", _number(run.fitness(record["parent"]["fitness"])), _number(run.fitness(middle)), _number(run.fitness(best)),
             str(len(record["children"]) - len(values)), record["chosen"]]
        )  # fmt: skip
    columns = ["generation", "sigma", f"parent's {name}", "median child", "best child", "failed", "next parent"]
    print_table(columns, rows, numbers=columns[:-1])


def next_steps(run: SavedRun) -> Iterator[str]:
    """What to do with a run, given its state and its verdict."""
    folder = run.folder
    if run.state == "running":
        yield f"It is under way. Watch it in the browser: smd-hf show {folder}"
        return
    if run.state == "stopped":
        yield "It was stopped. The same command with --resume continues it, and scores nothing twice."
        return
    if run.report is None:
        yield "It had no test images. Compare it with its parent: smd-hf evaluate --model_name_or_path " + str(folder)
    elif run.report["significant"]:
        yield f"The gain is significant. See it: smd-hf show {folder}. Push it: smd-hf push {folder} --repo_id user/name"
    else:
        yield from _without_gain(run)
    if (folder / "ensemble").is_dir():
        yield f"Make one model of its ensemble: smd-hf merge {folder / 'ensemble'} --output_dir merged"
    yield f"Run it elsewhere: smd-hf export {folder} --format onnx --output_dir exported"


def _without_gain(run: SavedRun) -> Iterator[str]:
    report = run.report or {}
    yield "There is no significant gain: keep the parent, or look for one as follows."
    metric = metrics_of_report(report)[0]
    low, high = (end or 0.0 for end in report["difference"][metric.key]["interval"])
    if metric.factor == 100 and high - low > 0.02:
        yield (
            f"The interval of the {metric.name} is {100 * (high - low):.1f} points wide. With four times as many test images it is half "
            "as wide."
        )
    if run.generations and all(record["chosen"] == "parent" for record in run.generations):
        yield "No child replaced the parent: try a smaller --sigma, or --mutable_parameters norms head."
    if run.arguments.get("preset") != "adapt":
        yield "Try --preset adapt. `smd-hf presets` shows what it does."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
