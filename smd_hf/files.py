"""Writing files so that a reader never sees half of one."""

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import SMDError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


@contextmanager
def full_disk_is_told(folder: str | os.PathLike) -> Iterator[None]:
    """
    Turns the errors of a disk without room, of whichever library meets it, into one that says what to do.

    Args:
        folder (`str` or `os.PathLike`): what is written to inside.

    Raises:
        `SMDError`: if a disk or a quota is full, or a file would be larger than it may be.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else _os_error(str(error))
        if number not in NO_ROOM:
            raise
        raise SMDError(
            f"The disk of output_dir '{folder}' takes no more ({os.strerror(number)}). What was complete before is still there: "
            "make room, then resume the run."
        ) from error


def _os_error(text: str) -> int | None:
    """The number in the message of a library that is not written in Python."""
    found = re.search(r"\(os error (\d+)\)", text)
    return None if found is None else int(found.group(1))


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
