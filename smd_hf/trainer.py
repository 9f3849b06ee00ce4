"""`EvolutionTrainer`: a Trainer whose step is one generation."""

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import logging

from .arguments.evolution_arguments import EvolutionArguments
from .artifacts.first_parent import FirstParent
from .artifacts.resolve_model import resolve_model
from .data.image_checks import ReadableRows
from .data.preparation import fitting_rows
from .data.streaming import take_streams
from .errors import SMDError
from .files import explain_full_disk
from .hub.forward_trainer import ForwardTrainer
from .models.quantized import check_can_be_saved, stored_tensors
from .parallel.processes import Processes
from .parallel.stopping import Interrupted, Terminated
from .reports.run_report import write_results
from .reports.run_result import RunResult
from .reports.trackers import TrackerCallback
from .run.batch_size import explain_oom, settle_batch_size
from .run.compatibility import called_model_init, check_datasets, check_no_optimizer, check_overrides, settle_arguments
from .run.cost_model import CostModel
from .run.identity import run_identity
from .run.journal import CALIBRATION_SCOPE, PARENT_SCOPE, Journal, end_scope, generation_scope
from .run.limits import Limits
from .run.lock import locked
from .run.new_head import fit_new_head
from .run.progress import child_reporter
from .run.run_images import BatchMaker, RunImages, first_of
from .run.run_task import scoring_of, task_of_run
from .run.run_work import run_work, scoring_shown
from .run.trainer_state import callback_states, state_folder, without_log
from .run.warm_start import WarmStart
from .scoring.bars import TickingBar
from .search.build import build_evaluator, build_evolution
from .search.evolution import Evolution, Generation
from .search.sigma import calibrated, scheduled_sigma
from .tasks.protocol import GivenData

logger = logging.get_logger(__name__)


