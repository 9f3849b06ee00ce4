"""One process's part of a scoring call: which cells are left to it, and what it has found."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..data.batches import Batch, ImageBatches
from ..parallel.processes import segment
from .reading import Reading
from .record import Call, ScoredCell
from .runtimes.protocol import Runtime
from .scores import Cell, Score
from .sums import Tap
from .work import CallWork


@dataclass(eq=False)
class Job:
    """
    What one process does of a scoring call.

    Args:
        wanted (mapping of `int` to collection of `int`): the variants to score on each batch, as [`Processes.share`] gives them.
        call ([`Call`]): what is known already, and where the rest is written.
        on_scored (`Callable`, *optional*): told of each variant that is done, with its score as far as this process knows it.
        work ([`CallWork`], *optional*): told of each variant that is scored on a batch, for progress bars.
        reading ([`Reading`]): makes cells of predictions.

    Attributes:
        scores (dict of `int` to [`Score`]): what this process has scored.
        passes (`float`): what that cost, in images of full passes.
    """

    variants: Sequence[Any]
    batches: ImageBatches
    wanted: Mapping[int, Collection[int]]
    keep_logits: bool
    call: Call
    tap: Tap | None
    on_scored: Callable[[int, Score], None] | None
    work: CallWork | None
    reading: Reading

    def __post_init__(self) -> None:
        self.numbers = sorted(set().union(*set(self.wanted.values())))
        self.scores = {number: Score() for number in self.numbers}
        self.passes = 0.0
        self._unwritten = 0.0
        self._last = {number: batch for batch in self.wanted for number in self.wanted[batch]}

    def on(self, batches: Sequence[Batch]) -> list[int]:
        """The variants to score on any of these batches."""
        return sorted(set().union(*{self.wanted[batch.number] for batch in batches}))

    def by_start(self, batches: Sequence[Batch], runtime: Runtime) -> list[int]:
        """
        The variants to score on these batches, early starts first, those of one start in a row: in a compiled runtime each start is a
        graph of its own, and takes the memory of the one before.
        """
        return sorted(self.on(batches), key=lambda number: -runtime.suffix_share(self.variants[number].changed or ()))

    def labels(self) -> dict[int, np.ndarray]:
        """By batch, of those that this process has read."""
        return self.batches.labels_by_batch(list(self.wanted))

    def recorded(self, batch: Batch) -> None:
        """A whole pass, which scores nothing by itself."""
        self._spend(len(batch))
        if self.work is not None:
            self.work.recorded(batch)

    def _spend(self, passes: float) -> None:
        self.passes += passes
        self._unwritten += passes

    def found(self, number: int, batch: Batch, logits: torch.Tensor, passes: float) -> None:
        """A variant's logits on a batch, and what they cost."""
        self._spend(passes)
        cell = self.reading.cell(logits, batch.labels, self.keep_logits)
        if batch.weights is not None:
            cell = cell.weighing(logits, batch.labels, batch.weights)
        self.scores[number].cells[batch.number] = cell
        if self.tap is None:
            self._write([self._scored(number, batch.number)])
        if self.work is not None:
            self.work.scored(number, batch)

    def close(self, batch: Batch) -> None:
        """All variants have been through a batch, of which sums are made."""
        assert self.tap is not None
        place = self.tap.close(batch)
        if place is not None:
            inside = [batch for batch in self.wanted if segment(batch, self.tap.numbers) == place]
            cells = [self._scored(number, batch) for number in self.numbers for batch in inside]
            self._write(cells, place, self.tap.totals[place])

    def report(self, number: int, batches: Sequence[Batch]) -> None:
        """Says that a variant is done, if it has none but these batches left."""
        if self.on_scored is not None and batches[0].number <= self._last[number] <= batches[-1].number:
            self.on_scored(number, self._score(number, self.scores[number].cells))

    def report_known(self) -> None:
        """The same of the variants that nothing is left to do of for any process."""
        if self.on_scored is not None:
            for number in sorted(set(self._known).difference(self.numbers)):
                self.on_scored(number, self._score(number, {}))

    @cached_property
    def _known(self) -> dict[int, dict[int, Cell]]:
        """What was scored before this call, by variant."""
        known: dict[int, dict[int, Cell]] = {}
        for (number, batch), cell in self.call.cells.items():
            known.setdefault(number, {})[batch] = cell
        return known

    def _score(self, number: int, own: Mapping[int, Cell]) -> Score:
        return Score(self._known.get(number, {}) | dict(own))

    def _scored(self, number: int, batch: int) -> ScoredCell:
        [labels] = self.batches.labels_by_batch([batch]).values()
        return ScoredCell(number, batch, self.scores[number].cells[batch], labels)

    def _write(self, cells: list[ScoredCell], place: int | None = None, sums: np.ndarray | None = None) -> None:
        self.call.write(cells, self._unwritten, place, sums)
        self._unwritten = 0.0
