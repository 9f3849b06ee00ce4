"""Images to score on: read, decoded and transformed once, in batches whose content depends on nothing but the data."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..errors import SMDError
from ..models.inputs import moved, select_inputs
from .pixels import PixelCodec

STREAMED_SHARE = 0.25
"""Share of the cache that is for batches on their way, where not all can be kept: those in use, and those that come next."""


@dataclass
class Batch:
    """
    One batch.

    Args:
        number (`int`): its place among the batches.
        stored (dict of `str` to `torch.Tensor`): the model's inputs, each of shape `(batch, ...)`; `pixel_values` as the uint8
            that they come from, where there is a codec.
        labels (`torch.Tensor`): of shape `(batch, ...)`; int64 of shape `(batch,)` for classes.
        codec ([`PixelCodec`], *optional*): makes `pixel_values` of uint8.
    """

    number: int
    stored: dict[str, torch.Tensor]
    labels: torch.Tensor
    codec: PixelCodec | None = None

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


class ImageBatches:
    """
    A data set in batches, kept in memory as far as a budget allows.

    Batch k holds images k * batch_size and on, in the order given, on any number of processes.

    Args:
        dataset: anything with `len()` and rows by index.
        collator (`Callable`): rows to the model's inputs and `"labels"`, tensors of shape `(batch, ...)`.
        batch_size (`int`): images a batch; the last may hold fewer.
        indices (sequence of `int`, *optional*): the rows that count, in order; all by default.
        cache_bytes (`int`, *optional*, defaults to 0): how much decoded data may be in memory. What fits is decoded once in a
            run, the rest once each time that it is asked for.
        num_workers (`int`, *optional*, defaults to 0): processes that decode.
        codec ([`PixelCodec`], *optional*): keeps pixel values as uint8 where that is exact.
        device (`torch.device`, *optional*): where batches that are kept are put; in memory, pinned for a GPU, by default.
        pin_memory (`bool`, *optional*, defaults to `False`): page-locked memory, from which copies to a GPU overlap.
        input_names (collection of `str`, *optional*): which of the collator's columns go into the model
            ([`~models.inputs.input_names`]); all tensors but the labels by default.
    """

    def __init__(
        self,
        dataset: Any,
        collator: Callable[[list[Any]], dict[str, torch.Tensor]],
        batch_size: int,
        indices: Sequence[int] | np.ndarray | None = None,
        cache_bytes: int = 0,
        num_workers: int = 0,
        codec: PixelCodec | None = None,
        device: torch.device | None = None,
        pin_memory: bool = False,
        input_names: Collection[str] | None = None,
    ):
        self.dataset = dataset
        self.collator = collator
        self.batch_size = batch_size
        self.indices = list(range(len(dataset))) if indices is None else [int(index) for index in indices]
        self.cache_bytes = cache_bytes
        self.num_workers = num_workers
        self.codec = codec
        self.device = device
        self.pin_memory = pin_memory
        self.input_names = input_names
        self._kept: dict[int, Batch] = {}
        self._kept_bytes = 0
        self._labels: dict[int, np.ndarray] = {}

    @property
    def num_images(self) -> int:
        return len(self.indices)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    @property
    def labels(self) -> np.ndarray:
        """The labels that the collator gives, int64, of shape `(num_images,)`; reads what nothing has read yet."""
        missing = [number for number in range(len(self)) if number not in self._labels]
        for _ in self._read(missing):
            pass
        return np.concatenate([self._labels[number] for number in range(len(self))])

    def add_labels(self, labels: dict[int, np.ndarray]) -> None:
        """Labels by number of the batch, which another process has read."""
        self._labels.update(labels)

    def labels_by_batch(self, numbers: Sequence[int]) -> dict[int, np.ndarray]:
        """Labels of batches that this process has read."""
        return {number: self._labels[number] for number in numbers}

    def head(self, num_images: int) -> "ImageBatches":
        """The first images alone, a sample for a cheap look: with what is kept of them, and what is left of the budget."""
        sample = ImageBatches(
            self.dataset,
            self.collator,
            self.batch_size,
            self.indices[:num_images],
            self.cache_bytes,
            self.num_workers,
            self.codec,
            self.device,
            self.pin_memory,
            self.input_names,
        )
        same = range(len(self) if sample.num_images == self.num_images else sample.num_images // self.batch_size)
        sample._kept = {number: batch for number, batch in self._kept.items() if number in same}
        sample._labels = {number: labels for number, labels in self._labels.items() if number in same}
        sample._kept_bytes = self._kept_bytes
        return sample

    def groups(
        self, numbers: Sequence[int] | None = None, on_read: Callable[[], None] | None = None
    ) -> Iterator[list[Batch]]:
        """
        Batches in order, in lists that are in memory together: one list where the budget holds everything.

        A list holds one batch at the least, whatever the budget.

        Args:
            numbers (sequence of `int`, *optional*): which batches, in increasing order; all by default.
            on_read (`Callable`, *optional*): called after each batch, of which reading may take long.
        """
        numbers = range(len(self)) if numbers is None else numbers
        fresh = self._read([number for number in numbers if number not in self._kept])
        group: list[Batch] = []
        size = held = 0  # bytes of the latest batch, and of those in the group that are not kept
        for number in numbers:
            # Whoever has the last group holds it until there is the next.
            if held and number not in self._kept and 2 * (held + size) > self.cache_bytes - self._kept_bytes:
                yield group
                group, held = [], 0
            batch = self._kept[number] if number in self._kept else next(fresh)
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
        if group:
            yield group

    def __iter__(self) -> Iterator[Batch]:
        for group in self.groups():
            yield from group

    def _keep(self, batch: Batch) -> None:
        if self.device is not None:
            batch.change(lambda tensor: tensor.to(self.device))
        self._kept[batch.number] = batch
        self._kept_bytes += batch.nbytes

    def _read(self, numbers: Sequence[int]) -> Iterator[Batch]:
        rows = [self.indices[number * self.batch_size : (number + 1) * self.batch_size] for number in numbers]
        loader = DataLoader(self.dataset, batch_sampler=rows, collate_fn=self.collator, num_workers=self.num_workers)
        for number, columns in zip(numbers, loader):
            yield self._batch(number, columns)

    def _batch(self, number: int, columns: dict[str, Any]) -> Batch:
        batch = Batch(number, select_inputs(columns, self.input_names), columns["labels"])
        if not batch.stored:
            raise SMDError(
                f"The data collator gives nothing that the model takes: it gives {', '.join(columns)}, and the model takes "
                f"{', '.join(sorted(self.input_names or ('tensors',)))}. Give a data_collator that returns a tensor by such a name."
            )
        self._labels[number] = batch.labels.numpy()
        compact = None
        if self.codec is not None and "pixel_values" in batch.stored:
            compact = self.codec.encode(batch.stored["pixel_values"])
        if compact is not None:
            batch.stored["pixel_values"], batch.codec = compact, self.codec
        if self.pin_memory:
            batch.stored = {name: tensor.pin_memory() for name, tensor in batch.stored.items()}
        return batch
