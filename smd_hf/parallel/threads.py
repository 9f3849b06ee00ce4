"""
PyTorch's threads, held back while an engine with threads of its own runs the passes.

libgomp's threads wait for PyTorch's next operation in a loop, some milliseconds long, on the cores that the engine needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_outside: list[int] = []


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Within the context, PyTorch's operations take one thread, if that is wanted."""
    if not wanted:
        yield
        return
    before = torch.get_num_threads()
    _outside.append(before)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _outside.pop()
        torch.set_num_threads(before)


def num_threads() -> int:
    """How many threads PyTorch was given, also within [`one_thread`]."""
    return _outside[0] if _outside else torch.get_num_threads()
