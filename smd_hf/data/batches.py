"""Images to score on: read, decoded and transformed once, in batches whose content depends on nothing but the data."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from transformers.utils import logging

from ..errors import SMDError
from ..models.inputs import moved, select_inputs
from .pixels import PixelCodec
from .reading import ReadAhead, WorkerProcesses, default_threads, spare_threads
from .rows import ImageCollator

logger = logging.get_logger(__name__)

STREAMED_SHARE = 0.25
"""Share of the cache reserved for batches in use and batches read ahead, if not all can be kept."""


@dataclass
class Batch:
    """
    One batch.

    Args:
        stored (dict of `str` to `torch.Tensor`): the model's inputs, each of shape `(batch, ...)`; `pixel_values` as the uint8
            that they come from, with a codec.
        labels (`torch.Tensor`): of shape `(batch, ...)`; int64 of shape `(batch,)` for classes.
        weights (`torch.Tensor`, *optional*): how much each image counts in sums over images, float64, of shape `(batch,)`. All count
            the same by default.
    """

    number: int
    stored: dict[str, torch.Tensor]
    labels: torch.Tensor
    codec: PixelCodec | None = None
    weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.stored.values()) + self.labels.nbytes

    def inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What the model takes, by name, on the device: floats in this dtype, masks, shapes and ids in their own."""
        inputs = {name: moved(tensor, device, dtype) for name, tensor in self.stored.items()}
        if self.codec is not None:
            inputs["pixel_values"] = self.codec.decode(inputs["pixel_values"]).to(dtype)
        return inputs

    def change(self, put: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Puts all tensors somewhere else, in place."""
        self.stored = {name: put(tensor) for name, tensor in self.stored.items()}
        self.labels = put(self.labels)


@dataclass(eq=False)
class ImageBatches:
    """
    A data set in batches, cached in memory up to a budget.

    Batch k begins at image k * batch_size, on any number of processes.

    Args:
        collator (`Callable`): rows to the model's inputs and `"labels"`, tensors of shape `(batch, ...)`.
        batch_size (`int`): images a batch; the last may hold fewer.
        indices (sequence of `int`, *optional*): which rows, in this order; all by default.
        cache_bytes (`int`, *optional*, defaults to 0): budget for decoded data. What fits is decoded once in a
            run, the rest each time it is needed.
        threads (`int`, *optional*): threads that decode ahead of time; one for each core, at most 8, by default. With 0, a batch
            is decoded when it is asked for.
        spare (`int`, *optional*): how many of them while the caller works; by default one for each core that torch leaves
            idle on the CPU, and at least one.
        codec ([`PixelCodec`], *optional*): keeps pixel values as uint8 where that is exact.
        device (`torch.device`, *optional*): where batches that are kept are put; in memory, pinned for a GPU, by default.
        input_names (collection of `str`, *optional*): which of the collator's columns go into the model
            ([`~models.inputs.input_names`]); all tensors but the labels by default.
        keep_labels (`bool`, *optional*, defaults to `True`): labels are kept when their batch is not. Without it, `labels` is
            zero for each image: masks would fill the memory, and a task that has them puts what it needs into its scores.
        weights (`numpy.ndarray`, *optional*): how much each image counts in sums over images and in the mean loss, float64, of shape
            `(num_images,)`. Other metrics do not look at them.
    """

    dataset: Any
    collator: Callable[[list[Any]], dict[str, torch.Tensor]]
    batch_size: int
    indices: Any = None
    cache_bytes: int = 0
    num_workers: int = 0
    codec: PixelCodec | None = None
    device: torch.device | None = None
    pin_memory: bool = False
    input_names: Collection[str] | None = None
    prefetch_factor: int | None = None
    threads: Any = None
    spare: Any = None
    keep_labels: bool = True
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        rows = range(len(self.dataset)) if self.indices is None else self.indices
        self.indices = [int(index) for index in rows]
        self.threads = default_threads() if self.threads is None else self.threads
        self.spare = spare_threads(torch.device("cpu")) if self.spare is None else self.spare
        self._repeatable = _draws_nothing(self.dataset, self.collator)
        self._draws = False
        self._kept: dict[int, Batch] = {}
        self._kept_bytes = 0
        self._labels: dict[int, np.ndarray] = {}

    @property
    def num_images(self) -> int:
        return len(self.indices)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def size_of(self, number: int) -> int:
        """How many images a batch holds."""
        return min(self.batch_size, len(self.indices) - number * self.batch_size)

    @property
    def labels(self) -> np.ndarray:
        """The labels that the collator gives, int64, of shape `(num_images,)`; reads what nothing has read yet."""
        missing = [number for number in range(len(self)) if number not in self._labels]
        with closing(self._reader(missing)) as fresh:
            for number in missing:
                self._next(number, fresh)
        return np.concatenate([self._labels[number] for number in range(len(self))])

    def add_labels(self, labels: dict[int, np.ndarray]) -> None:
        """Labels by number of the batch, which another process has read."""
        self._labels.update(labels)

    def labels_by_batch(self, numbers: Sequence[int]) -> dict[int, np.ndarray]:
        """Labels of batches that this process has read."""
        return {number: self._labels[number] for number in numbers}

    def head(self, num_images: int) -> "ImageBatches":
        """The first images as a sample that shares what is cached of them, and the remaining budget."""
        weights = None if self.weights is None else self.weights[:num_images]
        sample = replace(self, indices=self.indices[:num_images], weights=weights)
        sample._repeatable, sample._draws = self._repeatable, self._draws
        same = range(len(self) if sample.num_images == self.num_images else sample.num_images // self.batch_size)
        sample._kept = {number: batch for number, batch in self._kept.items() if number in same}
        sample._labels = {number: labels for number, labels in self._labels.items() if number in same}
        sample._kept_bytes = self._kept_bytes
        return sample

    def first_batch(self) -> Batch:
        """The first batch, to try something on: from memory if it is kept, else read, and not kept for it."""
        return next(iter(self.head(self.batch_size)))

    def groups(
        self, numbers: Sequence[int] | None = None, on_read: Callable[[], None] | None = None, eager: bool = False
    ) -> Iterator[list[Batch]]:
        """
        Batches in order, in lists that fit into memory: one list where everything is cached already.

        Other batches are read ahead while the caller works on a list. A list ends where the next batch is still being
        read, but not before it is as long as all lists before it, as each costs the caller something; so there are few.
        A list holds at least one batch. As many are read ahead as the budget allows, at least one for each thread.

        Args:
            numbers (sequence of `int`, *optional*): which batches, in increasing order; all by default.
            on_read (`Callable`, *optional*): called after each batch, of which reading may take long.
            eager (`bool`, *optional*, defaults to `False`): lists may be short: they cost the caller nothing.
        """
        numbers = range(len(self)) if numbers is None else numbers
        with closing(self._reader([number for number in numbers if number not in self._kept])) as fresh:
            group: list[Batch] = []
            # batches in earlier groups; bytes of the latest batch; bytes of those here that are not kept
            given = size = held = 0
            for number in numbers:
                left = self.cache_bytes - self._kept_bytes
                waits = number not in self._kept and not fresh.ready and (eager or len(group) >= given)
                # The caller holds the last group until it gets the next.
                full = held and number not in self._kept and 2 * (held + size) > left
                if group and (waits or full):
                    yield group
                    given += len(group)
                    group, held = [], 0
                batch = self._kept[number] if number in self._kept else self._next(number, fresh)
                if on_read is not None:
                    on_read()
                size = batch.nbytes
                all_fit = size * self.num_images <= self.cache_bytes * len(batch)
                budget = self.cache_bytes * (1 if all_fit else 1 - STREAMED_SHARE)
                if number not in self._kept and self._kept_bytes + size <= budget:
                    self._keep(batch)
                if number not in self._kept:
                    held += size
                group.append(batch)
                left = self.cache_bytes - self._kept_bytes
                ahead = left // size if all_fit else left // (2 * size) - held // size
                fresh.window = max(self.threads, ahead)
            if group:
                yield group

    def in_memory(self, numbers: Sequence[int]) -> bool:
        """Whether all these batches are kept, so that [`ImageBatches.groups`] gives one list."""
        return all(number in self._kept for number in numbers)

    def __iter__(self) -> Iterator[Batch]:
        for group in self.groups():
            yield from group

    def _keep(self, batch: Batch) -> None:
        if self.device is not None:
            batch.change(lambda tensor: tensor.to(self.device))
        self._kept[batch.number] = batch
        self._kept_bytes += batch.nbytes

    def _reader(self, numbers: Sequence[int]) -> "ReadAhead[int, Batch] | WorkerProcesses":
        """What reads these batches, in order, ahead of time."""
        if self.num_workers:
            rows = [self._rows(number) for number in numbers]
            return WorkerProcesses(self.dataset, self.collator, rows, self.num_workers, self.prefetch_factor)
        threads = 0 if self._draws else self.threads
        return ReadAhead(self._read, numbers, threads, self.spare, repeatable=self._repeatable)

    def _rows(self, number: int) -> list[int]:
        return self.indices[self._span(number)]

    def _span(self, number: int) -> slice:
        return slice(number * self.batch_size, (number + 1) * self.batch_size)

    def _read(self, number: int) -> Batch:
        """One batch; called in threads."""
        indices = self._rows(number)
        at_once = getattr(self.dataset, "__getitems__", None)
        rows = at_once(indices) if at_once else [self.dataset[index] for index in indices]
        return self._encoded(number, self.collator(rows))

    def _encoded(self, number: int, columns: Mapping[str, Any]) -> Batch:
        batch = Batch(number, select_inputs(columns, self.input_names), columns["labels"])
        if self.weights is not None:
            batch.weights = torch.from_numpy(self.weights[self._span(number)])
        if not batch.stored:
            raise SMDError(
                f"The data collator returns no input of the model: it returns {', '.join(columns)}, and the model takes "
                f"{', '.join(sorted(self.input_names or ('tensors',)))}. Return a tensor under one of these names."
            )
        if self.codec is not None and "pixel_values" in batch.stored:
            compact = self.codec.encode(batch.stored["pixel_values"])
            if compact is not None:
                batch.stored["pixel_values"], batch.codec = compact, self.codec
        return batch

    def _next(self, number: int, fresh: "ReadAhead[int, Batch] | WorkerProcesses") -> Batch:
        read = next(fresh)
        if fresh.draws and not self._draws:
            logger.warning_once(
                "Random numbers are drawn where images are read (an augmentation, perhaps). So that a run can be repeated, they are "
                "read by one thread, in order, and not ahead of scoring. Use a transform without randomness, by which all children "
                "are compared on the same images too."
            )
        self._draws, self._repeatable = fresh.draws or self._draws, True
        # Worker processes return columns, not a Batch, to send less through the pipe.
        batch = read if isinstance(read, Batch) else self._encoded(number, read)
        self._labels[number] = batch.labels.numpy() if self.keep_labels else np.zeros(len(batch), dtype=np.int64)
        if self.pin_memory:
            batch.stored = {name: tensor.pin_memory() for name, tensor in batch.stored.items()}
        return batch


def _draws_nothing(dataset: Any, collator: Callable) -> bool:
    """Whether only code of this package and of `datasets` makes the batches; a user's may draw random numbers."""
    plain = isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom"
    return plain and isinstance(collator, ImageCollator)
