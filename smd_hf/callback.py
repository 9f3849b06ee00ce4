"""
`EvolutionCallback`: generations of evolution within gradient training by an ordinary `transformers.Trainer`.

The weights change in place. The optimizer continues with them and its own state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from .arguments.evolution_arguments import EvolutionArguments
from .arguments.inherited_arguments import warn_of_ignored_arguments
from .data.image_checks import ReadableRows, check_images
from .data.map_style import check_map_style
from .data.preparation import fitting_rows
from .errors import SMDError
from .metrics.classification import merged, named_metrics
from .metrics.ood import OOD_METRICS
from .parallel.processes import Processes
from .run.batch_size import explain_oom
from .run.run_images import BatchMaker, RunImages
from .run.run_task import scoring_of, task_of_run
from .scoring.bars import ScoringBar
from .search.build import build_evaluator, build_evolution
from .search.evolution import Evolution, Generation
from .search.fitness import Fitness
from .search.image_slopes import image_slopes
from .search.sigma import calibrated, scheduled_sigma
from .tasks.protocol import GivenData
from .tasks.registry import is_classification

logger = logging.get_logger(__name__)

WHEN = ("epoch_end", "train_end")


class EvolutionCallback(TrainerCallback):
    """
    Evolves the model that a Trainer trains, for `num_generations` generations after each epoch or once at the end.

    After an epoch, evolution runs before Trainer evaluates and saves. At the end of training, it runs after the best
    checkpoint has been loaded, if that is asked for; call `trainer.save_model()` to save the result. The log receives
    `evolution_*` values.

    Args:
        trainer ([`~transformers.Trainer`]): its model is evolved, on its device and with its image processor and log.
        args ([`EvolutionArguments`]): the method, and `per_device_eval_batch_size` for scoring. If sigma is not given, it is
            calibrated anew each time. Arguments about files (ensembles, deltas, reports, pushes) and `auto_find_batch_size`
            have no effect.
        fitness_dataset: images and labels, or rows of `pixel_values`. Do not report on them. A share of
            `selection_fraction` chooses among candidates.
        when (`str`, *optional*, defaults to `"epoch_end"`): `"epoch_end"` or `"train_end"`.
        data_collator (`Callable`, *optional*): rows to `pixel_values` and `labels`. Defaults to that of [`EvolutionTrainer`].
        compute_metrics (`Callable`, *optional*): as in Trainer, for a fitness of your own.

    Attributes:
        generations (list of `dict`): the [`Generation.record`] of each generation.
        left_out (`dict[str, int]`): how many rows of `fitness_dataset` were left out, with `on_bad_images="skip"`.

    Raises:
        `SMDError`: for arguments, labels or images that cannot work, and for FSDP or DeepSpeed.

    Example:

    ```python
    # Before the Trainer: it sets up the device anew.
    args = EvolutionArguments("evolution", population_size=16, fitness="balanced_accuracy", recombination="best")
    trainer = Trainer(model, training_args, train_dataset=train, eval_dataset=test)
    trainer.add_callback(EvolutionCallback(trainer, args, fitness_dataset=held_out))
    trainer.train()
    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        args: EvolutionArguments,
        fitness_dataset: Any,
        when: str = "epoch_end",
        data_collator: Any | None = None,
        compute_metrics: Any | None = None,
    ):
        if when not in WHEN:
            raise SMDError(f"when='{when}' is not one of {', '.join(WHEN)}.")
        try:
            _ = trainer.accelerator.distributed_type
        except AttributeError as error:
            raise SMDError(
                "EvolutionArguments were made after the Trainer, and arguments of training set up the device anew, which leaves a "
                "Trainer without one. Make EvolutionArguments first, then the Trainer, then the callback."
            ) from error
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise SMDError(
                "EvolutionCallback changes single weights in place, but FSDP and DeepSpeed spread them over devices. Train without "
                "them, or evolve the saved model with EvolutionTrainer afterwards."
            )
        if args.asks_for("ensemble_size") or args.save_children or args.push_to_hub:
            raise SMDError(
                "ensemble_size, save_children and push_to_hub make files of an evolution, and EvolutionCallback makes none. Leave "
                "them out, or evolve the saved model with EvolutionTrainer afterwards."
            )
        if args.objectives is not None or args.fitness in OOD_METRICS:
            raise SMDError(
                "objectives, and a fitness on out-of-distribution images, are for EvolutionTrainer, which keeps the front and takes "
                "the second data set. Choose one fitness here, or evolve the saved model with EvolutionTrainer afterwards."
            )
        if args.unlabeled:
            raise SMDError(
                "unlabeled is for EvolutionTrainer: a Trainer that trains by gradients has labels, and EvolutionCallback takes them. Leave "
                "it out, or evolve the saved model with EvolutionTrainer afterwards."
            )
        check_map_style(fitness_dataset, "fitness_dataset")
        warn_of_ignored_arguments(args)
        for name in ("warm_start", "refit_head"):
            if args.asks_for(name):
                logger.warning(
                    f"{name} has no effect in EvolutionCallback: the Trainer trains the head. Leave it out."
                )
        self.trainer = trainer
        self.args = args
        self.when = when
        self.generations: list[dict[str, Any]] = []
        model: Any = trainer.model
        device = trainer.args.device
        self.task = task = task_of_run(args, model)
        if is_classification(task):
            metrics = merged(named_metrics(args, has_own=compute_metrics is not None), compute_metrics)
            self.fitness = Fitness(args.fitness, metrics, args.fitness_greater_is_better)
        else:
            self.fitness, _, _ = scoring_of(task, args, compute_metrics)
        task.configure(model, args)
        self.processes = Processes(args.spread, trainer.args.process_index, trainer.args.world_size)
        readable = ReadableRows(args, self.processes)
        fitness_dataset = readable(fitness_dataset, "fitness_dataset")
        self.left_out = readable.left_out
        given = GivenData(
            trainer.processing_class,
            fitness_dataset,
            data_collator=data_collator,
            has_own_metrics=compute_metrics is not None,
            otherwise="Or give the model that is being trained the labels of its data (config.id2label), in the order in which it is "
            "trained on them.",
        )
        data = task.prepare(model, args, given)
        fitness_dataset, data = fitting_rows(readable, fitness_dataset, data)
        if data.image_column is not None and args.on_bad_images == "raise":
            checked = {"processes": self.processes, "check_row": data.check_row}
            check_images(fitness_dataset, data.image_column, what="fitness_dataset", **checked)
        make_batches = BatchMaker(args, model, data.collator, trainer.processing_class, device, task.keeps_labels)
        self.images = RunImages(args, make_batches, data, fitness_dataset)
        # What cannot work is refused now, not after an epoch.
        self._build_evolution()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.when == "epoch_end":
            self.evolve(control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.when == "train_end":
            self.evolve(control)

    def evolve(self, control: TrainerControl | None = None) -> list[Generation]:
        """
        Evolves the model for `num_generations` generations and logs each.

        Args:
            control ([`~transformers.TrainerControl`], *optional*): of the event that this happens in.
        """
        args, done = self.args, []
        with explain_oom(args), modes_kept(self.images.make_batches.model):
            # The model has been trained since the last time.
            evolution = self._build_evolution()
            if self.images.needs_slopes:
                with self._bar("Which images have a steep loss") as bar:
                    self.images.draw_by_importance(image_slopes(evolution, self.images.fitness, bar))
            with self._bar("Calibrating sigma") as evolution.evaluator.work:
                sigma = self._sigma(evolution)
            for number in range(args.num_generations):
                generation = len(self.generations)
                evolution.score_on(self.images.of_generation(generation))
                sigma_now = scheduled_sigma(sigma, args.sigma_schedule, number, args.num_generations)
                description = f"Evolving, generation {number + 1}/{args.num_generations}"
                with self._bar(description) as evolution.evaluator.work:
                    step = evolution.step(generation, sigma_now)
                done.append(step)
                self.generations.append(step.record())
                self._log(step, control)
        return done

    def _bar(self, description: str) -> ScoringBar:
        run = self.trainer.args
        return ScoringBar(description, shown=not run.disable_tqdm and run.process_index == 0)

    def _build_evolution(self) -> Evolution:
        trainer, images = self.trainer, self.images
        make_evaluator = partial(
            build_evaluator,
            images.make_batches.model,
            self.args,
            trainer.args.device,
            lambda: trainer.accelerator.autocast(),
            self.processes,
            # Trainer decides how the model is compiled and laid out in memory.
            plain=True,
            reading=self.task,
        )
        model = images.make_batches.model
        with modes_kept(model):
            sets = (images.fitness, images.selection)
            return build_evolution(model, self.args, make_evaluator, self.fitness, *sets, task=self.task)

    def _sigma(self, evolution: Evolution) -> float:
        args = self.args
        if evolution.mutation.prune or args.sigma:
            return args.sigma
        return calibrated(evolution, self.images.fitness, args.calibration_samples, args.calibration_target).sigma

    def _log(self, generation: Generation, control: TrainerControl | None) -> None:
        # A log within an event would reset Trainer's flag to log the epoch.
        should_log = control is not None and control.should_log
        values = generation.logs(self.fitness)
        values["selected_nll" if is_classification(self.task) else "selected_loss"] = values.pop("loss")
        self.trainer.log({f"evolution_{key}": value for key, value in values.items()})
        if control is not None:
            control.should_log = should_log


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Puts each module back into the mode (train or eval) that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
