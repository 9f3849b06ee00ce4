"""Writes the front of a run: a table and a plot of its members."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_json, write_text
from ..search.pareto.run_front import RunFront
from .front_plot import names_of, plot_front

FRONT_NAME = "front.json"
TABLE_NAME = "front.csv"
PLOT_NAME = "front.png"


def write_front(table: dict[str, Any], folder: Path) -> None:
    """Writes the table as `front.json`, its members as `front.csv`, and the plot `front.png`."""
    write_json(folder / FRONT_NAME, table)
    write_text(folder / TABLE_NAME, as_csv(table))
    plot_front(table, folder / PLOT_NAME)


def front_lines(front: RunFront | None) -> list[str]:
    """The terminal's lines about a front."""
    if front is None:
        return []
    count, names = sum(member["on_front"] for member in front.table["members"]), ", ".join(names_of(front.table))
    models = "model is" if count == 1 else "models are"
    return [f"By {names}, {count} {models} on the front: {TABLE_NAME} has the values, {PLOT_NAME} shows them."]


def as_csv(table: dict[str, Any]) -> str:
    """The members as CSV, one per line. A missing value is an empty field."""
    names = names_of(table)
    splits = [split for split in ("selection", "test") if table["members"][0][split] is not None]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    facts = ["generation", "child", "on_front", "chosen"]
    writer.writerow([*facts, *(f"{split}_{name}" for split in splits for name in names)])
    for member in table["members"]:
        values: Sequence[Any] = [member[split][name] for split in splits for name in names]
        writer.writerow([*(member[fact] for fact in facts), *values])
    return text.getvalue()
