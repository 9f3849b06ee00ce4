"""The heads that generations have solved for, in files: a record names children, and no child changes such a head."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import SMDError
from ..files import save_arrays
from ..search.head.linear import LinearHead

FOLDER = "heads"


def head_name(generation: int) -> str:
    """The file of the head that a generation has left, counted from 0."""
    return f"head-{generation:05d}.safetensors"


def save_heads(folder: Path, heads: Mapping[int, LinearHead]) -> None:
    """
    Writes a file for each generation.

    Args:
        folder (`Path`): a ledger or a checkpoint. The files are in its folder `heads`.
        heads (mapping of `int` to [`LinearHead`]): by generation.
    """
    for generation, head in heads.items():
        path = folder / FOLDER / head_name(generation)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(path, head.arrays)


def load_heads(folder: Path, records: Sequence[Mapping[str, Any]]) -> dict[int, LinearHead]:
    """
    The heads that records speak of, by generation, from a ledger or a checkpoint.

    Raises:
        `SMDError`: if one is missing or damaged.
    """
    found = {}
    for record in records:
        if not record.get("new_head"):
            continue
        path = folder / FOLDER / head_name(record["generation"])
        try:
            with safe_open(path, "np") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            head = LinearHead(arrays["weight"], arrays.get("bias"))
            if head.weight.ndim != 2 or not np.isfinite(head.weight).all():
                raise ValueError("its weight is no finite matrix")
            found[record["generation"]] = head
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise SMDError(
                f"'{path}', the head that generation {record['generation']} has left, is missing or damaged ({error}). Put it back, or "
                "start anew."
            ) from error
    return found
