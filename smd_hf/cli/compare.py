"""`smd-hf compare RUN RUN`: the results of several runs in one table, and the arguments that differ."""

from collections.abc import Sequence
from typing import Any

from ..errors import SMDError
from ..metrics.comparison import CLASSIFICATION_METRICS
from ..metrics.resampling import Metric
from ..reports.gain_report import metrics_of_report
from ..reports.saved_run import SavedRun, read_run
from .parsing import SimpleParser
from .tables import print_table, short_names


def make_parser() -> SimpleParser:
    parser = SimpleParser("compare", "Compare runs: gains, costs, and the arguments that differ.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the output_dir of a finished run; two or more")
    return parser


def run(argv: Sequence[str]) -> int:
    """
    Prints two tables.

    Raises:
        `SMDError`: for fewer than two runs, a folder that is not a run, or a run without a report.
    """
    paths = make_parser().parse_args(argv).runs
    if len(paths) < 2:
        raise SMDError("One run is given, but two or more are compared. `smd-hf inspect RUN` shows a single one.")
    runs = [read_run(path) for path in paths]
    for each in runs:
        if each.report is None:
            raise SMDError(
                f"'{each.folder}' has no gain_report.json: it is {each.state}, or had no test images. Compare finished runs."
            )
    names = short_names(*map(str, paths))
    tasks = {(each.report or {}).get("task", "image-classification") for each in runs}
    if len(tasks) > 1:
        raise SMDError(f"The runs are of different tasks ({', '.join(sorted(tasks))}). Compare runs of one task.")
    first, loss = _compared(runs[0].report or {})
    unit = "" if first is CLASSIFICATION_METRICS[0] else f"{first.name}, "
    columns = [
        "run",
        f"{unit}parent (%)" if first.factor == 100 else f"{unit}parent",
        "evolved (%)" if first.factor == 100 else "evolved",
        "gain, 95 % interval",
        "NLL" if loss.key == "nll" else loss.name,
        "change",
        "passes",
        "seconds",
        "significant",
    ]
    print_table(columns, [_row(name, each.report or {}) for name, each in zip(names, runs)], numbers=columns[1:-1])
    print()
    print_differences(names, runs)
    if len({str(_tested_on(each)) for each in runs}) > 1:
        print("\nThe runs were tested on different numbers of images, so their gains are not comparable one to one.")
    return 0


def print_differences(names: Sequence[str], runs: Sequence[SavedRun]) -> None:
    """A row for each argument that differs."""
    ignored = {"output_dir", "logging_dir", "run_name", "hub_model_id"}
    every = sorted({name for each in runs for name in each.arguments} - ignored)
    rows = []
    for argument in every:
        values = [each.arguments.get(argument) for each in runs]
        if any(value != values[0] for value in values):
            rows.append([argument, *map(str, values)])
    if rows:
        print_table(["argument", *names], rows)
    else:
        print("All arguments are the same.")


def _row(name: str, report: dict[str, Any]) -> list[str]:
    parent, evolved, difference, cost = (report[key] for key in ("parent", "evolved", "difference", "cost"))
    first, loss = _compared(report)
    gain, form = difference[first.key], f".{first.decimals}f"
    low, high = (_number(end, first.factor, f"+{form}") for end in gain["interval"])
    return [
        name,
        _number(parent[first.key], first.factor, form),
        _number(evolved[first.key], first.factor, form),
        f"{_number(gain['estimate'], first.factor, f'+{form}')} ({low} to {high})",
        _number(evolved[loss.key], 1, ".4f"),
        _number(difference[loss.key]["estimate"], 1, "+.4f"),
        _number(cost["parent_passes"], 1, ".1f"),
        _number(cost["seconds"], 1, ".0f"),
        "yes" if report["significant"] else "no",
    ]


def _compared(report: dict[str, Any]) -> tuple[Metric, Metric]:
    """The most important metric of a report, and its loss."""
    metrics = metrics_of_report(report)
    return metrics[0], next(metric for metric in metrics if metric.key in ("nll", "loss"))


def _number(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else f"{factor * value:{form}}"


def _tested_on(run: SavedRun) -> Any:
    return ((run.report or {}).get("data") or {}).get("test", {}).get("num_images")
