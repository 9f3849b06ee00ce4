"""`EvolutionTrainer`: a Trainer whose step is one generation."""

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from .arguments.evolution_arguments import EvolutionArguments
from .arguments.inherited_arguments import check_not_sharded
from .artifacts.collect import Artifacts, collect_artifacts, write_artifacts
from .artifacts.resolve_model import resolve_model
from .data.image_checks import ReadableRows
from .data.preparation import check_problem_type, prepare_data
from .errors import SMDError
from .files import explain_full_disk
from .hub.publisher import HubMixin
from .models.checkpoints import save_checkpoint
from .models.inputs import as_inputs, input_names, select_inputs
from .models.quantized import as_if_not_quantised, check_can_be_saved, stored_tensors
from .parallel.processes import Processes
from .parallel.stopping import Interrupted, Terminated
from .reports.run_report import run_report, write_run_files
from .reports.several_objectives import ObjectivesMixin
from .run.batch_size import memory_is_told, settle_batch_size, tells_of_memory
from .run.compatibility import called_model_init, check_datasets, check_no_optimizer, check_overrides, settle_arguments
from .run.evaluation_metrics import evaluate_with_labels, metrics_of
from .run.journal import CALIBRATION_SCOPE, PARENT_SCOPE, ResumeMixin, end_scope, generation_scope
from .run.limits import Limits
from .run.lock import locked
from .run.progress import EvolutionProgressCallback, child_reporter
from .run.run_work import run_work, scoring_shown, shows_bars
from .run.state import RunState
from .run.trainer_checkpoints import CheckpointMixin
from .scoring.bars import TickingBar
from .scoring.evaluator import Evaluator
from .scoring.runtimes.choose import RuntimeChoice
from .search.build import compiled, make_mutation, make_recombination
from .search.evolution import Evolution
from .search.fitness import Fitness
from .search.mutation import zero_share
from .search.sigma import calibrated, scheduled_sigma

logger = logging.get_logger(__name__)


