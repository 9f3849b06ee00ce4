"""Images to score on: read, decoded and transformed once, in batches whose content depends on nothing but the data."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader


@dataclass
class Batch:
    """
    One batch.

    Args:
        number (`int`): its place among the batches.
        start (`int`): the place of its first image among the images.
        pixel_values (`torch.Tensor`): float, of shape `(batch, channels, height, width)`.
        labels (`torch.Tensor`): int64, of shape `(batch,)`.
    """

    number: int
    start: int
    pixel_values: torch.Tensor
    labels: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.pixel_values.nbytes + self.labels.nbytes


class ImageBatches:
    """
    A data set in batches, kept in memory as far as a budget allows.

    Batch k holds images k * batch_size and on, in the order given, on any number of processes.

    Args:
        dataset: anything with `len()` and rows by index.
        collator (`Callable`): rows to `{"pixel_values", "labels"}`.
        batch_size (`int`): images a batch; the last may hold fewer.
        indices (sequence of `int`, *optional*): the rows that count, in order; all by default.
        cache_bytes (`int`, *optional*, defaults to 0): how much decoded data may stay in memory. Where all fits, images are
            decoded once in a run; else once a generation, in groups of this size.
        num_workers (`int`, *optional*, defaults to 0): processes that decode.
    """

    def __init__(
        self,
        dataset: Any,
        collator: Callable[[list[Any]], dict[str, torch.Tensor]],
        batch_size: int,
        indices: Sequence[int] | np.ndarray | None = None,
        cache_bytes: int = 0,
        num_workers: int = 0,
    ):
        self.dataset = dataset
        self.collator = collator
        self.batch_size = batch_size
        self.indices = list(range(len(dataset))) if indices is None else [int(index) for index in indices]
        self.cache_bytes = cache_bytes
        self.num_workers = num_workers
        self._kept: list[Batch] | None = None
        self._labels: dict[int, np.ndarray] = {}

    @property
    def labels(self) -> np.ndarray:
        """The labels that the collator gives, int64, of shape `(num_images,)`; reads the data if nothing has yet."""
        if len(self._labels) < len(self):
            for _ in self:
                pass
        return np.concatenate([self._labels[number] for number in range(len(self))])

    @property
    def num_images(self) -> int:
        return len(self.indices)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def head(self, num_images: int) -> "ImageBatches":
        """The first images alone, with the same budget: a sample for a cheap look."""
        return ImageBatches(
            self.dataset,
            self.collator,
            self.batch_size,
            self.indices[:num_images],
            self.cache_bytes,
            self.num_workers,
        )

    def groups(self) -> Iterator[list[Batch]]:
        """
        All batches in order, in lists that are in memory together: one list where the budget holds everything.

        A list holds one batch at the least, whatever the budget.
        """
        if self._kept is not None:
            yield self._kept
            return
        group: list[Batch] = []
        held, everything = 0, True
        for batch in self._read():
            if group and held + batch.nbytes > self.cache_bytes:
                everything = False
                yield group
                group, held = [], 0
            group.append(batch)
            held += batch.nbytes
        if everything and held <= self.cache_bytes:
            self._kept = group
        yield group

    def __iter__(self) -> Iterator[Batch]:
        for group in self.groups():
            yield from group

    def release(self) -> None:
        """Frees what is kept in memory."""
        self._kept = None

    def _read(self) -> Iterator[Batch]:
        rows = [
            self.indices[start : start + self.batch_size] for start in range(0, len(self.indices), self.batch_size)
        ]
        loader = DataLoader(self.dataset, batch_sampler=rows, collate_fn=self.collator, num_workers=self.num_workers)
        for number, columns in enumerate(loader):
            self._labels[number] = columns["labels"].numpy()
            yield Batch(number, number * self.batch_size, columns["pixel_values"], columns["labels"])