class EvolutionTrainer(ForwardTrainer):
    """
    Evolves a pretrained image model by forward passes alone, with the interface of [`~transformers.Trainer`].

    Args:
        model ([`~transformers.PreTrainedModel`], `str` or `Path`): the parent, or the Hub id or folder of one.
        args ([`EvolutionArguments`], *optional*): the run's arguments.
        data_collator (`Callable`, *optional*): rows to the model's inputs and `labels`. By default, images go through
            `processing_class`, and labels are matched to the model's by name.
        train_dataset (*optional*): the training data: anything with a length and rows with an image and a label. One part
            scores children, the other chooses among candidates.
        eval_dataset (*optional*): the test data to report on. It is never used to choose, except by callbacks that stop early
            and by `load_best_model_at_end`. If it is a dict, the first data set is reported on.
        processing_class (*optional*): the image processor. If the model is given by name, it is loaded with it.
        compute_loss_func (`Callable`, *optional*): as in Trainer, from outputs, labels and `num_items_in_batch` to a loss that is
            differentiable in the logits. Replaces `args.loss` as the loss of a Gauss-Newton step.
        compute_metrics (`Callable`, *optional*): as in Trainer, from logits and labels to a dict. By default accuracy, NLL, ECE.
        callbacks (list of [`~transformers.TrainerCallback`], *optional*): further callbacks.
        model_init (`Callable`, *optional*): returns the parent, in place of `model`. Called once, without a trial.
        preprocess_logits_for_metrics (`Callable`, *optional*): as in Trainer, in evaluation and for fitness.
        optimizers, optimizer_cls_and_kwargs: only Trainer's defaults. An evolution has no optimizer.
        ood_dataset (*optional*): out-of-distribution images: of none of the model's classes, without labels. For `ood_auroc`
            as the fitness or as one of several objectives. The report compares parent and evolved model on them.

    Attributes:
        run ([`RunState`]): what happened in each generation, and what it cost.
        dataset_name (`str`, *optional*): the data set's id on the Hub, for report and cards. Set it if the data do not say.
        report (`dict`, *optional*): `gain_report.json`, after training with an `eval_dataset`.
        stopped (`dict`, *optional*): which of `max_hours` and `max_forward_passes` ended the run, and after how many generations.
        front ([`RunFront`], *optional*): the front of a run by several objectives.
        ood_report (`dict`, *optional*): AUROC of parent and evolved model on test and out-of-distribution images.
        pushed (`dict[str, str]`): addresses of the last push: `"child"`, `"ensemble"`, `"children"`.
        push_failure (`str`, *optional*): why the push at the end of the run failed, and how to repeat it.
        images, evaluator, evolution, journal, result, publisher: the parts of the run.

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
        train_dataset, eval_dataset = take_streams(args, train_dataset, eval_dataset)
        check_datasets(train_dataset, eval_dataset, ood_dataset)
        settle_arguments(args)
        given = called_model_init(model, model_init, args)
        self.task = task = task_of_run(args, given)
        own = (compute_metrics, preprocess_logits_for_metrics, ood_dataset is not None)
        fitness, objectives, evaluation_metrics = scoring_of(task, args, *own)
        parent, processing_class, missing_head = resolve_model(given, args, processing_class, task.kind)
        task.configure(parent, args)
        readable = ReadableRows(args)
        train_dataset = readable(train_dataset, "train_dataset")
        eval_dataset = readable(eval_dataset, "eval_dataset")
        ood_dataset = readable(ood_dataset, "ood_dataset")
        rows = (processing_class, train_dataset, eval_dataset, data_collator, missing_head)
        data = task.prepare(parent, args, GivenData(*rows, has_own_metrics=compute_metrics is not None))
        train_dataset, data = fitting_rows(readable, train_dataset, data)

        # 2. Trainer's own set-up
        # Rows keep the columns that the collator needs, also those that no model takes.
        args.remove_unused_columns = args.remove_unused_columns and not data.all_columns
        super().__init__(
            model=parent,
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

        # 3. The images, in batches that fit into memory, and a head for their labels
        self.processes = processes = Processes(args.spread, args.process_index, args.world_size)
        how = (self.autocast_smart_context_manager, processes, self.accelerator.mixed_precision != "no")
        self.make_evaluator = partial(build_evaluator, self.model, args, args.device, *how, reading=task)
        kept = (self.data_collator, processing_class, args.device, task.keeps_labels)
        make_batches = BatchMaker(args, self.model, *kept)
        tried = train_dataset if train_dataset is not None else first_of(data.eval_dataset)
        try_batch = partial(make_batches, collator=data.train_collator)
        found_batch_size = settle_batch_size(args, self.make_evaluator(plain=True), try_batch, tried)
        self.images = images = RunImages(args, make_batches, data, train_dataset, ood_dataset, readable.left_out)
        with explain_oom(args):
            labels = data.new_labels
            new_head = None if labels is None else fit_new_head(self.model, labels, images, args)
        processes.broadcast(stored_tensors(self.model))

        # 4. The method, and what a run leaves
        self._evolution: Evolution | None = None
        if train_dataset is not None:
            sets = (images.fitness, images.selection, images.ood)
            method = (self.make_evaluator, fitness, *sets, objectives, compute_loss_func, task)
            self._evolution = build_evolution(self.model, args, *method)
        self.journal = Journal(args.folder, processes, args.should_save)
        first_parent = FirstParent(self.model, str(model) if isinstance(model, str | Path) else None, new_head)
        self.result = RunResult(args, images, first_parent, processing_class, found_batch_size, task)
        self.dataset_name: str | None = None
        self.trackers = TrackerCallback(lambda: self.callback_handler.callbacks, lambda: self.journal.run)
        self.add_callback(self.trackers)

    @property
    def evolution(self) -> Evolution:
        """The method at work. Raises `SMDError` if there is no `train_dataset`."""
        if self._evolution is None:
            raise SMDError("There is no train_dataset to score children on. Pass one to EvolutionTrainer.")
        return self._evolution

    evaluator = property(attrgetter("evolution.evaluator"))
    run = property(attrgetter("journal.run"))
    report = property(attrgetter("result.report"))
    stopped = property(attrgetter("result.stopped"))
    front = property(attrgetter("result.front"))
    ood_report = property(attrgetter("result.ood"))
    pushed = property(attrgetter("publisher.pushed"))
    push_failure = property(attrgetter("publisher.failure"))

    # ---- Training ----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """
        Evolves the model. Afterwards the evolved model is in `model` and saved in `output_dir`.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint, or `True` to go on with the run in `output_dir`
                from its ledger and its last checkpoint. If there is no run, one is begun. Nothing that was scored is scored
                again, and the run ends in the same weights as one that was never stopped.

        Raises:
            `SMDError`: if there is no train_dataset, an image does not decode, the parent's logits are not finite, another run
                is at work in `output_dir`, its disk is full, or the run to resume is damaged or another one.
            `KeyboardInterrupt`, `SystemExit`: after Ctrl-C or SIGTERM, when the cell that was being scored is done. The
                parent of the generation is in the model, and the run can be resumed.
        """
        stop, folder = self.processes.stop, self.args.folder
        try:
            with explain_full_disk(folder), locked(folder, self.processes.gather, self.args.should_save):
                with stop.listening(self.args.world_size):
                    output = self._train(resume_from_checkpoint, **kwargs)
                    stop.check()
                self.push_at_end()
        except (Interrupted, Terminated) as told:
            # For Ctrl-C, Python knows only KeyboardInterrupt itself, not a subclass.
            kind = KeyboardInterrupt if isinstance(told, Interrupted) else Terminated
            done, planned = self.state.global_step, self.args.num_generations
            raise kind(f"{done} of {planned} generations were finished; what was scored since is kept.") from None
        return output

    def _train(self, resume: str | bool | None, **kwargs) -> TrainOutput:
        args, evolution, journal = self.args, self.evolution, self.journal
        check_can_be_saved(self.model, args.ensemble_size)
        with explain_oom(args):
            self.images.check(self.processes)
            evolution.evaluator.settle(self.images.fitness)
            identity = partial(run_identity, args, self.model, self.images, evolution.evaluator.identity)
            journal.open(identity, resume, args.num_generations)
            evolution.evaluator.ledger = journal.ledger
            evolution.begin(journal.run.generations)
            self.result = dataclasses.replace(self.result)
            with journal.scope(PARENT_SCOPE), self._scoring("Testing the parent"):
                self.result.measure_parent(evolution)
            about = (args, evolution, self.images, journal, self._shows_bars)
            self.warm_start = WarmStart(*about, self.compute_loss_func)
            self.result.statistics, self.result.warm_start = self.warm_start.before()
        return super().train(**kwargs)

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: EvolutionArguments | None = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        # Trainer's loop counts a step that max_hours has given up, wraps model.forward, and logs a learning rate. For a lack of
        # memory that is not explained, it would begin again with a smaller training batch.
        with explain_oom(self.args):
            return self._evolve(trial, ignore_keys_for_eval)

    def _evolve(self, trial: Any, ignore_keys: list[str] | None) -> TrainOutput:
        args, images, evolution, journal = self.args, self.images, self.evolution, self.journal
        start = time.time() - journal.run.seconds_before
        self._restore(trial)
        costs = CostModel(evolution, images, args)
        self.limits = limits = Limits(args, costs, journal.run, self.processes)
        sigma = self._sigma()
        if self.is_world_process_zero() and self.state.global_step < args.num_generations:
            logger.warning(costs.estimate(range(self.state.global_step, args.num_generations)))
        work = run_work(self.callback_handler.callbacks, costs, limits)
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
        self.control.should_training_stop |= journal.point.stopped
        if args.eval_on_start and not self.state.global_step:
            self._evaluate(trial, ignore_keys, skip_scheduler=True)

        while self.state.global_step < args.num_generations and not self.control.should_training_stop:
            if not limits.allow_another():
                break
            self.control = self.callback_handler.on_epoch_begin(args, self.state, self.control)
            self.control = self.callback_handler.on_step_begin(args, self.state, self.control)
            work.generation(self.state.global_step)
            generation = self._generation(sigma, limits)
            if generation is None:
                break
            self._after_generation(generation, trial, ignore_keys)

        self.result.stopped = limits.stopped
        self.result.refit_head = self.warm_start.after()
        cost = journal.run.cost(images.fitness.num_images)
        work.collect()
        with journal.scope(end_scope(self.state.global_step)):
            self.result.collect(evolution)
        self.warm_start.put_last()
        self._tr_loss, self._total_loss_scalar, self._initial_global_step = torch.tensor(0.0), journal.run.loss, 0
        num_samples = images.per_generation * args.population_size * args.num_generations
        output = self._finalize_training(trial, num_samples, start)
        self._write_results(output.metrics, cost)
        return output

    def _restore(self, trial: Any) -> None:
        """Puts Trainer's state and the model back to where they were after the last finished generation."""
        journal, generations = self.journal, self.args.num_generations
        journal.rebuild(self.evolution)
        with state_folder(journal.point.trainer_state) as folder:
            self._init_training_state(generations, 1, generations, folder, trial)
        self._logged = len(self.state.log_history)
        self.callback_handler.model = self.model
        done = len(journal.run.generations)
        if done and self.state.is_world_process_zero:
            logger.warning(
                f"Going on with the run in '{self.args.output_dir}': {done} of {generations} generations are done."
            )

    def _sigma(self) -> float:
        """Sigma as given, or as calibrated now or in the run that this one resumes."""
        args, run = self.args, self.journal.run
        if args.sigma or self.evolution.mutation.prune:
            return args.sigma
        with self.journal.scope(CALIBRATION_SCOPE), self._scoring("Calibrating sigma"):
            if run.calibration is None:
                how = (args.calibration_samples, args.calibration_target)
                run.calibration = found = calibrated(self.evolution, self.images.fitness, *how)
                logger.warning(str(found))
                self.log({"calibrated_sigma": found.sigma, "calibrated_flipped": found.flipped})
        return run.calibration.sigma

    def _generation(self, sigma: float, limits: Limits) -> Generation | None:
        """Runs one generation; `None` if the time was up before it was done."""
        args, number, evolution = self.args, self.state.global_step, self.evolution
        evolution.score_on(self.images.of_generation(number))
        report = child_reporter(self.callback_handler.callbacks, args, self.state, evolution.fitness)
        now = scheduled_sigma(sigma, args.sigma_schedule, number, args.num_generations)
        with self.journal.scope(generation_scope(number)):
            return limits.in_time(lambda: evolution.step(number, now, report))

    def _after_generation(self, generation: Generation, trial: Any, ignore_keys: list[str] | None) -> None:
        """What Trainer does after a step and an epoch, and the journal's entry."""
        self.journal.record(generation)
        self.state.global_step += 1
        self.state.epoch = float(self.state.global_step)
        logs = generation.logs(self.evolution.fitness)
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        self._log_evaluate_save(logs, trial, ignore_keys)
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        self._log_evaluate_save(logs, trial, ignore_keys)
        self.state.stateful_callbacks = callback_states([*self.callback_handler.callbacks, self.control])
        stopped = self.control.should_training_stop and self.state.global_step < self.args.num_generations
        log = self.state.log_history[self._logged :]
        self._logged += len(log)
        self.journal.finish(generation, without_log(self.state), log, bool(stopped))

    def _log_evaluate_save(self, logs: dict[str, float], trial: Any, ignore_keys: list[str] | None) -> None:
        if self.control.should_log:
            self.log(dict(logs))
        if self.control.should_evaluate:
            metrics = self._evaluate(trial, ignore_keys)
            is_best = self._determine_best_metric(metrics=metrics, trial=trial)
            if self.args.save_strategy == "best":
                self.control.should_save = is_best
        if self.control.should_save:
            folder = self.args.folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self.journal.begin_checkpoint(folder, self.model)
            self._save_checkpoint(self.model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _write_results(self, metrics: dict[str, float], cost: dict[str, float]) -> None:
        """Saves the evolved model and all other files, and compares it with the parent on the test data."""
        evolution, journal, result, done = self.evolution, self.journal, self.result, self.state.global_step
        self.save_model(_internal_call=True)
        self.save_state()
        self.save_metrics("train", metrics)
        with journal.scope(f"{end_scope(done)}-test"), self._scoring("Testing the evolved model"):
            result.measure_evolved(evolution)

        def write() -> dict[str, Any] | None:
            if not self.args.should_save:
                return None
            report = write_results(result, evolution, journal.run, cost, self.dataset_name)
            if report is not None:
                self.save_metrics("test", {f"test_{key}": value for key, value in report["evolved"].items()})
            return report

        with TickingBar("Writing the results", self._shows_bars):
            # All processes have the first one's report, when its files are written.
            [result.report, *_] = self.processes.gather(write)
            if self.args.should_save:
                self.trackers.on_report(result.report, self.args.folder, done)
        journal.end(unfinished=None if result.stopped is None else done)

    @property
    def _shows_bars(self) -> bool:
        return not self.args.disable_tqdm and self.is_world_process_zero()

    def _scoring(self, description: str) -> AbstractContextManager[None]:
        return scoring_shown(self.evaluator, description, self._shows_bars)
