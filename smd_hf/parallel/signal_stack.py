"""The stack on which Python's signal handlers run, kept as it is while a library compiles."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class _Stack(ctypes.Structure):
    _fields_ = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """
    Restores the thread's alternate signal stack after the context.

    OpenVINO leaves one of its own behind, of 11,568 bytes, when it compiles a model. Python runs its handlers there, and the
    next Ctrl-C would end in a segmentation fault.
    """
    before = _Stack()
    known = False
    with suppress(OSError, AttributeError, TypeError):  # where there is no sigaltstack
        libc = ctypes.CDLL(None)
        known = libc.sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            libc.sigaltstack(ctypes.byref(before), None)