class EvolutionTrainer(ObjectivesMixin, ResumeMixin, CheckpointMixin, HubMixin, Trainer):
    """
    Evolves a pretrained image classifier by forward passes alone, with the interface of [`~transformers.Trainer`].

    Args:
        model ([`~transformers.PreTrainedModel`], `str` or `Path`): the parent, or the Hub id or folder of one.
        args ([`EvolutionArguments`], *optional*): every choice.
        data_collator (`Callable`, *optional*): rows to the model's inputs and `labels`. By default images go through
            `processing_class`, and labels are matched to the model's by name.
        train_dataset (*optional*): the fitness data: anything with a length and rows that hold an image and a label.
        eval_dataset (*optional*): the test data to report on, in no way used to choose (but by callbacks that stop early, and
            by `load_best_model_at_end`). Of several in a dict, the first is reported on.
        processing_class (*optional*): the image processor; loaded with the model where that is a name.
        compute_loss_func (`Callable`, *optional*): as in Trainer, from outputs, labels and `num_items_in_batch` to a loss that is
            differentiable in the logits: what a Gauss-Newton step lowers, in place of `args.objective`.
        compute_metrics (`Callable`, *optional*): as in Trainer, from logits and labels to a dict; by default accuracy, NLL
            and calibration error.
        callbacks (list of [`~transformers.TrainerCallback`], *optional*): further callbacks.
        model_init (`Callable`, *optional*): returns the parent, in place of `model`; called once, with no trial.
        preprocess_logits_for_metrics (`Callable`, *optional*): as in Trainer, from logits and labels to what `compute_metrics` is
            given as predictions, in evaluation and as fitness.
        optimizers, optimizer_cls_and_kwargs: only Trainer's defaults; an evolution has no optimizer.
        ood_dataset (*optional*): images of none of the model's classes, in rows as those of `train_dataset`, without labels: what
            `ood_auroc` is about, as fitness or one of several objectives. The report says how parent and evolved model tell them.

    Attributes:
        run ([`RunState`]): what happened in each generation, and what it cost.
        dataset_name (`str`, *optional*): of the data set on the Hub, for report and cards; set it where the data do not say.
        report (`dict`): `gain_report.json`, once trained with an `eval_dataset`.
        stopped (`dict`, *optional*): which of `max_hours` and `max_forward_passes` ended the run, and after how many generations.

    Raises:
        `SMDError`: for a model, data set or argument that cannot work, before anything is scored.

    Example:

    ```python
    trainer = EvolutionTrainer("timm/resnet18.a1_in1k", EvolutionArguments("out"), train_dataset=train, eval_dataset=test)
    trainer.train()
    print(trainer.report["verdict"])
    ```
    """

    args: EvolutionArguments

    def __init__(
        self,
        model: PreTrainedModel | str | Path | None = None,
        args: EvolutionArguments | None = None,
        data_collator: Callable[[list[Any]], dict[str, torch.Tensor]] | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: Any | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        ood_dataset: Dataset | None = None,
        model_init: Callable[..., PreTrainedModel] | None = None,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type, dict[str, Any]] | None = None,
    ):
        # 1. What is given
        if args is None:
            args = EvolutionArguments(output_dir="tmp_trainer")
        check_overrides(type(self), EvolutionTrainer)
        check_no_optimizer(optimizers, optimizer_cls_and_kwargs)
        check_datasets(train_dataset, eval_dataset, ood_dataset)
        settle_arguments(args)
        self._given_name = str(model) if isinstance(model, str | Path) else None
        metrics, evaluation_metrics = metrics_of(args, compute_metrics, preprocess_logits_for_metrics)
        self.fitness = Fitness(args.fitness, metrics, args.fitness_greater_is_better)
        self._take_objectives(args, metrics, ood_dataset)
        model = called_model_init(model, model_init, args)
        model, processing_class, missing_head = resolve_model(model, args, processing_class)
        readable = ReadableRows(args)
        train_dataset = readable(train_dataset, "train_dataset")
        eval_dataset = readable(eval_dataset, "eval_dataset")
        ood_dataset = self.ood_dataset = readable(ood_dataset, "ood_dataset")
        self.left_out = readable.left_out
        data = prepare_data(model, args, processing_class, train_dataset, eval_dataset, data_collator, missing_head)
        check_problem_type(model, data.new_labels)

        # 2. Rows keep the columns that the collator needs, and that no model takes
        args.remove_unused_columns = args.remove_unused_columns and not data.all_columns

        # 3. Trainer's own set-up
        with as_if_not_quantised(model):
            super().__init__(
                model=model,
                args=args,
                data_collator=data.collator,
                train_dataset=train_dataset,
                eval_dataset=data.eval_dataset,
                processing_class=processing_class,
                compute_loss_func=compute_loss_func,
                compute_metrics=evaluation_metrics,
                callbacks=callbacks,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            check_not_sharded(args, "FSDP" if self.is_fsdp_enabled else "DeepSpeed")
        # Trainer's first evaluation would wrap the model's forward for mixed precision and compile it a second time.
        self.accelerator._models.append(self.model)
        evaluate_with_labels(self)
        # Its loss would be multiplied by the number of processes, as that of a model that is told the number of all tokens.
        self.model_accepts_loss_kwargs = False
        if not args.disable_tqdm:
            self.remove_callback(DEFAULT_PROGRESS_CALLBACK)
            self.add_callback(EvolutionProgressCallback)

        if args.channels_last:
            self.model.to(memory_format=torch.channels_last)

        # 4. The three disjoint sets
        self.batch_size_search = settle_batch_size(self)
        self.image_column = data.image_column
        self.train_classes = data.train_classes
        if train_dataset is not None:
            self._split_train_dataset(data.train_labels)
            if ood_dataset is not None:
                self._deal_out(ood_dataset)

        # 5. A head for the data set's labels
        self.new_head = None if data.new_labels is None else args.head_init or "linear_probe"
        if data.new_labels is not None:
            with memory_is_told(args):
                self._replace_head(data.new_labels)
        processes = Processes(args.spread, args.process_index, args.world_size)
        processes.broadcast(stored_tensors(self.model))

        # 6. The method
        self.recombination = make_recombination(args, self.model.config.num_labels, compute_loss_func)
        self.mutation = make_mutation(self.model, args, self._suffix_costs)
        self.evaluator = Evaluator(
            self.model,
            args.device,
            self.autocast_smart_context_manager,
            processes,
            args.prefix_replay,
            int(args.child_cache_gb * 1e9),
            forward=compiled(self.model, args) if args.torch_compile else None,
            memory_format=torch.channels_last if args.channels_last else torch.preserve_format,
            choice=self._runtime_choice(),
        )
        self.run = RunState()
        self.dataset_name: str | None = None
        self.report: dict[str, Any] | None = None
        self.stopped: dict[str, Any] | None = None
        self._test_seconds = 0.0
        self.parent_test_logits: np.ndarray | None = None
        self.parent_zero_share = zero_share(self.mutation.parameters)
        name = str(self.model.config._name_or_path) or self._given_name or type(self.model).__name__
        # A relative path looks like the id of a model on the Hub, from any other folder than this one.
        self.parent_name = str(Path(name).absolute()) if Path(name).is_dir() else name
        self.first_parent: PreTrainedModel | None = None

    def _runtime_choice(self) -> RuntimeChoice | None:
        args = self.args
        if args.torch_compile:
            return None
        images = 0
        if self.fitness_batches is not None:
            images = args.population_size * args.num_generations * self.images_per_generation
        return RuntimeChoice(
            self.model,
            args.runtime,
            args.precision,
            self.mutation.space.names,
            args.eval_batch_size,
            args.prefix_replay,
            images,
            mixed_precision=self.accelerator.mixed_precision != "no",
        )

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager:
        """Mixed precision, in evaluation as in scoring."""
        return self.accelerator.autocast()

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> None:
        """Not there: it would put another model in place of the one that is evolved. Raises `SMDError`."""
        raise SMDError(
            "hyperparameter_search is not available in EvolutionTrainer. Make one trainer for each choice of arguments, each with an "
            "output_dir of its own, and compare their reports (gain_report.json)."
        )

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As in Trainer; inputs in the model's dtype, which models of custom code do not see to themselves."""
        inputs = super()._prepare_inputs(inputs)
        floats = as_inputs(select_inputs(inputs, input_names(self.model)), self.model)
        return {name: floats.get(name, value) for name, value in inputs.items()}

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """
        Evolves the model, as Trainer trains it; the model is left evolved, and saved in `output_dir`.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint, or `True` to go on with the run in `output_dir`,
                from its ledger and its last checkpoint, if any; where there is no run, one is begun. Nothing that was scored is
                scored again, and the run ends in the same weights as one that was never stopped.

        Raises:
            `SMDError`: if there is no train_dataset, an image does not decode, the parent's logits are not finite, another run
                is at work in `output_dir`, its disk is full, or what is to be resumed is damaged or belongs to another run.
            `KeyboardInterrupt`, `SystemExit`: after Ctrl-C or SIGTERM, when the cell that was being scored is done. The
                parent of the generation is in the model, and the run can be resumed.
        """
        stop, folder = self.evaluator.processes.stop, self.args.output_dir
        try:
            with explain_full_disk(folder), locked(folder, self.evaluator.processes, self.args.should_save):
                with stop.listening(self.args.world_size):
                    output = self._train(resume_from_checkpoint, **kwargs)
                    stop.check()
                self._push_at_end()
        except (Interrupted, Terminated) as told:
            # Python knows only KeyboardInterrupt itself for Ctrl-C, no class of its kind.
            kind = KeyboardInterrupt if isinstance(told, Interrupted) else Terminated
            done, planned = self.state.global_step, self.args.num_generations
            raise kind(f"{done} of {planned} generations were finished; what was scored since is kept.") from None
        return output

    @tells_of_memory
    def _train(self, resume_from_checkpoint: str | bool | None, **kwargs) -> TrainOutput:
        if self.fitness_batches is None:
            raise SMDError("There is no train_dataset to score children on. Pass one to EvolutionTrainer.")
        check_can_be_saved(self.model, self.args.ensemble_size)
        self._check_images(self.train_dataset, self.image_column, "train_dataset")
        test = self.reported_dataset
        if test is not None:
            self._check_images(test, self.image_column, "eval_dataset")
            # Read once for the parent now and once for the evolved model at the end: not worth keeping in memory.
            self.test_batches = self._batches(test, None, 0.0)
        self.evaluator.settle(self.fitness_batches)
        checkpoint = self._open_ledger(resume_from_checkpoint)
        with self.ledger.scope(PARENT_SCOPE), scoring_shown(self, "Testing the parent"):
            if test is not None:
                start = time.monotonic()
                self.parent_test_logits = self.evaluator.logits(self.test_batches)
                self._test_seconds = time.monotonic() - start
            self._look_at_parent()
        if self.args.save_children:
            self.first_parent = self._copy_of_parent()
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _copy_of_parent(self) -> PreTrainedModel:
        """The parent that deltas are relative to; saved beside them where its name alone does not give it again."""
        parent = copy.deepcopy(self.model).cpu()
        if self._given_name is None or not parent.name_or_path or self.new_head is not None:
            folder = Path(self.args.output_dir) / "parent"
            if self.args.should_save:
                save_checkpoint(parent, self.processing_class, folder)
            parent.name_or_path = parent.config._name_or_path = str(folder)
            parent.config._commit_hash = None
        return parent

    # Without it, Trainer would begin the run again, with a batch size that is of no meaning here.
    @tells_of_memory
    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: EvolutionArguments | None = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        start = time.time() - self._point.run.seconds_before
        evolution = self._make_evolution(
            self.model,
            self.mutation,
            self.evaluator,
            self.fitness,
            self.recombination,
            self.fitness_batches,
            self.selection_batches,
            args.elitism,
            survivors=self._survivors() if args.racing == "halving" else 0,
            keep_parent=bool(args.ensemble_size or args.save_children),
        )
        self._begin(evolution, trial)
        self.limits = limits = Limits(self, evolution)
        sigma = args.sigma
        if sigma is None:
            with self.ledger.scope(CALIBRATION_SCOPE), scoring_shown(self, "Calibrating sigma"):
                sigma = 0.0 if self.mutation.prune else self._calibrated_sigma(evolution)
        limits.tell_ahead(self._test_seconds)
        work = run_work(self, evolution, limits)
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
        self.control.should_training_stop |= self._point.stopped
        if args.eval_on_start and not self.state.global_step:
            self._evaluate(trial, ignore_keys_for_eval, skip_scheduler=True)

        while self.state.global_step < args.num_generations and not self.control.should_training_stop:
            if not limits.allow_another():
                break
            self.control = self.callback_handler.on_epoch_begin(args, self.state, self.control)
            self.control = self.callback_handler.on_step_begin(args, self.state, self.control)
            generation_sigma = scheduled_sigma(
                sigma, args.sigma_schedule, self.state.global_step, args.num_generations
            )
            if self.fresh_samples is not None:
                rows = self.fresh_samples.indices(self.state.global_step)
                evolution.score_on(self._batches(self.train_dataset, rows, self._fitness_cache_share))
            report = child_reporter(self.callback_handler.callbacks, args, self.state, self.fitness)
            work.generation(self.state.global_step)
            with self.ledger.scope(generation_scope(self.state.global_step)):
                generation = limits.in_time(partial(evolution.step, self.state.global_step, generation_sigma, report))
            if generation is None:
                break
            self._record(generation)
            self.state.global_step += 1
            self.state.epoch = float(self.state.global_step)
            self.control = self.callback_handler.on_step_end(args, self.state, self.control)
            logs = generation.logs(self.fitness)
            self._log_evaluate_save(logs, trial, ignore_keys_for_eval)
            self.control = self.callback_handler.on_epoch_end(args, self.state, self.control)
            self._log_evaluate_save(logs, trial, ignore_keys_for_eval)
            self._finish(generation)

        cost = self.run.cost(self.fitness_batches.num_images)
        work.collect()
        with self.ledger.scope(end_scope(self.state.global_step)):
            self._find_front(evolution)
            found = self._collect(evolution)
        num_samples = self.images_per_generation * args.population_size * args.num_generations
        output = self._finalize_training(trial, num_samples, start)
        self._write_results(output.metrics, cost, found)
        return output

    def _survivors(self) -> int:
        """How many children a race must leave: what recombination, ensemble and deltas ask for."""
        args = self.args
        return min(args.population_size, max(args.recombination_top_k, args.ensemble_size, args.save_children))

    def _collect(self, evolution: Evolution) -> Artifacts:
        wanted = self.args.ensemble_size or self.args.save_children
        if wanted and evolution.last is None:
            logger.warning("No generation was run, so there are no children for an ensemble or deltas.")
        if not wanted or evolution.last is None:
            return Artifacts()
        return collect_artifacts(evolution, self.args, self.test_batches, self.first_parent, self.front)

    def _calibrated_sigma(self, evolution: Evolution) -> float:
        """Sigma by bisection; the one of the first run where this one resumes."""
        if self.run.calibration is None:
            args = self.args
            found = calibrated(evolution, self.fitness_batches, args.calibration_samples, args.calibration_target)
            logger.warning(str(found))
            self.run.calibration = found
            self.log({"calibrated_sigma": found.sigma, "calibrated_flipped": found.flipped})
        return self.run.calibration.sigma

    def _log_evaluate_save(self, logs: dict[str, float], trial: Any, ignore_keys: list[str] | None) -> None:
        """What Trainer does after a step, with the logs of a generation."""
        if self.control.should_log:
            self.log(dict(logs))
        if self.control.should_evaluate:
            metrics = self._evaluate(trial, ignore_keys)
            is_best = self._determine_best_metric(metrics=metrics, trial=trial)
            if self.args.save_strategy == "best":
                self.control.should_save = is_best
        if self.control.should_save:
            self._save_checkpoint(self.model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _write_results(self, metrics: dict[str, float], cost: dict[str, float], found: Artifacts) -> None:
        """Saves the evolved model and the other artifacts, compares them with the parent on the test data, and says what it found."""
        self.save_model(_internal_call=True)
        self.save_state()
        self.save_metrics("train", metrics)
        scope = self.ledger.scope(f"{end_scope(self.state.global_step)}-test")
        with scope, scoring_shown(self, "Testing the evolved model"):
            evolved_logits = None if self.test_batches is None else self.evaluator.logits(self.test_batches)
            self._measure_ood(evolved_logits)
        # The report of the first process, on all of them, once the files are there.
        with TickingBar("Writing the results", shows_bars(self)):
            [self.report, *_] = self.evaluator.processes.gather(
                lambda: self._write_report(evolved_logits, cost, found)
            )
        # The cells of a generation that a limit has ended are good for a run that goes on with a higher one.
        self.ledger.end(keep=() if self.stopped is None else (PARENT_SCOPE, generation_scope(self.state.global_step)))

    def _write_report(
        self, evolved_logits: np.ndarray | None, cost: dict[str, float], found: Artifacts
    ) -> dict[str, Any] | None:
        if not self.args.should_save:
            return None
        folder = Path(self.args.output_dir)
        write_artifacts(found, self.processing_class, folder)
        self._write_front()
        self.collected = {"ensemble": len(found.members), "children": len(found.deltas)}
        if evolved_logits is None:
            return None
        self.report = run_report(self, evolved_logits, cost, found)
        self.save_metrics("test", {f"test_{key}": value for key, value in self.report["evolved"].items()})
        write_run_files(self, evolved_logits, found)
        return self.report
