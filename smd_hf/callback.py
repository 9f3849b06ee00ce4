"""
`EvolutionCallback`: generations of evolution in the midst of gradient training, by an ordinary `transformers.Trainer`.

The weights change in place, so the optimizer goes on with them and with its own state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .arguments.evolution_arguments import EvolutionArguments
from .arguments.inherited_arguments import warn_of_ignored_arguments
from .data.batches import ImageBatches
from .data.fitness_samples import FreshSamples, split_indices
from .data.image_checks import ReadableRows, check_images
from .data.map_style import check_map_style
from .data.pixels import codec_for
from .data.preparation import check_problem_type, prepare_data
from .data.reading import spare_threads
from .errors import SMDError
from .metrics.classification import merged, named_metrics
from .metrics.ood import OOD_METRICS
from .models.inputs import input_names
from .parallel.processes import Processes
from .run.batch_size import tells_of_memory
from .scoring.bars import ScoringBar
from .scoring.costs import suffix_costs
from .scoring.evaluator import Evaluator
from .search.build import make_mutation, make_recombination
from .search.evolution import Evolution, Generation
from .search.fitness import Fitness
from .search.sigma import calibrated, scheduled_sigma

WHEN = ("epoch_end", "train_end")


class EvolutionCallback(TrainerCallback):
    """
    Evolves the model that a Trainer trains, for `num_generations` generations after each epoch or once at the end.

    After an epoch, evolution comes before Trainer's own evaluation and saving. At the end of training, it comes after the
    best checkpoint has been loaded, where that is asked for; `trainer.save_model()` then saves what it made. The log receives
    `evolution_*` values.

    Args:
        trainer ([`~transformers.Trainer`]): whose model, device, image processor and log these are.
        args ([`EvolutionArguments`]): the method, and `per_device_eval_batch_size` for scoring. Where sigma is not given, it is
            calibrated each time anew. What makes files (ensembles, deltas, reports, pushes) and `auto_find_batch_size` have no
            effect here.
        fitness_dataset: images and labels, or rows of `pixel_values`, none of which are to be reported on; a share of
            `selection_fraction` chooses among finished candidates.
        when (`str`, *optional*, defaults to `"epoch_end"`): `"epoch_end"` or `"train_end"`.
        data_collator (`Callable`, *optional*): of rows to `pixel_values` and `labels`; found as by [`EvolutionTrainer`] by default.
        compute_metrics (`Callable`, *optional*): as in Trainer, for a fitness of its own.

    Attributes:
        generations (list of `dict`): a [`Generation.record`] each.
        left_out (`dict[str, int]`): how many rows of `fitness_dataset` were left out, with `on_bad_images="skip"`.

    Raises:
        `SMDError`: for choices, labels, images or a way of training (weights in parts on several devices) that cannot work.

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
        if args.ensemble_size or args.save_children or args.push_to_hub:
            raise SMDError(
                "ensemble_size, save_children and push_to_hub make files of an evolution, and EvolutionCallback makes none. Leave "
                "them out, or evolve the saved model with EvolutionTrainer afterwards."
            )
        if args.objectives is not None or args.fitness in OOD_METRICS:
            raise SMDError(
                "objectives, and a fitness on images of another distribution, are for EvolutionTrainer, which keeps the front and takes "
                "the second data set. Choose one fitness here, or evolve the saved model with EvolutionTrainer afterwards."
            )
        check_map_style(fitness_dataset, "fitness_dataset")
        warn_of_ignored_arguments(args)
        self.trainer = trainer
        self.args = args
        self.when = when
        self.generations: list[dict[str, Any]] = []
        model = trainer.model
        metrics = merged(named_metrics(args, has_own=compute_metrics is not None), compute_metrics)
        self.fitness = Fitness(args.fitness, metrics, args.fitness_greater_is_better)
        processes = Processes(args.spread, trainer.args.process_index, trainer.args.world_size)
        readable = ReadableRows(args, processes)
        fitness_dataset = readable(fitness_dataset, "fitness_dataset")
        self.left_out = readable.left_out
        data = prepare_data(
            model,
            args,
            trainer.processing_class,
            fitness_dataset,
            None,
            data_collator,
            otherwise="Or give the model that is being trained the labels of its data (config.id2label), in the order in which it is "
            "trained on them.",
        )
        if data.image_column is not None and args.on_bad_images == "raise":
            check_images(fitness_dataset, data.image_column, what="fitness_dataset", processes=processes)
        check_problem_type(model)
        self.collator = data.collator
        self.dataset = fitness_dataset
        labels = np.zeros(len(fitness_dataset), dtype=np.int64) if data.train_labels is None else data.train_labels
        fitness, selection = split_indices(labels, args.selection_fraction, args.seed)
        self.fresh_samples: FreshSamples | None = None
        if args.fitness_samples_per_generation is not None:
            self.fresh_samples = FreshSamples(fitness, labels[fitness], args.fitness_samples_per_generation, args.seed)
        self.fitness_batches = self._batches(fitness)
        self.selection_batches = self._batches(selection) if len(selection) else None
        self.mutation = make_mutation(model, args, self._suffix_costs)
        self.recombination = make_recombination(args, model.config.num_labels)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.when == "epoch_end":
            self.evolve(control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self.when == "train_end":
            self.evolve(control)

    @tells_of_memory
    def evolve(self, control: TrainerControl | None = None) -> list[Generation]:
        """
        Evolves the model for `num_generations` generations and logs each.

        Args:
            control ([`~transformers.TrainerControl`], *optional*): of the event that this happens in.
        """
        args, done = self.args, []
        with modes_kept(self.trainer.model):
            evolution = self._evolution()
            # The parent is another one than last time.
            self.mutation.parent_changed()
            with self._bar("Calibrating sigma") as evolution.evaluator.work:
                sigma = self._sigma(evolution)
            for number in range(args.num_generations):
                generation = len(self.generations)
                if self.fresh_samples is not None:
                    evolution.score_on(self._batches(self.fresh_samples.indices(generation)))
                sigma_now = scheduled_sigma(sigma, args.sigma_schedule, number, args.num_generations)
                with self._bar(
                    f"Evolving, generation {number + 1}/{args.num_generations}"
                ) as evolution.evaluator.work:
                    step = evolution.step(generation, sigma_now)
                done.append(step)
                self.generations.append(step.record())
                self._log(step, control)
        return done

    def _bar(self, description: str) -> ScoringBar:
        run = self.trainer.args
        return ScoringBar(description, shown=not run.disable_tqdm and run.process_index == 0)

    def _evolution(self) -> Evolution:
        args, run = self.args, self.trainer.args
        evaluator = Evaluator(
            self.trainer.model,
            run.device,
            self.trainer.accelerator.autocast,
            Processes(args.spread, run.process_index, run.world_size),
            args.prefix_replay,
            int(args.child_cache_gb * 1e9),
        )
        return Evolution(
            self.trainer.model,
            self.mutation,
            evaluator,
            self.fitness,
            self.recombination,
            self.fitness_batches,
            self.selection_batches,
            args.elitism,
            survivors=min(args.population_size, args.recombination_top_k) if args.racing == "halving" else 0,
        )

    def _sigma(self, evolution: Evolution) -> float:
        args = self.args
        if self.mutation.prune or args.sigma is not None:
            return args.sigma or 0.0
        return calibrated(evolution, self.fitness_batches, args.calibration_samples, args.calibration_target).sigma

    def _suffix_costs(self) -> list[float]:
        model = self.trainer.model
        [batch] = self.fitness_batches.head(1)
        with modes_kept(model):
            return suffix_costs(model, batch.inputs(model.device, model.dtype))

    def _log(self, generation: Generation, control: TrainerControl | None) -> None:
        # A log in the midst of an event would use up Trainer's wish to log the epoch.
        should_log = control is not None and control.should_log
        values = generation.logs(self.fitness)
        values["selected_nll"] = values.pop("loss")
        self.trainer.log({f"evolution_{key}": value for key, value in values.items()})
        if control is not None:
            control.should_log = should_log

    def _batches(self, indices: np.ndarray) -> ImageBatches:
        args, run = self.args, self.trainer.args
        return ImageBatches(
            self.dataset,
            self.collator,
            args.eval_batch_size,
            indices,
            cache_bytes=int(args.image_cache_gb * 1e9 * len(indices) / len(self.dataset)),
            num_workers=args.dataloader_num_workers,
            codec=codec_for(self.trainer.processing_class),
            device=run.device if args.image_cache_on_device else None,
            input_names=input_names(self.trainer.model),
            prefetch_factor=args.dataloader_prefetch_factor,
            threads=args.reading_threads,
            spare=spare_threads(run.device),
        )


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Every module is in train or eval mode again afterwards, as it was before, each for itself."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
