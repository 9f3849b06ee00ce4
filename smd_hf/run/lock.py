"""
One run at a time in an output folder.

The lock is the operating system's (`flock`) on a file in the folder, so it ends with the process that holds it, however that
ends: the file may stay, and never stands in the way of a run that is resumed.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from transformers.utils import logging

from ..errors import SMDError
from ..parallel.processes import Spread

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.get_logger(__name__)

LOCK_NAME = ".smd_hf.ledger.lock"

_held: set[int] = set()


def _let_go_in_child() -> None:
    """A process that reads images must not keep the folder locked after the run that forked it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def locked(folder: str | os.PathLike, spread: Spread, holds: bool) -> Iterator[None]:
    """
    Keeps other runs out of a folder as long as the context lasts.

    Args:
        folder (`str` or `os.PathLike`): made if need be.
        spread ([`Spread`]): the processes of this run, which all call this.
        holds (`bool`): whether this process is the one that writes there, and takes the lock for all.

    Raises:
        `SMDError`: on every process, if another run holds the lock: which process, and since when.
    """
    taken: list[int] = []
    try:
        outcomes = spread.together(lambda: _take(Path(folder), taken) if holds else None)
        for problem in outcomes:
            if problem is not None:
                raise SMDError(problem)
        yield
    finally:
        for descriptor in taken:
            _held.discard(descriptor)
            os.close(descriptor)


def _take(folder: Path, taken: list[int]) -> str | None:
    """Takes the lock and adds its descriptor to `taken`; or says who holds it."""
    if fcntl is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return (
            f"output_dir '{folder}' is in use by another run{_holder(path)}. Two runs in one folder would write over each "
            "other's files: wait until that one has ended, end it, or choose another output_dir."
        )
    except OSError as error:
        os.close(descriptor)
        logger.warning(
            f"output_dir '{folder}' is on a file system without locks ({error.strerror}): nothing keeps a second run out of it."
        )
        return None
    taken.append(descriptor)
    _held.add(descriptor)
    holder = {
        "process": os.getpid(),
        "machine": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps(holder).encode())
    return None


def _holder(path: Path) -> str:
    """Who has written its name into the lock file; nothing where it has not come to that."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f" (process {holder['process']} on {holder['machine']}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
