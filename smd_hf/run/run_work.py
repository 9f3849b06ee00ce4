"""How much a run has to do, and how much of it is done: what its progress bar shows."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..scoring.bars import ScoringBar
from ..scoring.evaluator import Variant
from ..scoring.work import Work
from ..search.evolution import PARENT, Evolution
from .limits import Limits
from .progress import EvolutionProgressCallback

if TYPE_CHECKING:
    from ..trainer import EvolutionTrainer


class RunWork(Work):
    """
    The work of a run's generations, and of what follows the last one: ensemble, deltas and front.

    What is planned is corrected by what is really done: at the beginning of each scoring call, and of each generation.

    Args:
        trainer ([`EvolutionTrainer`]): on the process that shows the bar.
        evolution ([`Evolution`]), limits ([`Limits`]): before the first generation of this process.
    """

    def __init__(self, trainer: "EvolutionTrainer", evolution: Evolution, limits: Limits):
        self.trainer = trainer
        self.evolution = evolution
        self.costs = limits.foresight
        trainer.evaluator.time_passes(lambda: next(iter(trainer.fitness_batches.head(trainer.args.eval_batch_size))))
        self._ahead = {number: self._generation(number) for number in limits.planned()}
        self._after = self._collect()
        self._known = self._done = self._left_of_part = self._left_of_call = 0.0
        self._begun = time.monotonic()
        self._deadline = limits.deadline()
        for bar in progress_bars(trainer):
            bar.planned = self._left()

    def generation(self, number: int) -> None:
        """A generation begins."""
        # One that no limit was expected to allow is planned now.
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
        for bar in progress_bars(self.trainer):
            bar.on_work(past, self._known, past + left)

    def _left(self) -> float:
        left = self._left_of_call + self._left_of_part + sum(self._ahead.values()) + self._after
        if self._deadline is not None and self._done:
            now = time.monotonic()
            left = min(left, self._done / (now - self._begun) * max(0.0, self._deadline - now))
        return left

    # ---- What is planned ---------------------------------------------------------------------------------------------

    def _generation(self, number: int) -> float:
        """A generation, as it is expected; of a race, that children come through whatever they cost."""
        trainer, evolution = self.trainer, self.evolution
        children = self.costs.children(number)
        variants = list(map(evolution.variant, children))
        images = trainer.images_per_generation
        if evolution.survivors:
            seen = self.costs.seen_in_race(len(children), images)
            per_image = self._cost([PARENT, *variants]) - self._cost([PARENT])
            work = images * self._cost([PARENT]) + sum(seen) * per_image / len(children)
        else:
            work = images * self._cost([PARENT, *variants])
        selection, count = self.costs.selection_images, self.costs.candidates(number, len(children))
        candidate = Variant("candidate", changed=frozenset().union(*(each.changed for each in variants)))
        others = evolution.ood
        if others is not None:
            work += others.fitness.num_images * self._cost([PARENT, *variants])
            selection += others.selection.num_images
        return work + selection * self._cost([candidate] * count)

    def _collect(self) -> float:
        """What comes after the last generation, as far as it is known; a front's members are not."""
        trainer, args = self.trainer, self.trainer.args
        variants = list(map(self.evolution.variant, self.costs.children(args.num_generations - 1)))
        work = 0.0
        if args.ensemble_size and args.ensemble_selection != "front":
            survivors = variants[: self.evolution.survivors or None]
            work += self.costs.selection_images * self._cost(survivors)
        if trainer.test_batches is not None:
            work += trainer.test_batches.num_images * self._cost(variants[: args.save_children])
        return work

    def _cost(self, variants: Sequence[Variant]) -> float:
        """What all these variants cost an image, in passes of the whole model."""
        weights, recording = self.trainer.evaluator.weights(variants)
        return sum(weights) + recording


def progress_bars(trainer: "EvolutionTrainer") -> list[EvolutionProgressCallback]:
    """The progress bars among a trainer's callbacks."""
    return [each for each in trainer.callback_handler.callbacks if isinstance(each, EvolutionProgressCallback)]


class NoWork(Work):
    """On processes, and in runs, that show no progress bar."""

    def generation(self, number: int) -> None: ...

    def collect(self) -> None: ...


def run_work(trainer: "EvolutionTrainer", evolution: Evolution, limits: Limits) -> RunWork | NoWork:
    """What a run's progress bar counts from here on; arguments as for [`RunWork`]."""
    shown = trainer.is_world_process_zero() and progress_bars(trainer)
    trainer.evaluator.work = RunWork(trainer, evolution, limits) if shown else NoWork()
    return trainer.evaluator.work


@contextmanager
def scoring_shown(trainer: "EvolutionTrainer", description: str) -> Iterator[None]:
    """Within it, what is scored is counted by a bar of its own."""
    with ScoringBar(description, shows_bars(trainer)) as trainer.evaluator.work:
        try:
            yield
        finally:
            trainer.evaluator.work = None


def shows_bars(trainer: "EvolutionTrainer") -> bool:
    """Whether this process shows progress."""
    return not trainer.args.disable_tqdm and trainer.is_world_process_zero()
