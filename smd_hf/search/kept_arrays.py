"""Arrays that all children of a cut take their share of, kept between children as far as memory allows."""

from collections.abc import Callable, Hashable

import numpy as np

KEPT_BYTES = 2**26
"""The most that is kept of the masks, and of the noise: 64 MiB, or 16.8 million coordinates."""


class KeptArrays:
    """
    Keeps arrays of one key at a time, by tensor: the first ones that fit into `limit` bytes, and the last one that was asked for.

    Args:
        limit (`int`, *optional*, defaults to `KEPT_BYTES`): the most bytes to keep, beside the last array.
    """

    def __init__(self, limit: int = KEPT_BYTES):
        self.limit = limit
        self._key: Hashable = None
        self._arrays: dict[int, np.ndarray] = {}
        self._bytes = 0
        self._last: tuple[int, np.ndarray] | None = None

    def get(self, key: Hashable, tensor: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of a tensor, made if it was not kept. An array of another key drops what was kept."""
        if key != self._key:
            self._key, self._arrays, self._bytes, self._last = key, {}, 0, None
        if tensor in self._arrays:
            return self._arrays[tensor]
        if self._last is not None and self._last[0] == tensor:
            return self._last[1]
        array = make()
        if self._bytes + array.nbytes <= self.limit:
            self._arrays[tensor] = array
            self._bytes += array.nbytes
        else:
            self._last = (tensor, array)
        return array
