"""Scores of variants of one model: which of them runs on which batch, in what order, and from which block on."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import nn

from ..blocks import find_blocks
from ..ensemble.prefix_replay import PrefixReplay
from ..mutation import Change, MakeChanges, applied
from .images import Batch, ImageBatches
from .scores import Cell, Score
from .spread import Spread, segment

REPLAY_FROM = 0.25
"""Prefixes are replayed where at least this share of the variants leaves the first block alone."""

TAPPED_BYTES = 2**27
"""Memory for the logits of all variants from which sums over batches are made."""


@dataclass
class Variant:
    """
    One thing to score: the model with some changes.

    Args:
        name (`str`): for messages.
        changes (`Callable`): gives the changes, as often as it is called; nothing for the parent itself.
        changed (set of `str`, *optional*): names of the parameters that are changed, where they are known beforehand.
    """

    name: str
    changes: MakeChanges = field(default=tuple)
    changed: frozenset[str] | None = None


class Evaluator:
    """
    Scores variants of a model by forward passes; the model is the parent again whenever a call returns or raises.

    Args:
        model (`torch.nn.Module`): takes `pixel_values` and returns an output with `logits`; put into eval mode.
        device (`torch.device`): where the model is.
        autocast (`Callable`, *optional*): makes the context of each forward pass, for mixed precision.
        spread ([`Spread`], *optional*): over which processes; over none by default.
        prefix_replay (`bool`, *optional*, defaults to `True`): passes of variants begin at the first block that is changed.
        change_cache_bytes (`int`, *optional*, defaults to 1e9): memory for the weights of children while batches go by one at
            a time; beyond it they are made anew for each batch.
        forward (`Callable`, *optional*): what is called in place of the model: the same, compiled.
        memory_format (`torch.memory_format`, *optional*): of the pixel values.

    Attributes:
        images_forwarded (`int`): images that variants were scored on so far, over all variants and processes.
        full_passes (`float`): the same, with images which a part of the model was enough for counted by that part.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        spread: Spread | None = None,
        prefix_replay: bool = True,
        change_cache_bytes: int = 10**9,
        forward: Callable | None = None,
        memory_format: torch.memory_format = torch.preserve_format,
    ):
        self.model = model
        self.device = device
        self.autocast = autocast
        self.spread = spread or Spread()
        self.parameters: Mapping[str, nn.Parameter] = dict(model.named_parameters())
        self.change_cache_bytes = change_cache_bytes
        self.memory_format = memory_format
        self._call = model if forward is None else forward
        self._replay = PrefixReplay(model) if prefix_replay and forward is None else None
        self._first_block = frozenset(find_blocks(model)[0].parameter_names)
        self.images_forwarded = 0
        self.full_passes = 0.0

    def score(
        self,
        variants: Sequence[Variant],
        batches: ImageBatches,
        keep_logits: bool = False,
        on_scored: Callable[[int, Score], None] | None = None,
        numbers: range | None = None,
        sums: "BatchSums | None" = None,
    ) -> list[Score]:
        """
        Scores of several variants on the same images, on every process.

        Args:
            variants (sequence of [`Variant`]): what to score.
            batches ([`ImageBatches`]): the images; each is decoded once for all variants.
            keep_logits (`bool`, *optional*, defaults to `False`): also keeps every variant's logits.
            on_scored (`Callable`, *optional*): called with a variant's number and its score on this process's batches when
                these are done, for the progress bar.
            numbers (`range`, *optional*): which batches; all by default.
            sums ([`BatchSums`], *optional*): what is summed over batches from all variants' logits; its `total` is set.

        Returns:
            list of [`Score`], one a variant and in their order.

        Raises:
            `RuntimeError`: on every process, if another one failed.
        """
        self.model.eval()
        numbers = range(len(batches)) if numbers is None else numbers
        mine, my_batches = self.spread.share(len(variants), numbers, by_segments=sums is not None)

        def work() -> tuple[dict[int, Score], dict[int, np.ndarray], float, dict[int, np.ndarray]]:
            scores = {number: Score() for number in mine}
            tap = None if sums is None else Tap(sums, numbers)
            passes = self._run(variants, scores, batches.groups(my_batches), my_batches, keep_logits, on_scored, tap)
            labels = batches.labels_by_batch(my_batches if mine else ())
            return scores, labels, passes, {} if tap is None else tap.totals

        scores = [Score() for _ in variants]
        totals: dict[int, np.ndarray] = {}
        for part, labels, passes, part_totals in self.spread.together(work):
            for number, score in part.items():
                scores[number].cells.update(score.cells)
            batches.add_labels(labels)
            self.full_passes += passes
            totals.update(part_totals)
        if sums is not None:
            sums.total = np.sum([totals[place] for place in sorted(totals)], axis=0)
        self.images_forwarded += sum(score.num_images for score in scores)
        return scores

    def logits(self, batches: ImageBatches) -> np.ndarray:
        """Logits of the model as it is: float32, of shape `(num_images, num_labels)`."""
        [score] = self.score([Variant("model")], batches, keep_logits=True)
        return score.logits

    def pixel_values(self, batch: Batch) -> torch.Tensor:
        """What the model takes for a batch, on its device and in its dtype and memory format."""
        return batch.pixel_values(self.device, self.model.dtype).to(memory_format=self.memory_format)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits of one batch, float32 or wider, of shape `(batch, num_labels)`, on the model's device."""
        with torch.inference_mode(), self.autocast():
            logits = self._call(pixel_values=pixel_values).logits
        # A copy, as a compiled model may write its next output into the same memory.
        return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)

    def _run(
        self,
        variants: Sequence[Variant],
        scores: dict[int, Score],
        groups: Iterator[list[Batch]],
        my_batches: Sequence[int],
        keep_logits: bool,
        on_scored: Callable[[int, Score], None] | None,
        tap: "Tap | None",
    ) -> float:
        """Scores this process's variants; returns how many images went through, in images of full passes."""
        passes = 0.0
        changes = ChangeCache(variants, self.change_cache_bytes)
        replays = self._replay is not None and self._worth_replaying([variants[number] for number in scores])
        for group in groups if scores else ():
            # A child is put in once for as many batches as can be: prefix replay holds the outputs of one, and sums the
            # logits of a few.
            for cell_batches in in_parts(group, 1 if replays else self._tapped(len(variants), group, tap)):
                recorded = None
                if replays:
                    recorded = self.pixel_values(cell_batches[0])
                    passes += self._record(variants, scores, cell_batches[0], recorded, keep_logits, tap)
                for number, score in scores.items():
                    if not replays or variants[number].changed:
                        passes += self._score_one(
                            number, variants, score, cell_batches, changes, keep_logits, recorded, tap
                        )
                    if on_scored is not None and cell_batches[-1].number == my_batches[-1]:
                        on_scored(number, score)
                for batch in cell_batches if tap is not None else ():
                    tap.close(batch)
        if self._replay is not None:
            self._replay.clear()
        return passes

    def _tapped(self, num_variants: int, group: list[Batch], tap: "Tap | None") -> int:
        """For how many batches all variants' logits may be in memory at a time."""
        if tap is None:
            return len(group)
        return max(1, TAPPED_BYTES // (4 * num_variants * len(group[0]) * self.model.config.num_labels))

    def _worth_replaying(self, variants: Sequence[Variant]) -> bool:
        late = [variant.changed is not None and not variant.changed & self._first_block for variant in variants]
        known = all(variant.changed is not None for variant in variants)
        return known and sum(late) >= max(2, REPLAY_FROM * len(late))

    def _record(
        self,
        variants: Sequence[Variant],
        scores: dict[int, Score],
        batch: Batch,
        pixel_values: torch.Tensor,
        keep_logits: bool,
        tap: "Tap | None",
    ) -> float:
        """The parent's pass, whose block outputs children replay, and the score of variants that change nothing."""
        with self._replay.record([variants[number].changed for number in scores]):
            logits = self.forward(pixel_values)
        for number, score in scores.items():
            if not variants[number].changed:
                score.cells[batch.number] = Cell.from_logits(logits, batch.labels, keep_logits)
                if tap is not None:
                    tap.add(number, batch, logits)
        return len(batch)

    def _score_one(
        self,
        number: int,
        variants: Sequence[Variant],
        score: Score,
        batches: list[Batch],
        changes: "ChangeCache",
        keep_logits: bool,
        recorded: torch.Tensor | None,
        tap: "Tap | None",
    ) -> float:
        """Scores one variant on batches, or on the one whose pass over these pixel values was recorded."""
        changed, passes = variants[number].changed, 0.0
        waiting: tuple[Batch, torch.Tensor] | None = None
        with applied(self.parameters, changes(number, once=recorded is None and tap is None)):
            for batch in batches:
                with nullcontext() if recorded is None else self._replay.replay(changed):
                    logits = self.forward(self.pixel_values(batch) if recorded is None else recorded)
                # A GPU is at work on this batch while the one before is looked at.
                if waiting is not None:
                    score.cells[waiting[0].number] = Cell.from_logits(waiting[1], waiting[0].labels, keep_logits)
                waiting = batch, logits
                if tap is not None:
                    tap.add(number, batch, logits)
                passes += len(batch) * (1.0 if recorded is None else self._replay.suffix_share(changed))
        if waiting is not None:
            score.cells[waiting[0].number] = Cell.from_logits(waiting[1], waiting[0].labels, keep_logits)
        return passes


class BatchSums(Protocol):
    """Something summed over batches: called with the logits of all variants and the labels of one batch."""

    total: np.ndarray | None

    def __call__(self, logits: Sequence[torch.Tensor], labels: torch.Tensor) -> np.ndarray: ...


class Tap:
    """
    Collects the logits of all variants on one batch, and adds up what is made of them by segments of the data.

    Args:
        sums ([`BatchSums`]): makes an array of them.
        numbers (`range`): of all batches.
    """

    def __init__(self, sums: BatchSums, numbers: range):
        self.sums = sums
        self.numbers = numbers
        self.logits: dict[int, dict[int, torch.Tensor]] = {}
        self.totals: dict[int, np.ndarray] = {}

    def add(self, number: int, batch: Batch, logits: torch.Tensor) -> None:
        """One variant has been through the batch."""
        self.logits.setdefault(batch.number, {})[number] = logits

    def close(self, batch: Batch) -> None:
        """Every variant has been through the batch."""
        by_variant = self.logits.pop(batch.number)
        logits = [by_variant[number] for number in sorted(by_variant)]
        part, place = self.sums(logits, batch.labels.to(logits[0].device)), segment(batch.number, self.numbers)
        self.totals[place] = self.totals[place] + part if place in self.totals else part


def in_parts(batches: list[Batch], size: int) -> list[list[Batch]]:
    """The batches in lists of `size`, the last of which may be shorter."""
    return [batches[start : start + size] for start in range(0, len(batches), size)]


class ChangeCache:
    """
    The changes of variants, kept as far as a budget allows while batches go by one at a time.

    Args:
        variants (sequence of [`Variant`]): whose.
        max_bytes (`int`): the budget.
    """

    def __init__(self, variants: Sequence[Variant], max_bytes: int):
        self.variants = variants
        self.left = max_bytes
        self._kept: dict[int, list[tuple[str, Change]]] = {}

    def __call__(self, number: int, once: bool) -> Iterable[tuple[str, Change]]:
        """The changes of one variant; streamed, and not kept, where they are asked for `once`."""
        if once:
            return self.variants[number].changes()
        if number in self._kept:
            return self._kept[number]
        if self.left <= 0:
            return self.variants[number].changes()
        changes = list(self.variants[number].changes())
        size = sum(values.nbytes + (0 if indices is None else indices.nbytes) for _, (indices, values) in changes)
        if size <= self.left:
            self.left -= size
            self._kept[number] = changes
        return changes
