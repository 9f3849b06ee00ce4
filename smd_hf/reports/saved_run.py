"""Reads what a run has left in its folder: finished, stopped, or still under way."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SMDError
from ..files import read_json_object
from ..messages import near_path, suggestion
from ..run.lock import is_held
from ..run.records import CHILDREN_NAME, HEADER_NAME, LEDGER_NAME, check_record
from .gain_report import REPORT_NAME


@dataclass
class SavedRun:
    """
    A run, as its files describe it.

    Args:
        folder (`Path`): its `output_dir`.
        state (`str`): `"finished"`, `"running"` or `"stopped"`.
        report (`dict`, *optional*): `gain_report.json`; `None` before the end, and for a run without test images.
        generations (list of `dict`): the records of `children.jsonl`.
        arguments (`dict`): those that are known: of the report, else of the ledger.
    """

    folder: Path
    state: str
    report: dict[str, Any] | None
    generations: list[dict[str, Any]]
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def fitness_name(self) -> str:
        """The metric that children are scored by."""
        return str(self.arguments.get("fitness", "fitness"))

    def fitness(self, value: float | None) -> float | None:
        """A fitness of the records in the metric's own direction: losses and errors are negated there."""
        return -value if value is not None and self._is_negated else value

    @property
    def _is_negated(self) -> bool:
        parents = [record["parent"] for record in self.generations]
        pairs = [(parent.get(self.fitness_name), parent.get("fitness")) for parent in parents]
        return any(raw == -value != value for raw, value in pairs if raw is not None and value is not None)

    def children(self, number: int) -> list[float]:
        """The fitness of the children of a generation that saw all images and did not fail; higher is better."""
        found = (child for child in self.generations[number]["children"] if not child.get("eliminated"))
        return [child["fitness"] for child in found if child["fitness"] is not None]


def read_run(folder: str | os.PathLike) -> SavedRun:
    """
    Reads the folder of a run.

    Raises:
        `SMDError`: if the folder does not exist, is not that of a run, or a file in it is damaged.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise SMDError(f"The folder '{folder}' does not exist.{near_path(path)} Expected the output_dir of a run.")
    report = read_json_object(path / REPORT_NAME)
    header = read_json_object(path / LEDGER_NAME / HEADER_NAME)
    children = path / CHILDREN_NAME
    if report is None and header is None and not children.is_file():
        inside = [entry.name for entry in path.iterdir() if (entry / REPORT_NAME).is_file()]
        hint = suggestion(str(path / name) for name in sorted(inside)[:3])
        raise SMDError(
            f"'{folder}' is not the folder of a run: it has no {REPORT_NAME}, {CHILDREN_NAME} or {LEDGER_NAME}.{hint} Expected the "
            "output_dir of a run."
        )
    if is_held(path):
        state = "running"
    else:
        state = "finished" if report is not None or (path / "model.safetensors").is_file() else "stopped"
    arguments: Mapping[str, Any] = (header or {}).get("arguments") or {}
    if report is not None and state != "running":
        arguments = {**arguments, **report.get("all_arguments", {}), **report.get("arguments", {})}
    return SavedRun(path, state, report if state != "running" else None, _read_generations(children), dict(arguments))


def _read_generations(path: Path) -> list[dict[str, Any]]:
    """The records of `children.jsonl`; a last line that is being written is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines):
        try:
            record = json.loads(line)
            check_record(record, number)
        except ValueError as error:
            if number == len(lines) - 1:
                break
            raise SMDError(
                f"Line {number + 1} of '{path}' is damaged ({error}). Expected one generation on each line, as a run writes "
                "them: resume the run, or remove the file."
            ) from error
        records.append(record)
    return records
