"""What is summed over batches from the logits of all variants, by segments of the data."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from ..data.batches import Batch
from ..parallel.processes import segment
from .reading import Reading

TAPPED_BYTES = 2**27
"""Memory for the logits of all variants from which sums over batches are made."""

PART_SECONDS = 60.0
"""All variants are put in once for about so much work, or for a segment where that takes longer: it is lost when a run ends."""


def device_of_sums(device: torch.device) -> torch.device:
    """Where sums in float64 are taken of numbers on this device: there, but on the CPU for MPS, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


class BatchSums(Protocol):
    """
    Something summed over batches: called with the logits of all variants, the labels of one batch, and the weights of its images.

    Attributes:
        shape (tuple of `int`): of what it returns, float64.
        total (`numpy.ndarray`, *optional*): the sum, once there is one.
    """

    shape: tuple[int, ...]
    total: np.ndarray | None

    def __call__(
        self, logits: Sequence[torch.Tensor], labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> np.ndarray: ...


@dataclass(eq=False)
class Tap:
    """
    Collects the logits of all variants on one batch, and adds up what is made of them by segments of the data.

    Args:
        reading ([`Reading`], *optional*): says which predictions are summed. Defaults to the logits of classification.
    """

    sums: BatchSums
    numbers: range
    reading: Reading
    logits: dict[int, dict[int, torch.Tensor]] = field(default_factory=dict, init=False)
    totals: dict[int, np.ndarray] = field(default_factory=dict, init=False)
    _at_a_time: int = field(default=1, init=False)

    def add(self, number: int, batch: Batch, logits: torch.Tensor) -> None:
        """One variant has been through the batch."""
        self.logits.setdefault(batch.number, {})[number] = self.reading.sampled(logits, batch)

    def close(self, batch: Batch) -> int | None:
        """Every variant has been through the batch; returns its segment if that has been closed with it."""
        by_variant = self.logits.pop(batch.number)
        logits = [by_variant[number] for number in sorted(by_variant)]
        labels = self.reading.sampled_labels(batch).to(logits[0].device)
        part, place = self.sums(logits, labels, batch.weights), segment(batch.number, self.numbers)
        self.totals[place] = self.totals[place] + part if place in self.totals else part
        return place if self._ends_segment(batch) else None

    def _ends_segment(self, batch: Batch) -> bool:
        following = batch.number + 1
        return following not in self.numbers or segment(following, self.numbers) != segment(batch.number, self.numbers)

    def parts(self, group: list[Batch], most: int) -> Iterator[list[Batch]]:
        """
        The batches in lists that end with a segment: for `PART_SECONDS`, by the time that the last took, or for one segment.

        Args:
            group (list of [`Batch`]): in increasing order.
            most (`int`): as many batches a list at the most, whether a segment ends there or not.
        """
        start = 0
        while start < len(group):
            end = min(start + max(1, self._at_a_time), start + most, len(group))
            while end < min(start + most, len(group)) and not self._ends_segment(group[end - 1]):
                end += 1
            began = time.monotonic()
            yield group[start:end]
            seconds = max(time.monotonic() - began, 1e-9)
            self._at_a_time = int(min(PART_SECONDS / seconds * (end - start), len(self.numbers)))
            start = end
