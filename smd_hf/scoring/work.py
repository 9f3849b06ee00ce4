"""How far a scoring call has come, in images: what progress bars count."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from ..data.batches import Batch, ImageBatches


class Work:
    """
    What an [`Evaluator`] tells of its scoring calls, one after another, on this process; the base class shows nothing.

    All numbers are images that the whole model sees, over all variants and processes. An image that a part of the model is
    enough for counts by that part.
    """

    def begin(self, images: float, known: float) -> None:
        """A call of so many images begins; so many of them were scored before, in a run that this one resumes."""

    def advance(self, images: float) -> None:
        """So many more are done."""

    def end(self) -> None:
        """The call is done, on all processes."""


class CallWork:
    """
    The part of one process in a scoring call, scaled up to all of them: no process asks another how far it has come.

    Args:
        weights (sequence of `float`): what an image costs for each variant, in passes of the whole model.
        recording (`float`): what it costs to record the pass that all variants replay, likewise.
        wanted (mapping of `int` to collection of `int`): the variants that this process scores, by batch.
        known (iterable of (`int`, `int`)): variant and batch of what was scored before.
    """

    def __init__(
        self,
        work: Work,
        weights: Sequence[float],
        recording: float,
        batches: ImageBatches,
        numbers: range,
        wanted: Mapping[int, Collection[int]],
        known: Iterable[tuple[int, int]],
    ):
        self.work = work
        self.weights = weights
        self.recording = recording
        by_variants: dict[Collection[int], float] = {}
        own = 0.0
        for number, variants in wanted.items():
            if variants not in by_variants:
                by_variants[variants] = recording + sum(weights[variant] for variant in variants)
            own += by_variants[variants] * batches.size_of(number)
        images = sum(map(batches.size_of, numbers)) * (sum(weights) + recording)
        before = sum(weights[variant] * batches.size_of(number) for variant, number in known)
        self._scale = (images - before) / own if own else 0.0
        work.begin(images, before)

    def recorded(self, batch: Batch) -> None:
        """The pass over a batch that variants replay is recorded."""
        self.work.advance(self.recording * len(batch) * self._scale)

    def scored(self, number: int, batch: Batch) -> None:
        """A variant is scored on a batch."""
        self.work.advance(self.weights[number] * len(batch) * self._scale)
