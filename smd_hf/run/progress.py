"""The progress bar of a run: images scored of those planned, time left, generation, best fitness so far."""

from collections.abc import Callable, Iterable

import numpy as np
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerState

from ..arguments.evolution_arguments import EvolutionArguments
from ..search.fitness import Fitness


class EvolutionProgressCallback(ProgressCallback):
    """Trainer's progress bar. It counts the images that the model sees, over all children, instead of steps."""

    planned: float | None = None
    """The number of images of the whole run, as far as it is known before it begins."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=self.planned,
                unit=" images",
                unit_scale=True,
                dynamic_ncols=True,
                # The mean rate: generations repeat the same work, but not at the same rate throughout.
                smoothing=0,
                # After one long step, tqdm would rarely refresh.
                miniters=0,
            )
        self.done = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self.done = 0
        self._describe(args, state)

    def on_child_scored(self, args, state, fitness_name: str, best: float | None) -> None:
        """One more child is scored; `best` is in the metric's own direction, if it is known."""
        self.done += 1
        if self.training_bar is not None:
            if best is not None:
                self.training_bar.set_postfix_str(f"best {fitness_name} {best:.4f}", refresh=False)
            self._describe(args, state)

    def on_work(self, done: float, known: float, planned: float) -> None:
        """
        Something is done, or planned.

        Args:
            done (`float`): images that the whole model has seen, over all children and processes.
            known (`float`): how many of these were scored before, in the run that this one resumes.
            planned (`float`): how many there will be in the end.
        """
        bar = self.training_bar
        if bar is not None:
            bar.initial, bar.total = known, planned
            bar.update(done - bar.n)

    def on_step_end(self, args, state, control, **kwargs):
        pass

    def on_train_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def _describe(self, args, state) -> None:
        if self.training_bar is not None:
            # With sums over all children's logits, all children are done at once.
            child = f", child {self.done}/{args.population_size}" if self.done else ""
            self.training_bar.set_description(
                f"generation {state.global_step + 1}/{args.num_generations}{child}", refresh=False
            )


def child_reporter(
    callbacks: Iterable[TrainerCallback], args: EvolutionArguments, state: TrainerState, fitness: Fitness
) -> Callable[[int, float | None], None]:
    """A function that tells the progress bar about each child of a generation, if a callback is one."""
    best = float("-inf")
    bars = [each for each in callbacks if isinstance(each, EvolutionProgressCallback)]

    def report(index: int, value: float | None) -> None:
        nonlocal best
        best = best if value is None else max(value, best)
        for bar in bars:
            bar.on_child_scored(args, state, fitness.name, fitness.raw(best) if np.isfinite(best) else None)

    return report
