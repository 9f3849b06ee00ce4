"""Scores of variants of one model: which of them runs on which batch, in what order, and from which block on."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.utils import logging

from ..data.batches import Batch, ImageBatches
from ..models.blocks import find_blocks
from ..models.quantized import named_tensors
from ..parallel.processes import Processes, segment
from ..parallel.threads import one_thread
from .changes import Change, MakeChanges
from .freed_memory import FreedMemory
from .job import Job
from .reading import Reading, ReadsClasses
from .record import Call, Recorder
from .runtimes.choose import RuntimeChoice, identity, in_precision
from .runtimes.eager import Eager
from .runtimes.protocol import Forward, Inputs, Runtime
from .scores import Score
from .sums import TAPPED_BYTES, BatchSums, Tap
from .work import CallWork, Work

logger = logging.get_logger(__name__)

REPLAY_FROM = 0.25
"""Prefixes are replayed where at least this share of the variants leaves the first block alone."""


@dataclass
class Variant:
    """
    One thing to score: the model with some changes.

    Args:
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
        model (`torch.nn.Module`): takes the inputs of a batch by name; put into eval mode.
        autocast (`Callable`, *optional*): makes the context of each forward pass, for mixed precision.
        processes ([`Processes`], *optional*): the processes that share the work. Defaults to this process
            alone.
        prefix_replay (`bool`, *optional*, defaults to `True`): passes of variants begin at the first block that is changed.
        change_cache_bytes (`int`, *optional*, defaults to 1e9): memory for the weights of children while batches go by one at
            a time; beyond it they are remade for each batch.
        forward (`Callable`, *optional*): what is called in place of the model: the same, compiled.
        memory_format (`torch.memory_format`, *optional*): of inputs of shape `(batch, channels, height, width)`.
        choice ([`RuntimeChoice`], *optional*): finds out on the first batch what runs the passes. Until then, and by default, it
            is [`Eager`], with `prefix_replay` and `forward`.
        reading ([`Reading`], *optional*): what is scored in the model's output. Defaults to the logits of classification.

    Attributes:
        ledger ([`Ledger`], *optional*): what has been scored already, and where the rest is written.
        work ([`Work`], *optional*): told how far each scoring call has come, for progress bars.
        images_forwarded (`int`): images that variants were scored on so far, over all variants and processes.
        full_passes (`float`): the same, with images which a part of the model was enough for counted by that part.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        processes: Processes | None = None,
        prefix_replay: bool = True,
        change_cache_bytes: int = 10**9,
        forward: Callable | None = None,
        memory_format: torch.memory_format = torch.preserve_format,
        choice: RuntimeChoice | None = None,
        reading: Reading | None = None,
    ):
        self.freed = FreedMemory(device)
        self.model: Any = model
        self.device = device
        self.autocast = autocast
        self.processes = processes or Processes()
        self.parameters: Mapping[str, torch.Tensor] = named_tensors(model)
        self.change_cache_bytes = change_cache_bytes
        self.memory_format = memory_format
        self.prefix_replay = prefix_replay and forward is None
        self.reading = reading or ReadsClasses()
        self.runtime: Runtime = Eager(model, prefix_replay, forward, self.reading.prediction)
        self._choice = choice
        self._coarse: Runtime | None = None
        self._used, self._precision = self.runtime, autocast
        self._first_block = frozenset(find_blocks(model)[0].parameter_names)
        self.ledger: Recorder | None = None
        self.work: Work | None = None
        self._pass_shares: Mapping[str, float] | None = None
        self.images_forwarded = 0
        self.full_passes = 0.0

    def settle(self, batches: ImageBatches) -> None:
        """
        Finds out which runtime takes the model; called on every process before anything is scored.

        Raises:
            `SMDError`: if the runtime that was asked for does not take the model.
        """
        choice, self._choice = self._choice, None
        if choice is None:
            return
        self.model.eval()
        with self.processes.stop.at_once():
            found = self.processes.gather(lambda: choice.settle(self.inputs(batches.first_batch())))
        # All processes run the same, whatever one of them found.
        name = "eager" if any(each.name == "eager" for each in found) else found[0].name
        for reason in dict.fromkeys(each.reason for each in found if each.reason is not None):
            if self.processes.process_index == 0:
                logger.warning(reason)
        if name != "eager":
            self.runtime = choice.runtime(name)
        precisions = {each.precision for each in found if each.name == name}
        self._coarse = choice.runtime(name, "bf16") if precisions == {"bf16"} else None

    @property
    def identity(self) -> str:
        """The runtime, with the version of what computes in it."""
        return identity(self.runtime.name, "fp32" if self._coarse is None else "bf16")

    def score(
        self,
        variants: Sequence[Variant],
        batches: ImageBatches,
        keep_logits: bool = False,
        on_scored: Callable[[int, Score], None] | None = None,
        numbers: range | None = None,
        sums: BatchSums | None = None,
        coarse: bool = False,
    ) -> list[Score]:
        """
        Scores of several variants on the same images, on every process.

        Args:
            batches ([`ImageBatches`]): the images; each is decoded once for all variants.
            keep_logits (`bool`, *optional*, defaults to `False`): also keeps every variant's logits.
            on_scored (`Callable`, *optional*): called with a variant's number and score when this process's batches are done.
            numbers (`range`, *optional*): which batches; all by default.
            sums ([`BatchSums`], *optional*): what is summed over batches from all variants' logits; its `total` is set.
            coarse (`bool`, *optional*, defaults to `False`): in bfloat16, if that was chosen for children.

        Returns:
            list of [`Score`], one a variant and in their order.

        Raises:
            `RuntimeError`: on every process, if another one failed.
        """
        self.settle(batches)
        self.model.eval()
        self._use(coarse)
        self._used.begin()
        numbers = range(len(batches)) if numbers is None else numbers
        call = Call()
        if self.ledger is not None:
            width = self.reading.width(self.model) if keep_logits else None
            call = self.ledger.call(len(variants), batches, numbers, width, None if sums is None else sums.shape)
        batches.add_labels(call.labels)
        known = call.cells.keys() if sums is None else call.totals.keys()
        wanted = self.processes.share(len(variants), numbers, known, by_segments=sums is not None)

        def work() -> tuple[dict[int, Score], dict[int, np.ndarray], float, dict[int, np.ndarray]]:
            tap = None if sums is None else Tap(sums, numbers, self.reading)
            shown = None
            if self.work is not None:
                done = [cell for cell in call.cells if sums is None or segment(cell[1], numbers) in call.totals]
                shown = CallWork(self.work, *self.weights(variants), batches, numbers, wanted, done)
            job = Job(variants, batches, wanted, keep_logits, call, tap, on_scored, shown, self.reading)
            try:
                with one_thread(self._used.wants_one_thread):
                    self._run(job)
            finally:
                self._used.clear()
                self._use(coarse=False)
            return job.scores, job.labels(), job.passes, {} if tap is None else tap.totals

        scores = [Score() for _ in variants]
        for (number, batch), cell in call.cells.items():
            scores[number].cells[batch] = cell
        totals = dict(call.totals)
        self.full_passes += call.passes
        for part, labels, passes, part_totals in self.processes.gather(work):
            for number, score in part.items():
                scores[number].cells.update(score.cells)
            batches.add_labels(labels)
            self.full_passes += passes
            totals.update(part_totals)
        if self.work is not None:
            self.work.end()
        if sums is not None:
            sums.total = np.sum([totals[place] for place in sorted(totals)], axis=0)
        self.images_forwarded += sum(score.num_images for score in scores)
        return scores

    def logits(self, batches: ImageBatches) -> np.ndarray:
        """Logits of the model as it is: float32, of shape `(num_images, num_labels)`."""
        return self.score_model(batches).logits

    def score_model(self, batches: ImageBatches) -> Score:
        """The score of the model as it is, with its predictions where metrics of the task need them."""
        [score] = self.score([Variant("model")], batches, keep_logits=self.reading.keeps_predictions)
        return score

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within the context, nothing is recorded, shown or counted."""
        before = self.ledger, self.work, self.images_forwarded, self.full_passes
        self.ledger = self.work = None
        try:
            yield
        finally:
            self.ledger, self.work, self.images_forwarded, self.full_passes = before

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """Within the context, PyTorch runs the passes operation by operation, whatever runtime was chosen."""
        before = self.runtime
        self.runtime = Eager(self.model, prefix_replay=False, read=self.reading.prediction)
        try:
            yield
        finally:
            self.runtime = before
            self.freed.give_back()

    def inputs(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What the model takes for a batch, by name, on its device and in its dtype and memory format."""
        inputs = batch.inputs(self.device, self.model.dtype)
        return {
            name: tensor.to(memory_format=self.memory_format) if tensor.ndim == 4 else tensor
            for name, tensor in inputs.items()
        }

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits of one batch, float32 or wider, of shape `(batch, num_labels)`, on the model's device."""
        return self._logits(self.runtime.forward, inputs)

    def _use(self, coarse: bool) -> None:
        """Sets the runtime of passes, and the context that each of them runs in."""
        self._used, self._precision = self.runtime, self.autocast
        if coarse and self._coarse is not None:
            self._used = self._coarse
            self._precision = partial(in_precision, self._coarse.name, "bf16", self.device)

    def _logits(self, forward: Forward, inputs: Inputs) -> torch.Tensor:
        with torch.inference_mode(), self._precision():
            logits = forward(inputs)
        # A copy, as the next pass may write into the same memory.
        return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)

    def _run(self, job: Job) -> None:
        """Scores what is left to this process."""
        changes = ChangeCache(job.variants, self.change_cache_bytes)
        replays = self.replays([job.variants[number] for number in job.numbers])
        job.report_known()
        numbers = list(job.wanted)
        # Of one list of batches, changes are needed once.
        once = job.batches.in_memory(numbers) and not replays and job.tap is None
        eager = replays or all(job.variants[number].changes is tuple for number in job.numbers)
        for group in job.batches.groups(numbers, self.processes.stop.check, eager) if job.numbers else ():
            for part in self._parts(group, job, replays):
                recorded = None
                if replays:
                    recorded = self.inputs(part[0])
                    self._record(job, part[0], recorded)
                for number in job.by_start(part, self._used) if replays else job.on(part):
                    if not replays or job.variants[number].changed:
                        self._score_one(job, number, part, changes(number, once), recorded)
                    self.processes.stop.check()
                    job.report(number, part)
                for batch in part if job.tap is not None else ():
                    job.close(batch)
                if replays:
                    self.freed.after(len(part[0]))  # passes from each start leave holes of other sizes

    def _parts(self, group: list[Batch], job: Job, replays: bool) -> Iterable[list[Batch]]:
        """The batches that a variant is put in for at a time: prefix replay holds the outputs of one, and sums the logits of a few."""
        if replays:
            return ([batch] for batch in group)
        if job.tap is None:
            return [group]
        logits_bytes = 4 * len(job.variants) * len(group[0]) * self.reading.width(self.model)
        return job.tap.parts(group, max(1, TAPPED_BYTES // logits_bytes))

    def replays(self, variants: Sequence[Variant]) -> bool:
        """Whether passes of these variants begin at the first block that is changed, where the model allows it."""
        if not self.prefix_replay or any(variant.changed is None for variant in variants):
            return False
        late = sum(self._first_block.isdisjoint(variant.changed or ()) for variant in variants)
        return late >= max(2, REPLAY_FROM * len(variants))

    def time_passes(self, batch: Callable[[], Batch]) -> None:
        """
        Measures which share of a pass begins at each block, for [`Evaluator.weights`].

        Args:
            batch (`Callable`): gives the batch that is passed through the model, where passes can be replayed.
        """
        if not self.runtime.can_replay():
            return
        self.model.eval()
        self.runtime.begin()
        inputs = self.inputs(batch())
        for _ in range(3):
            self._logits(partial(self.runtime.record, starts=[]), inputs)
        self._pass_shares = {name: self.runtime.suffix_share([name]) for name in self.parameters}
        self.runtime.clear()

    def weights(self, variants: Sequence[Variant]) -> tuple[list[float], float]:
        """What an image costs for each variant, and what recording costs that all replay, in passes of the whole model."""
        if self._pass_shares is None or not self.replays(variants):
            return [1.0] * len(variants), 0.0
        shares = self._pass_shares
        return [max((shares[name] for name in variant.changed or ()), default=0.0) for variant in variants], 1.0

    def _record(self, job: Job, batch: Batch, inputs: Mapping[str, torch.Tensor]) -> None:
        """The parent's pass, whose block outputs children replay, and the score of variants that change nothing."""
        wanted = job.on([batch])
        starts = [job.variants[number].changed for number in wanted]
        logits = self._logits(partial(self._used.record, starts=starts), inputs)
        job.recorded(batch)
        for number in wanted:
            if not job.variants[number].changed:
                job.found(number, batch, logits, 0.0)
                if job.tap is not None:
                    job.tap.add(number, batch, logits)

    def _score_one(
        self,
        job: Job,
        number: int,
        batches: list[Batch],
        changes: Iterable[tuple[str, Change]],
        recorded: Mapping[str, torch.Tensor] | None,
    ) -> None:
        """Scores one variant on batches, or on the one whose pass over these inputs was recorded."""
        changed = job.variants[number].changed
        waiting: tuple[Batch, torch.Tensor, float] | None = None
        replays = recorded is not None
        with self._used.child(changes, changed if replays else None) as forward:
            for batch in batches:
                if number not in job.wanted[batch.number]:
                    continue
                logits = self._logits(forward, recorded if replays else self.inputs(batch))
                # A GPU is at work on this batch while the one before is looked at.
                if waiting is not None:
                    job.found(number, *waiting)
                waiting = batch, logits, len(batch) * (self._used.suffix_share(changed) if replays else 1.0)
                if job.tap is not None:
                    job.tap.add(number, batch, logits)
                if self.processes.stop.wanted:
                    break
        if waiting is not None:
            job.found(number, *waiting)


class ChangeCache:
    """The changes of variants, kept as far as a budget allows while batches go by one at a time."""

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
