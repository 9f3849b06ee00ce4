"""`smd-hf compare RUN RUN`: the results of several runs in one table, and the arguments that differ."""

from collections.abc import Sequence
from typing import Any

from ..errors import SMDError
from ..reports.saved_run import SavedRun, read_run
from .evaluate import short_names
from .parsing import SimpleParser
from .tables import print_table


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
    columns = [
        "run",
        "parent (%)",
        "evolved (%)",
        "gain, 95 % interval",
        "NLL",
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
    accuracy = difference["accuracy"]
    low, high = accuracy["interval"]
    return [
        name,
        _number(parent["accuracy"], 100, ".2f"),
        _number(evolved["accuracy"], 100, ".2f"),
        f"{_number(accuracy['estimate'], 100, '+.2f')} ({_number(low, 100, '+.2f')} to {_number(high, 100, '+.2f')})",
        _number(evolved["nll"], 1, ".4f"),
        _number(difference["nll"]["estimate"], 1, "+.4f"),
        _number(cost["parent_passes"], 1, ".1f"),
        _number(cost["seconds"], 1, ".0f"),
        "yes" if report["significant"] else "no",
    ]


def _number(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else f"{factor * value:{form}}"


def _tested_on(run: SavedRun) -> Any:
    return ((run.report or {}).get("data") or {}).get("test", {}).get("num_images")
