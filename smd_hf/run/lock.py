"""
One run at a time in an output folder.

The operating system locks a file in the folder, so the lock ends with the process that holds it, however that ends. The file
may stay. It does not keep the run from being resumed.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout
from transformers.utils import logging

from ..errors import SMDError
from ..files import write_json

logger = logging.get_logger(__name__)

LOCK_NAME = ".smd_hf.ledger.lock"
HOLDER_NAME = ".smd_hf.ledger.holder"
"""A separate file, because nobody else can read a locked file on Windows."""


@contextmanager
def locked(
    folder: str | os.PathLike, gather: Callable[[Callable[[], str | None]], list[str | None]], holds: bool
) -> Iterator[None]:
    """
    Within the context, no other run can use the folder.

    Args:
        folder (`str` or `os.PathLike`): created if there is none.
        gather (`Callable`): [`Processes.gather`] of this run. All of its processes call this.
        holds (`bool`): whether this process is the one that writes there, and takes the lock for all.

    Raises:
        `SMDError`: on every process, if another run holds the lock: which process, and since when.
    """
    folder = Path(folder)
    # A lock that is only a file would outlive a process that is killed.
    lock = FileLock(folder / LOCK_NAME, fallback_to_soft=False)
    try:
        for problem in gather(lambda: _take(lock, folder) if holds else None):
            if problem is not None:
                raise SMDError(problem)
        yield
    finally:
        if lock.is_locked:
            (folder / HOLDER_NAME).unlink(missing_ok=True)
            lock.release()


def is_held(folder: str | os.PathLike) -> bool:
    """Whether a run is at work in a folder. Creates no file."""
    path = Path(folder)
    if not (path / HOLDER_NAME).is_file() or not (path / LOCK_NAME).is_file():
        return False
    lock = FileLock(path / LOCK_NAME, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _take(lock: FileLock, folder: Path) -> str | None:
    """Takes the lock and writes down who holds it, or returns an error that says who does."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return (
            f"output_dir '{folder}' is in use by another run{_holder(folder)}. Two runs in one folder would write over each "
            "other's files: wait until that one has ended, end it, or choose another output_dir."
        )
    except OSError as error:
        logger.warning(
            f"output_dir '{folder}' is on a file system without locks ({error.strerror}): nothing keeps a second run out of it."
        )
        return None
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    write_json(folder / HOLDER_NAME, {"process": os.getpid(), "machine": socket.gethostname(), "since": since})
    return None


def _holder(folder: Path) -> str:
    """Who holds the lock, as far as it is written down."""
    try:
        holder = json.loads((folder / HOLDER_NAME).read_text(encoding="utf-8"))
        return f" (process {holder['process']} on {holder['machine']}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
