"""Writing files so that a reader never sees half of one."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import SMDError


def check_output_dir(output_dir: str | os.PathLike) -> None:
    """Raises [`SMDError`] if nothing can be written to `output_dir`, which is made if need be."""
    try:
        os.makedirs(output_dir, exist_ok=True)
        probe = Path(output_dir) / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SMDError(
            f"output_dir '{output_dir}' cannot be written to ({error.strerror}). Choose a folder that you own, on a disk with "
            "room."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a file beside its place, then renames it: after a crash there is the old file or the new one."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Strict JSON, with sorted keys."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def write_lines(path: Path, records: Iterable[dict[str, Any]], mode: str) -> None:
    """Writes (`mode="w"`) or appends (`"a"`) records as JSON, one a line."""
    with open(path, mode, encoding="utf-8") as file:
        file.writelines(json.dumps(record, sort_keys=True, allow_nan=False) + "\n" for record in records)
