"""Writes files atomically, so that a reader never sees half a file, and checks files that come from elsewhere."""

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from .errors import SMDError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_output_dir(output_dir: str | os.PathLike) -> None:
    """Creates `output_dir` if it does not exist. Raises [`SMDError`] if it is not writable."""
    try:
        os.makedirs(output_dir, exist_ok=True)
        probe = Path(output_dir) / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SMDError(
            f"output_dir '{output_dir}' cannot be written to ({error.strerror}). Choose a folder that you own, on a disk with free "
            "space."
        ) from error


@contextmanager
def explain_full_disk(folder: str | os.PathLike) -> Iterator[None]:
    """Turns any library's error about a full disk into one that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else _os_error(str(error))
        if number not in NO_ROOM:
            raise
        raise SMDError(
            f"Nothing more can be written to output_dir '{folder}' ({os.strerror(number)}). Files that were complete are still "
            "there: free some space, then resume the run."
        ) from error


def _os_error(text: str) -> int | None:
    """The error number in the message of a library that is written in Rust."""
    found = re.search(r"\(os error (\d+)\)", text)
    return None if found is None else int(found.group(1))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file, which replaces the other when the context has ended without an error."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a temporary file, then renames it: after a crash, the old file or the new one is there."""
    with _replacing(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes arrays as safetensors: a temporary file, which is then renamed."""
    with _replacing(path) as unfinished:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, unfinished, metadata)


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON with sorted keys."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json_object(path: Path) -> dict[str, Any] | None:
    """
    Reads a JSON object; `None` if there is no such file.

    Raises:
        `SMDError`: if the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SMDError(
            f"'{path}' cannot be read as JSON ({type(error).__name__}). Write it again, or remove it."
        ) from error
    if not isinstance(value, dict):
        raise SMDError(f"'{path}' holds {type(value).__name__}; expected a JSON object. Write it again, or remove it.")
    return value


def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, for `object_pairs_hook`; `ValueError` for a key that is given twice."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key is given twice in one object")
    return entries


def write_lines(path: Path, records: Iterable[dict[str, Any]], mode: str) -> None:
    """Writes (`mode="w"`) or appends (`mode="a"`) records as JSON, one per line."""
    with open(path, mode, encoding="utf-8") as file:
        file.writelines(json.dumps(record, sort_keys=True, allow_nan=False) + "\n" for record in records)


def followed(name: str, path: Path) -> Path:
    """Resolves the path of a file in a folder or a Hub repository."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise SMDError(
            f"{path.name} in '{name}' is a broken link. Expected the file itself: copy it there."
        ) from error
    if os.path.isdir(name) and not any(real.is_relative_to(root) for root in _roots(Path(name))):
        raise SMDError(
            f"{path.name} in '{name}' is a link to a file outside that folder. Such links are not followed. Expected the file "
            "itself: copy it there if you trust it."
        )
    return real


def check_entries(name: str) -> None:
    """
    Raises [`SMDError`] if a folder has a link that leads out of it, or an entry that is neither file nor folder.

    Does nothing for a Hub repository.
    """
    for path in sorted(Path(name).iterdir()) if os.path.isdir(name) else ():
        real = followed(name, path)
        # Reading from a pipe could block forever.
        if not real.is_file() and not real.is_dir():
            raise SMDError(
                f"{path.name} in '{name}' is not a file or folder. Remove it, or download the folder again."
            )


def _roots(folder: Path) -> list[Path]:
    """The folders that links in a local artifact may lead to: the artifact itself, and the blobs of a Hub cache."""
    folder = folder.resolve()
    snapshots = [parent for parent in folder.parents if parent.name == "snapshots"]
    return [folder, *(parent.parent / "blobs" for parent in snapshots)]
