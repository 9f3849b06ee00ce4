"""
Memory that a forward pass frees on the CPU is kept for the next one.

The C library of Linux gives large blocks back to the system when they are freed. The next pass then begins with pages that the system
has to clear. On virtual machines, a convolutional network at 224 pixels can spend more than half of its time on that.
"""

import ctypes
import os
import platform
from functools import cache

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of the two settings in `malloc.h`."""

KEPT_BYTES = 2**30
"""Blocks up to this size are kept, and as much free memory in all."""

GIVE_BACK_AFTER = 32
"""
Images. Given back after each batch of 8 images, the pages that the next batch needs anew took a fifth of the time of a generation of an
EfficientNet-Lite0 in OpenVINO; with batches of 32, nothing to speak of.
"""


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


class FreedMemory:
    """
    What passes free on a device. On a CPU, it is kept, and given to the system from time to time.

    Blocks of other sizes leave holes that the next passes cannot fill: kept as well, they add up to several times what a pass needs.
    Nothing is given back where [`keep_freed_memory`] has the C library keep nothing.
    """

    def __init__(self, device: torch.device):
        self._kept = device.type == "cpu" and keep_freed_memory()
        self._images = 0

    def after(self, images: int) -> None:
        """Gives it back if passes over enough images have left holes. Called after each batch of passes of several kinds."""
        self._images += images
        if self._images >= GIVE_BACK_AFTER:
            self.give_back()

    def give_back(self) -> None:
        """Gives it back, before passes of another kind."""
        self._images = 0
        if self._kept:
            ctypes.CDLL(None).malloc_trim(0)
