"""What is known of a scoring call before it begins, and where its cells go once they are scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..data.batches import ImageBatches
from .scores import Cell


@dataclass
class ScoredCell:
    """
    One cell with its place in a scoring call.

    Args:
        variant (`int`), batch (`int`): which.
        cell ([`Cell`]): what was found.
        labels (`numpy.ndarray`, *optional*): of the batch, int64, with the first of its cells.
    """

    variant: int
    batch: int
    cell: Cell
    labels: np.ndarray | None = None


WriteCells = Callable[[list[ScoredCell], float, int | None, np.ndarray | None], None]
"""Stores cells, what they cost, and of a whole segment its number and sums."""


@dataclass
class Call:
    """
    One scoring call: what is known of it already, and where the rest is written.

    Args:
        store (`Callable`, *optional*): stores cells; nothing is stored without it.

    Attributes:
        cells (dict of (variant, batch) to [`Cell`]), labels (dict of batch to `numpy.ndarray`), totals (dict of segment to
            `numpy.ndarray`), passes (`float`): what is known, and what it cost.
    """

    store: WriteCells | None = None
    cells: dict[tuple[int, int], Cell] = field(default_factory=dict)
    labels: dict[int, np.ndarray] = field(default_factory=dict)
    totals: dict[int, np.ndarray] = field(default_factory=dict)
    passes: float = 0.0
    _labelled: set[int] = field(default_factory=set)

    def write(
        self, cells: Sequence[ScoredCell], passes: float, segment: int | None = None, sums: np.ndarray | None = None
    ) -> None:
        """Stores cells that belong together, and what they cost; of a segment, with its sums. They are safe on return."""
        if self.store is None:
            return
        for scored in cells:
            if scored.batch in self._labelled or scored.batch in self.labels:
                scored.labels = None
            self._labelled.add(scored.batch)
        self.store(list(cells), passes, segment, sums)


class Recorder(Protocol):
    """Remembers what was scored: the ledger of a run."""

    def call(
        self,
        num_variants: int,
        batches: ImageBatches,
        numbers: range,
        width: int | None,
        shape: tuple[int, ...] | None,
    ) -> Call:
        """The next scoring call, with what is known of it; see [`Ledger.call`]."""
        ...
