"""
PyTorch's threads, held back where they would do harm: in fits that are small, and while an engine with threads of its own runs the passes.

libgomp's threads wait for PyTorch's next operation in a loop, some milliseconds long, on the cores that the engine needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_before: list[int] = []


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Within the context, PyTorch's operations take one thread, if that is wanted."""
    if not wanted:
        yield
        return
    _before.append(torch.get_num_threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(_before.pop())


def num_threads() -> int:
    """How many threads PyTorch was given, also within [`one_thread`]."""
    return _before[0] if _before else torch.get_num_threads()
