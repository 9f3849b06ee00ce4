"""Limits on what a run may cost. A run stops at its best so far before it exceeds one, and says so."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..errors import SMDError
from ..parallel.processes import Processes
from ..parallel.stopping import OutOfTime
from ..search.evolution import Generation
from .cost_model import CostModel
from .state import RunState

logger = logging.get_logger(__name__)

# A limit that was computed may end in ...9999.
_ROUNDING = 1e-9


@dataclass(eq=False)
class Limits:
    """
    `max_forward_passes` and `max_hours` of one run.

    Passes are counted by a [`CostModel`] before a generation begins, so the same run ends with the same generation on every
    machine. Time is up for all processes when it is up for the first, also within a generation, which is given up.

    Attributes:
        stopped (`dict`, *optional*): which limit ended the run, and after how many generations.

    Raises:
        `SMDError`: if the first generation already exceeds `max_forward_passes`.
    """

    args: EvolutionArguments
    costs: CostModel
    run: RunState
    processes: Processes

    def __post_init__(self) -> None:
        self.stopped: dict[str, Any] | None = None
        self._seconds_left: float | None = None
        limit = self.args.max_forward_passes
        if limit is not None and not self.run.generations:
            first = self.costs.ahead(0).passes
            if first > limit + _ROUNDING:
                raise SMDError(
                    f"max_forward_passes is {limit:g}, but one generation of {self.args.population_size} children costs up to "
                    f"{first:.1f} passes over the fitness images, candidates on the selection split included. Raise the limit, "
                    "or lower population_size, or set fitness_samples_per_generation."
                )

    def planned(self) -> range:
        """The generations that are left, as far as `max_forward_passes` allows them at their highest cost."""
        numbers = range(len(self.run.generations), self.args.num_generations)
        limit = self.args.max_forward_passes
        if limit is None:
            return numbers
        spent = self.costs.spent(self.run)
        for number in numbers:
            spent += self.costs.ahead(number)
            if spent.passes > limit + _ROUNDING:
                return range(numbers.start, number)
        return numbers

    def deadline(self) -> float | None:
        """When `max_hours` are over, by `time.monotonic()`."""
        hours = self.args.max_hours
        return None if hours is None else time.monotonic() + 3600 * hours - self.run.seconds

    def allow_another(self) -> bool:
        """Whether the next generation may begin: its passes fit, and there is time. All processes must call it."""
        args = self.args
        if args.max_forward_passes is not None:
            spent = self.costs.spent(self.run).passes
            if spent + self.costs.ahead(len(self.run.generations)).passes > args.max_forward_passes + _ROUNDING:
                return self._stop("max_forward_passes", passes=spent)
        hours = args.max_hours
        if hours is not None:
            [self._seconds_left, *_] = self.processes.gather(lambda: 3600 * hours - self.run.seconds)
            if self._seconds_left <= 0:
                return self._stop("max_hours")
        return True

    def in_time(self, step: Callable[[], Generation]) -> Generation | None:
        """The result of a step; `None` if the time was up before, with the parent in the model again."""
        try:
            with self.processes.stop.before(self._seconds_left):
                return step()
        except OutOfTime:
            self._stop("max_hours")
            return None

    def _stop(self, limit: str, **spent: float) -> bool:
        self.stopped = {
            "limit": limit,
            "value": getattr(self.args, limit),
            "finished": len(self.run.generations),
            "planned": self.args.num_generations,
        } | spent
        if self.args.process_index == 0:
            logger.warning(stopped_sentence(self.stopped))
        return False


def stopped_sentence(stopped: dict[str, Any]) -> str:
    """The report's entry `stopped` as a sentence."""
    return (
        f"Stopped by {stopped['limit']}={stopped['value']:g} after {stopped['finished']} of {stopped['planned']} generations, at "
        "the best so far."
    )
