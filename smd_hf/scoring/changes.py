"""Changes of weights, put into a model and taken out again to the bit: by a copy, never by subtraction."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from ..remote_code.members_smd_ensemble import exchange

Change = tuple[torch.Tensor | None, torch.Tensor]
"""Flat indices (`None` for the whole tensor) and the new values there, as [`exchange`] takes them."""


MakeChanges = Callable[[], Iterable[tuple[str, Change]]]


@contextmanager
def applied(parameters: Mapping[str, torch.Tensor], changes: Iterable[tuple[str, Change]]) -> Iterator[set[str]]:
    """
    Puts changes into the model for as long as the context lasts, then the saved coordinates back, also after an error.

    Args:
        changes (iterable of (name, [`Change`])): what to put in.

    Yields:
        `set[str]`: the names of the parameters that are changed.
    """
    saved: list[tuple[str, Change]] = []
    try:
        for name, (indices, values) in changes:
            saved.append((name, (indices, exchange(parameters[name], indices, values))))
        yield {name for name, _ in saved}
    finally:
        for name, (indices, before) in reversed(saved):
            exchange(parameters[name], indices, before)


def commit(parameters: Mapping[str, torch.Tensor], changes: Iterable[tuple[str, Change]]) -> list[tuple[str, Change]]:
    """Writes changes into the model permanently. Returns the changes that undo them."""
    return [(name, (indices, exchange(parameters[name], indices, values))) for name, (indices, values) in changes]
