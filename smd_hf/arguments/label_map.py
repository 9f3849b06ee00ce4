"""
Label maps: the user says which class of the model a label means.

A map goes from the data set's label to the model's label or the index of its class. It is a `dict`, JSON text, or a JSON or
CSV file.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SMDError
from ..messages import near_path, one_line

LabelMap = dict[str, int | str | None]

_HEADERS = ("label", "data_label", "data label")


def read_label_map(given: Mapping[Any, Any] | str | Path) -> LabelMap:
    """
    Reads a label map and checks its form.

    Args:
        given (mapping, `str` or `Path`): the map itself, JSON text that begins with a brace, or a file: `.json` with one object,
            or `.csv` with two columns (label, then class; a header line `label,class` may come first).

    Returns:
        `dict`: from the label (integers as decimal strings) to the model's label, the index of its class, or `None` for a label
        without a class, of which there must be no image. Decimal numbers in a CSV file are indices, as in JSON.
    """
    if isinstance(given, Mapping):
        pairs, source = list(given.items()), "label_map"
    elif str(given).lstrip().startswith("{"):
        pairs, source = _json_pairs(str(given), "label_map"), "label_map"
    else:
        pairs, source = _file_pairs(Path(given).expanduser()), f"label_map '{given}'"
    read: LabelMap = {}
    for key, value in pairs:
        if str(key) in read:
            raise SMDError(f"{source} gives the label {str(key)!r} twice. Give each label one class.")
        if isinstance(value, bool) or not isinstance(value, int | str | None):
            raise SMDError(
                f"{source} maps {str(key)!r} to {value!r:.80}; expected the model's label, the index of its class, or null for "
                "a label that has no image."
            )
        read[str(key)] = value
    return read


def _file_pairs(path: Path) -> list[tuple[Any, Any]]:
    if not path.is_file():
        raise SMDError(
            f"There is no file label_map '{path}'.{near_path(path)} Expected a JSON or CSV file, or a JSON object "
            "such as '{\"crane\": 517}'."
        )
    if path.suffix.lower() not in (".json", ".csv"):
        raise SMDError(f"label_map '{path}' is neither a .json nor a .csv file. Rename it, or write one of these.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SMDError(f"label_map '{path}' cannot be read as text: {one_line(str(error))}.") from error
    source = f"label_map '{path}'"
    return _json_pairs(text, source) if path.suffix.lower() == ".json" else _csv_pairs(text, source)


def _json_pairs(text: str, source: str) -> list[tuple[str, Any]]:
    try:
        pairs = json.loads(text, object_pairs_hook=lambda pairs: pairs)
    except json.JSONDecodeError as error:
        raise SMDError(f'{source} is not JSON ({error}). Expected an object such as {{"crane": 517}}.') from error
    is_object = isinstance(pairs, list) and all(isinstance(each, tuple) for each in pairs)
    if not is_object or (not pairs and not text.lstrip().startswith("{")):
        raise SMDError(f'{source} holds no JSON object; expected one such as {{"crane": 517}}.')
    return pairs


def _csv_pairs(text: str, source: str) -> list[tuple[str, Any]]:
    pairs = []
    for number, row in enumerate(csv.reader(text.splitlines(), skipinitialspace=True), start=1):
        if not row or (number == 1 and row[0].strip().lower() in _HEADERS):
            continue
        if len(row) != 2:
            raise SMDError(
                f"{source} has {len(row)} columns in line {number}; expected two: the data set's label, then the model's label or "
                'the index of its class. Put names with commas in quotes: crane,"crane, bird".'
            )
        label, value = (cell.strip() for cell in row)
        # As in JSON, so that a run may be resumed with the same map in another file.
        pairs.append((label, int(value) if value.isdecimal() else value or None))
    return pairs
