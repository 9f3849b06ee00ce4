"""What a run may cost: it stops at the best so far when a generation would take it beyond, and says so."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers.utils import logging

from ..errors import SMDError
from ..parallel.stopping import OutOfTime
from ..search.evolution import Evolution, Generation
from .cost_model import Cost, Foresight, estimate

if TYPE_CHECKING:
    from ..trainer import EvolutionTrainer

logger = logging.get_logger(__name__)

# A limit that was worked out may end in ...9999.
_ROUNDING = 1e-9


class Limits:
    """
    `max_forward_passes` and `max_hours` of one run.

    Passes are counted before a generation is begun, as [`Foresight`] does: the same run ends with the same generation on every
    machine. Time is up for all processes when it is for the first, also in the midst of a generation, which is given up.

    Args:
        trainer ([`EvolutionTrainer`]): at the start of a run, fresh or resumed.
        evolution ([`Evolution`]): of this run.

    Raises:
        `SMDError`: for a limit that the first generation does not keep.
    """

    def __init__(self, trainer: "EvolutionTrainer", evolution: Evolution):
        self.trainer = trainer
        self.foresight = Foresight(trainer, evolution)
        self._seconds_left: float | None = None
        self._costs: list[Cost] = []
        trainer.stopped = None
        limit = trainer.args.max_forward_passes
        if limit is not None and not trainer.state.global_step:
            first = self.foresight.ahead(0).passes
            if first > limit + _ROUNDING:
                raise SMDError(
                    f"max_forward_passes is {limit:g}, but one generation of {trainer.args.population_size} children costs up to "
                    f"{first:.1f} passes over the fitness images, candidates on the selection split included. Raise the limit, "
                    "or lower population_size, or set fitness_samples_per_generation."
                )

    def tell_ahead(self, test_seconds: float) -> None:
        """Says what is to come, before the first generation."""
        trainer = self.trainer
        if trainer.is_world_process_zero() and trainer.state.global_step < trainer.args.num_generations:
            logger.warning(estimate(self.foresight, test_seconds))

    def planned(self) -> range:
        """The generations from the next one on, as far as `max_forward_passes` allows each at most."""
        numbers = range(self.trainer.state.global_step, self.trainer.args.num_generations)
        limit = self.trainer.args.max_forward_passes
        if limit is None:
            return numbers
        spent = sum(map(self.foresight.behind, self.trainer.run.generations), self.foresight.calibration())
        for number in numbers:
            spent += self.foresight.ahead(number)
            if spent.passes > limit + _ROUNDING:
                return range(numbers.start, number)
        return numbers

    def deadline(self) -> float | None:
        """When `max_hours` are over, by `time.monotonic()`."""
        hours = self.trainer.args.max_hours
        return None if hours is None else time.monotonic() + 3600 * hours - self.trainer.run.seconds

    def allow_another(self) -> bool:
        """Whether the next generation may begin: it fits into what is left of the passes, and there is time."""
        trainer, args = self.trainer, self.trainer.args
        if args.max_forward_passes is not None:
            self._costs.extend(map(self.foresight.behind, trainer.run.generations[len(self._costs) :]))
            spent = sum(self._costs, self.foresight.calibration())
            after = (spent + self.foresight.ahead(trainer.state.global_step)).passes
            if after > args.max_forward_passes + _ROUNDING:
                return self._stop("max_forward_passes", spent)
        if args.max_hours is not None:
            processes = trainer.evaluator.processes
            [self._seconds_left, *_] = processes.gather(lambda: 3600 * args.max_hours - trainer.run.seconds)
            if self._seconds_left <= 0:
                return self._stop("max_hours")
        return True

    def in_time(self, step: Callable[[], Generation]) -> Generation | None:
        """What a step gives; `None` where the time was up before it was done, with the parent in the model again."""
        try:
            with self.trainer.evaluator.processes.stop.before(self._seconds_left):
                return step()
        except OutOfTime:
            self._stop("max_hours")
            return None

    def _stop(self, limit: str, spent: Cost | None = None) -> bool:
        trainer = self.trainer
        trainer.stopped = {
            "limit": limit,
            "value": getattr(trainer.args, limit),
            "finished": len(trainer.run.generations),
            "planned": trainer.args.num_generations,
        } | ({} if spent is None else {"passes": spent.passes})
        if trainer.is_world_process_zero():
            logger.warning(stopped_sentence(trainer.stopped))
        return False


def stopped_sentence(stopped: dict[str, Any]) -> str:
    """What a report says under `stopped`, as a sentence."""
    return (
        f"Stopped by {stopped['limit']}={stopped['value']:g} after {stopped['finished']} of {stopped['planned']} generations, at "
        "the best so far."
    )
