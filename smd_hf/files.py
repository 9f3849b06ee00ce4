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


def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `object_pairs_hook`; `ValueError` for a key that is given twice."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key is given twice in one object")
    return entries


def write_lines(path: Path, records: Iterable[dict[str, Any]], mode: str) -> None:
    """Writes (`mode="w"`) or appends (`"a"`) records as JSON, one a line."""
    with open(path, mode, encoding="utf-8") as file:
        file.writelines(json.dumps(record, sort_keys=True, allow_nan=False) + "\n" for record in records)


def followed(name: str, path: Path) -> Path:
    """
    Where a file of a folder or a Hub repository really lies.

    Args:
        name (`str`): folder or repository.
        path (`Path`): of the file, which may be a link.

    Raises:
        `SMDError`: for a link that leads nowhere, or out of a folder.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise SMDError(
            f"{path.name} in '{name}' is a link that leads nowhere. Expected the file itself: copy it there."
        ) from error
    if os.path.isdir(name) and not any(real.is_relative_to(root) for root in _roots(Path(name))):
        raise SMDError(
            f"{path.name} in '{name}' is a link to a file outside that folder, which is not followed. Expected the file "
            "itself: copy it there if you trust it."
        )
    return real


def check_entries(name: str) -> None:
    """Refuses what lies in a folder and is a link out of it, or neither file nor folder; a repository of the Hub has none."""
    for path in sorted(Path(name).iterdir()) if os.path.isdir(name) else ():
        real = followed(name, path)
        # To read from a pipe would be to wait for ever.
        if not real.is_file() and not real.is_dir():
            raise SMDError(f"{path.name} in '{name}' is no file and no folder. Take it out, or get the folder again.")


def _roots(folder: Path) -> list[Path]:
    """The folders in which a local artifact's files may really lie: its own, or the store of a Hub cache's snapshot."""
    folder = folder.resolve()
    snapshots = [parent for parent in folder.parents if parent.name == "snapshots"]
    return [folder, *(parent.parent / "blobs" for parent in snapshots)]
