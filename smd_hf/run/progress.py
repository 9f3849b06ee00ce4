"""The progress bar: child k of N, best fitness so far, time left."""

from collections.abc import Callable, Iterable

import numpy as np
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerState

from ..arguments.evolution_arguments import EvolutionArguments
from ..search.fitness import Fitness


class EvolutionProgressCallback(ProgressCallback):
    """Trainer's progress bar, counted in children instead of steps."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            children = args.population_size
            self.training_bar = tqdm(
                total=(args.num_generations - state.global_step) * children, unit="child", dynamic_ncols=True
            )
        self.done = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.done = 0
        self._describe(args, state)

    def on_child_scored(self, args, state, fitness_name: str, best: float | None) -> None:
        """One more child is scored; `best` in the metric's own direction, where it is known."""
        self.done += 1
        if self.training_bar is not None:
            if best is not None:
                self.training_bar.set_postfix_str(f"best {fitness_name} {best:.4f}", refresh=False)
            self._describe(args, state)
            self.training_bar.update(1)

    def on_step_end(self, args, state, control, **kwargs):
        pass

    def on_train_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def _describe(self, args, state) -> None:
        if self.training_bar is not None:
            self.training_bar.set_description(
                f"generation {state.global_step + 1}/{args.num_generations}, child {self.done}/{args.population_size}",
                refresh=False,
            )


def child_reporter(
    callbacks: Iterable[TrainerCallback], args: EvolutionArguments, state: TrainerState, fitness: Fitness
) -> Callable[[int, float | None], None]:
    """What tells the progress bar, if there is one among the callbacks, of each child scored in one generation."""
    best = float("-inf")
    bars = [each for each in callbacks if isinstance(each, EvolutionProgressCallback)]

    def report(index: int, value: float | None) -> None:
        nonlocal best
        best = best if value is None else max(value, best)
        for bar in bars:
            bar.on_child_scored(args, state, fitness.name, fitness.raw(best) if np.isfinite(best) else None)

    return report
