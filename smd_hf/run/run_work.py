"""How much a run has to do, and how much of it is done: what its progress bar shows."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from transformers import TrainerCallback

from ..scoring.bars import ScoringBar
from ..scoring.evaluator import Evaluator, Variant
from ..scoring.work import Work
from ..search.evolution import PARENT
from .cost_model import CostModel
from .limits import Limits
from .progress import EvolutionProgressCallback


class RunWork(Work):
    """
    The work of a run's generations, and of the ensemble, the deltas and the front after the last one.

    At the beginning of each scoring call and each generation, the plan is corrected by what was really done.

    Args:
        costs ([`CostModel`]), limits ([`Limits`]): before the first generation of this process.
    """

    def __init__(self, bars: list[EvolutionProgressCallback], costs: CostModel, limits: Limits):
        self.bars = bars
        self.costs = costs
        self.evolution, self.images, self.args = costs.evolution, costs.images, costs.args
        self.evolution.evaluator.time_passes(self.images.fitness.first_batch)
        self._ahead = {number: self._generation(number) for number in limits.planned()}
        self._after = self._artifacts()
        self._known = self._done = self._left_of_part = self._left_of_call = 0.0
        self._begun = time.monotonic()
        self._deadline = limits.deadline()
        for bar in bars:
            bar.planned = self._left()

    def generation(self, number: int) -> None:
        """A generation begins."""
        # If the limits were not expected to allow it, it is planned now.
        self._part(self._ahead.pop(number) if number in self._ahead else self._generation(number))

    def collect(self) -> None:
        """All generations are done."""
        self._ahead.clear()
        left, self._after = self._after, 0.0
        self._part(left)

    def begin(self, images: float, known: float) -> None:
        self._left_of_part = max(0.0, self._left_of_part - images)
        self._left_of_call = images - known
        self._known += known
        self._show()

    def advance(self, images: float) -> None:
        images = min(images, self._left_of_call)
        self._left_of_call -= images
        self._done += images
        self._show()

    def end(self) -> None:
        self.advance(self._left_of_call)

    def _part(self, planned: float) -> None:
        self._left_of_part, self._left_of_call = planned, 0.0
        self._show()

    def _show(self) -> None:
        past, left = self._known + self._done, self._left()
        for bar in self.bars:
            bar.on_work(past, self._known, past + left)

    def _left(self) -> float:
        left = self._left_of_call + self._left_of_part + sum(self._ahead.values()) + self._after
        if self._deadline is not None and self._done:
            now = time.monotonic()
            left = min(left, self._done / (now - self._begun) * max(0.0, self._deadline - now))
        return left

    # ---- The plan ----------------------------------------------------------------------------------------------------

    def _generation(self, number: int) -> float:
        """The expected work of a generation. In a race, children survive whatever they cost."""
        children = self.costs.children(number)
        variants = list(map(self.evolution.variant, children))
        images = self.images.per_generation
        if self.evolution.survivors:
            seen = self.costs.seen_in_race(len(children))
            per_image = self._cost([PARENT, *variants]) - self._cost([PARENT])
            work = images * self._cost([PARENT]) + sum(seen) * per_image / len(children)
        else:
            work = images * self._cost([PARENT, *variants])
        selection, count = self.images.per_candidate, self.costs.candidates(number, len(children))
        candidate = Variant("candidate", changed=frozenset().union(*(each.changed or () for each in variants)))
        ood = self.evolution.ood
        if ood is not None:
            work += ood.fitness.num_images * self._cost([PARENT, *variants])
            selection += ood.selection.num_images
        return work + selection * self._cost([candidate] * count)

    def _artifacts(self) -> float:
        """The work after the last generation, as far as it is known: the members of a front are not."""
        args = self.args
        variants = list(map(self.evolution.variant, self.costs.children(args.num_generations - 1)))
        work = 0.0
        if args.ensemble_size and args.ensemble_selection != "front":
            survivors = variants[: self.evolution.survivors or None]
            work += self.images.per_candidate * self._cost(survivors)
        if self.images.test is not None:
            work += self.images.test.num_images * self._cost(variants[: args.save_children])
        return work

    def _cost(self, variants: Sequence[Variant]) -> float:
        """What an image costs for all these variants, in passes of the whole model."""
        weights, recording = self.evolution.evaluator.weights(variants)
        return sum(weights) + recording


class NoWork(Work):
    """For processes and runs without a progress bar."""

    def generation(self, number: int) -> None: ...

    def collect(self) -> None: ...


def run_work(callbacks: Iterable[TrainerCallback], costs: CostModel, limits: Limits) -> RunWork | NoWork:
    """What the progress bar among a run's callbacks counts from here on."""
    bars = [each for each in callbacks if isinstance(each, EvolutionProgressCallback)]
    shown = bars and costs.args.process_index == 0
    work = RunWork(bars, costs, limits) if shown else NoWork()
    costs.evolution.evaluator.work = work
    return work


@contextmanager
def scoring_shown(evaluator: Evaluator, description: str, shown: bool) -> Iterator[None]:
    """Within the context, a bar of its own counts what the evaluator scores."""
    with ScoringBar(description, shown) as evaluator.work:
        try:
            yield
        finally:
            evaluator.work = None
