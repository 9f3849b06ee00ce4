"""
The lines of a ledger: each is JSON with a checksum at its end. Lines are only appended.

A process that is killed leaves complete lines, and at most one torn line at the end, which is dropped. Any other damaged line is
an error that names file and line, so that no run continues with wrong scores. As in Python's JSON, NaN and infinity are numbers.
"""

import base64
import binascii
import json
import os
import stat
import time
import zlib
from collections.abc import Iterator, Mapping, Set
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SMDError
from ..files import without_repetition
from ..messages import one_line

MAX_LINE_BYTES = 2**30
"""A longer line is refused before it is read."""

SYNC_SECONDS = 1.0
"""Lines are flushed from the operating system to the disk no more often than this."""

SYNC_SHARE = 0.01
"""Waiting for the disk takes at most about this share of the time."""


def to_line(entry: Mapping[str, Any]) -> bytes:
    """A line of the ledger, with its end."""
    text = json.dumps(entry, separators=(",", ":")).encode()
    return text[:-1] + b',"crc":%d}\n' % zlib.crc32(text)


def from_line(line: bytes) -> dict[str, Any]:
    """
    The entry of a line.

    Raises:
        `ValueError`: if it is not a line as [`to_line`] makes it.
    """
    text = line.rpartition(b',"crc":')[0] + b"}"
    if line != text[:-1] + b',"crc":%d}\n' % zlib.crc32(text):
        raise ValueError("its checksum is wrong")
    try:
        entry = json.loads(text, object_pairs_hook=without_repetition)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(entry, dict):
        raise ValueError("it is no JSON object")
    return entry


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """
    The entries of a file with their line numbers, from 1. A torn last line is left out. Without a file, there are no entries.

    Raises:
        `SMDError`: for anything but such lines.
    """
    if not _is_plain_file(path):
        return
    with open(path, "rb") as file:
        for number in count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if len(line) > MAX_LINE_BYTES:
                raise damaged(path, number, f"it is longer than {MAX_LINE_BYTES} bytes")
            if not line.endswith(b"\n"):
                return
            try:
                entry = from_line(line)
            except ValueError as error:
                raise damaged(path, number, str(error)) from None
            yield number, entry


def _is_plain_file(path: Path) -> bool:
    """Whether there is a file. Raises an error for a link or a device."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise SMDError(
            f"'{path}' is not a plain file, as a ledger is made of. Remove it, and what was in it is scored again."
        )
    return True


def damaged(path: Path, number: int, what: str) -> SMDError:
    """The error for a damaged line."""
    return SMDError(
        f"Line {number} of '{path}' is not one that a run has written: {one_line(what)}. The file is damaged or was edited. "
        "Remove it, and what it held is scored again."
    )


class LineWriter:
    """
    Appends lines to a file of this process. A torn line at the end is cut off first.

    Raises:
        `OSError`: if the disk is full. What was written before is still there.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _is_plain_file(path)
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        _cut_torn_line(self._file)
        self._next_sync = time.monotonic() + SYNC_SECONDS

    def write(self, entry: Mapping[str, Any]) -> None:
        """Appends one line. It survives the end of this process at once, and that of the machine soon."""
        line = memoryview(to_line(entry))
        while line:
            line = line[self._file.write(line) :]
        if time.monotonic() >= self._next_sync:
            self.sync()

    def sync(self) -> None:
        """Waits until all lines are on the disk."""
        start = time.monotonic()
        os.fsync(self._file.fileno())
        end = time.monotonic()
        self._next_sync = end + max(SYNC_SECONDS, (end - start) / SYNC_SHARE)

    def close(self) -> None:
        self._file.close()


def _cut_torn_line(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 2**16)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            end = start + place + 1
            break
        end = start
    file.truncate(end)


# What is in a line: values of the kinds that they should be, or a ValueError.


def integer(entry: Mapping[str, Any], key: str, below: int) -> int:
    """An integer from 0 that is less than `below`."""
    value = entry[key]
    if type(value) is not int or not 0 <= value < below:
        raise ValueError(f"its {key} is not an integer from 0 to {below - 1}")
    return value


def number(entry: Mapping[str, Any], key: str) -> float:
    """A floating-point number, NaN and infinity among them."""
    value = entry[key]
    if type(value) is not float:
        raise ValueError(f"its {key} is not a floating-point number")
    return value


def check_keys(entry: Any, needed: set[str], optional: Set[str] = frozenset()) -> None:
    """Raises `ValueError` unless this is an object with these keys and no others."""
    if not isinstance(entry, dict) or not needed <= entry.keys() <= needed | optional:
        raise ValueError(f"expected the keys {', '.join(sorted(needed))}")


def to_text(array: np.ndarray) -> str:
    """The bytes of an array in base64, little-endian."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def from_text(text: Any, dtype: str, size: int) -> np.ndarray:
    """The array of `size` numbers again."""
    try:
        content = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError("it does not hold base64 where it should") from None
    kind = np.dtype(dtype).newbyteorder("<")
    if len(content) != size * kind.itemsize:
        raise ValueError(f"it holds {len(content)} bytes where {size * kind.itemsize} were expected")
    return np.frombuffer(content, kind).astype(dtype)
