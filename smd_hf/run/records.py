"""What a run leaves in its folder, for those who read it without the run: names of files, and the form of a generation's record."""

import math
from typing import Any

CHILDREN_NAME = "children.jsonl"
LEDGER_NAME, HEADER_NAME = "ledger", "header.json"

RECORD_KEYS = {"generation", "sigma", "parent", "children", "selection", "discordance", "chosen", "parts"}


def check_record(record: Any, generation: int) -> None:
    """Raises `ValueError` unless this is a [`Generation.record`], as far as weights depend on it."""
    if not isinstance(record, dict) or not record.keys() >= RECORD_KEYS:
        raise ValueError(f"the record of generation {generation} lacks some of {', '.join(sorted(RECORD_KEYS))}")
    children, parts = record["children"], record["parts"]
    holds = (
        record["generation"] == generation
        and _is_number(record["sigma"])
        and isinstance(record["selection"], dict)
        and all(value is None or _is_number(value) for value in record["selection"].values())
        and isinstance(record["chosen"], str)
        and record["chosen"] in record["selection"]
        and isinstance(record["parent"], dict)
        and "fitness" in record["parent"]
        and isinstance(children, list)
        and all(
            isinstance(child, dict)
            and child.get("index") == place
            and "fitness" in child
            and (child["fitness"] is None or _is_number(child["fitness"]))
            for place, child in enumerate(children)
        )
        and isinstance(parts, list)
        and all(
            isinstance(part, list)
            and len(part) == 2
            and type(part[0]) is int
            and 0 <= part[0] < len(children)
            and _is_number(part[1])
            for part in parts
        )
    )
    if not holds:
        raise ValueError(f"the record of generation {generation} is not as one should be")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
