"""
Memory that a forward pass frees on the CPU is kept for the next one.

The C library of Linux gives large blocks back to the system when they are freed. The next pass then begins with pages that the system
has to clear. On virtual machines, a convolutional network at 224 pixels can spend more than half of its time on that.
"""

import ctypes
import os
import platform
from functools import cache

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of the two settings in `malloc.h`."""

KEPT_BYTES = 2**30
"""Blocks up to this size are kept, and as much free memory in all."""


@cache
def keep_freed_memory() -> bool:
    """
    Has the C library keep up to a GiB of freed memory, for this process and from now on.

    Returns:
        `bool`: whether it does. `False` for another C library than glibc, and where the environment sets its memory already
        (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`, `GLIBC_TUNABLES`, ...).
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(setting, KEPT_BYTES) for setting in (MMAP_THRESHOLD, TRIM_THRESHOLD))


def give_back_freed_memory() -> None:
    """
    Gives what is free to the system, after passes of another kind than those that follow.

    Blocks of other sizes leave holes that the next passes cannot fill: kept as well, they add up to several times what a pass needs.
    Does nothing where [`keep_freed_memory`] has the C library keep nothing.
    """
    if keep_freed_memory():
        ctypes.CDLL(None).malloc_trim(0)
