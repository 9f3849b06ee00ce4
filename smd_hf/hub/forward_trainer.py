"""A Trainer that trains without gradients: how it evaluates, saves, loads and pushes."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import CommitInfo
from transformers import PreTrainedModel, Trainer
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import EvalLoopOutput

from ..arguments.evolution_arguments import EvolutionArguments
from ..arguments.inherited_arguments import check_not_sharded
from ..errors import SMDError
from ..files import write_json
from ..metrics.resampling import values
from ..models.checkpoints import load_weights, save_checkpoint
from ..models.inputs import as_inputs, input_names, select_inputs
from ..models.quantized import as_if_not_quantised
from ..reports.run_result import RunResult
from ..run.evaluation_metrics import evaluate_with_labels
from ..run.progress import EvolutionProgressCallback
from ..scoring.evaluator import Evaluator
from ..tasks.protocol import Task
from ..tasks.registry import is_classification
from .publisher import Publisher, in_background

ARGUMENTS_NAME = "evolution_args.json"


class ForwardTrainer(Trainer):
    """
    What an [`EvolutionTrainer`] does besides training, by Trainer's methods. Files are safetensors and JSON, and only what a
    run has written is pushed.

    Args:
        model ([`~transformers.PreTrainedModel`]), args ([`EvolutionArguments`]), kwargs: as for Trainer.

    Attributes:
        publisher ([`Publisher`]): makes the pushes.
        result ([`RunResult`]): says what the run has written.
        task ([`~smd_hf.tasks.protocol.Task`]): what the model does.
        make_evaluator (`Callable`): [`~smd_hf.search.build.build_evaluator`] of the run.

    Raises:
        `SMDError`: for FSDP and DeepSpeed.
    """

    args: EvolutionArguments
    model: PreTrainedModel
    result: RunResult
    task: Task
    make_evaluator: Callable[..., Evaluator]

    def __init__(self, *, model: PreTrainedModel, args: EvolutionArguments, **kwargs: Any):
        # Trainer creates the repository in its __init__.
        self.publisher = Publisher(
            args, lambda: self.callback_handler.on_push_begin(self.args, self.state, self.control)
        )
        with as_if_not_quantised(model):
            super().__init__(model=model, args=args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            check_not_sharded(args, "FSDP" if self.is_fsdp_enabled else "DeepSpeed")
        # Trainer's first evaluation would wrap the model's forward for mixed precision and compile it a second time.
        self.accelerator._models.append(self.model)
        evaluate_with_labels(self)
        # Otherwise the loss would be multiplied by the number of processes, as for a model that gets the number of tokens.
        self.model_accepts_loss_kwargs = False
        if not args.disable_tqdm:
            self.remove_callback(DEFAULT_PROGRESS_CALLBACK)
            self.add_callback(EvolutionProgressCallback)
        if args.channels_last:
            self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager:
        """Mixed precision, in evaluation as in scoring."""
        return self.accelerator.autocast()

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """As in Trainer, with inputs in the model's dtype, which models with code of their own do not convert."""
        inputs = {**inputs, **as_inputs(select_inputs(inputs, input_names(self.model)), self.model)}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in Trainer for image classification. For other tasks, the metrics of the task, without keeping all outputs."""
        if is_classification(self.task):
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        task: Any = self.task
        batches = self.result.images.make_batches(dataloader.dataset)
        score = self.make_evaluator(plain=True).score_model(batches)
        found = values(task.measured(score), score.num_images)
        return EvalLoopOutput(
            predictions=score.logits if task.keeps_predictions else np.zeros(0),
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in found.items()},
            num_samples=score.num_images,
        )

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> None:
        """Not available: it would replace the model that is evolved. Raises `SMDError`."""
        raise SMDError(
            "hyperparameter_search is not available in EvolutionTrainer. Make one trainer for each choice of arguments, each with an "
            "output_dir of its own, and compare their reports (gain_report.json)."
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in Trainer, in the form that the model came in, with the arguments as JSON: no pickle, and no token in any file."""
        if self.args.should_save:
            folder = self.args.folder if output_dir is None else Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_checkpoint(self.model, self.processing_class, folder)
            write_json(folder / ARGUMENTS_NAME, self.args.non_default())
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _load_best_model(self) -> None:
        # Trainer reads weights by their names in memory, and would leave out those that have another name in the file.
        load_weights(self.model, str(self.state.best_model_checkpoint))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Creates the repository, as in Trainer. See [`Publisher.create_repo`]."""
        if self.is_world_process_zero():
            self._publish(lambda: self.publisher.create_repo(token, private))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """
        Saves and pushes the evolved model, and also the ensemble and deltas if `push_ensemble` and `push_children` are set.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): message of each commit.
            blocking (`bool`, *optional*, defaults to `True`): returns after the upload.
            token (`str`, *optional*): defaults to `hub_token`.
            revision (`str`, *optional*): the branch. Defaults to `hub_revision`.
            private (`bool`, *optional*): whether new repositories are private. Defaults to `hub_private_repo`.
            kwargs: passed to [`ForwardTrainer.create_model_card`].

        Returns:
            `CommitInfo` of the evolved model, or its `Future` with `blocking=False`. `None` on all processes but the main one.

        Raises:
            `SMDError`: if the Hub cannot be reached or refuses the push. All files are saved, and the message has the commands
                to push them later.
        """
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        if kwargs:
            if self.hub_model_id is None:
                self.init_hf_repo(token=token, private=private)
            self.create_model_card(**kwargs)

        def push() -> CommitInfo:
            return self._publish(lambda: self.publisher.push(self.result, commit_message, token, revision, private))

        return push() if blocking else in_background(push)

    def push_at_end(self) -> None:
        """Pushes at the end of a run, if the arguments say so. See [`Publisher.push_at_end`]."""
        if self.args.push_to_hub and self.is_world_process_zero():
            self._publish(lambda: self.publisher.push_at_end(self.result))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the card of the evolved model into `output_dir`. Takes Trainer's arguments: see [`Publisher.write_card`]."""
        if self.is_world_process_zero():
            self.publisher.write_card(self.result.report, *args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Trainer would push everything that is in output_dir.
        if self.is_world_process_zero():
            self._publish(lambda: self.publisher.push_checkpoint(Path(checkpoint_folder), self.state.global_step))

    def _publish(self, push: Callable[[], Any]) -> Any:
        """Pushes, and tells Trainer what it asks for elsewhere."""
        done = push()
        self.hub_model_id, self.push_in_progress = self.publisher.repo_id, self.publisher.in_progress
        return done
