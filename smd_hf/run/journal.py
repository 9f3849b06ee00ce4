"""The ledger's side of `EvolutionTrainer`: what it is opened with, what goes into it, and how a run is taken up from it."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..errors import SMDError
from ..files import write_lines
from ..models.checkpoints import weights_hash
from ..models.inputs import input_names
from ..scoring.evaluator import Evaluator
from ..search.evolution import Evolution, Generation
from ..search.mutation import Mutation
from .identity import FORMAT, data_fingerprint, deciding_arguments, label_column_of
from .ledger import LEDGER_NAME, Ledger
from .resume import ResumePoint, find_resume_point, seed
from .state import RunState

logger = logging.get_logger(__name__)

CHILDREN_NAME = "children.jsonl"

PARENT_SCOPE, CALIBRATION_SCOPE = "parent", "calibration"


class ResumeMixin:
    """How an [`EvolutionTrainer`] keeps its ledger, and goes on from it."""

    args: EvolutionArguments
    evaluator: Evaluator
    mutation: Mutation
    run: RunState
    _point: ResumePoint

    @property
    def ledger(self) -> Ledger:
        """The ledger of the run that is going on."""
        return self.evaluator.ledger

    def _open_ledger(self, resume: str | bool | None) -> str | None:
        """
        Finds what there is to go on with, the same on every process, or begins anew; returns the checkpoint to load.

        Args:
            resume (`str` or `bool`, *optional*): a checkpoint; `True` for what is in `output_dir`. A process that torchrun has
                started again, after one was lost, always goes on.
        """
        resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        processes, output_dir = self.evaluator.processes, Path(self.args.output_dir)
        # Of the first process: a data set on a slow disk is read once, and all go by the same.
        first = processes.process_index == 0
        [self._identity, *_] = processes.gather(lambda: self._find_identity() if first else None)
        [point, *_] = processes.gather(
            lambda: find_resume_point(output_dir, resume, self._identity, self.args.num_generations) if first else None
        )
        # Where processes share no disk, weights are made again from the first parent.
        checkpoint = None if point is None else point.checkpoint
        if checkpoint is not None and not all(processes.gather(lambda: Path(checkpoint).is_dir())):
            point = point.without_checkpoint()
        if point is None and resume and first:
            logger.warning(f"There is no run in '{output_dir}' to go on with: this one begins anew.")
        if point is not None and point.in_ledger:
            self.evaluator.ledger = Ledger(output_dir / LEDGER_NAME, processes, resumed=True)
        else:
            self.evaluator.ledger = Ledger.start(output_dir / LEDGER_NAME, processes, self._identity)
            processes.gather(lambda: seed(self.ledger, point) if first and point is not None else None)
        self._point = point or ResumePoint(RunState())
        return self._point.checkpoint

    def _find_identity(self) -> dict[str, Any]:
        data, names = {}, input_names(self.model)
        for name, dataset in (("train_dataset", self.train_dataset), ("eval_dataset", self.reported_dataset)):
            if dataset is not None:
                column = label_column_of(dataset, self.args, self.data_collator)
                data[name] = data_fingerprint(dataset, self.data_collator, self.image_column, column, names)
        if self.ood is not None:
            images = self.ood.test
            data["ood_dataset"] = data_fingerprint(images.dataset, images.collator, self.ood_image_column, None, names)
        return {
            "format": FORMAT,
            "arguments": deciding_arguments(self.args) | {"runtime": self.evaluator.identity},
            "data": data,
            "parent": weights_hash(self.model),
        }

    def _begin(self, evolution: Evolution, trial: Any) -> None:
        """A fresh state, or that of the run that goes on, with its weights in the model."""
        generations, point = self.args.num_generations, self._point
        if point.weights is not None and weights_hash(self.model) != point.weights:
            raise SMDError(
                f"The weights in '{point.checkpoint}' are not those that were saved there. Remove this checkpoint and resume again."
            )
        self._init_state(point.trainer_state, trial)
        self.run = point.run
        self.run.start(self.evaluator)
        self.mutation.parent_changed()
        for record in self.run.generations[point.generations_in_weights :]:
            evolution.restore(record, point.selected if record is self.run.generations[-1] else None)
        self._tr_loss = torch.tensor(0.0)
        self._total_loss_scalar = self.run.loss
        self._initial_global_step = 0
        self._logged = len(self.state.log_history)
        self.callback_handler.model = self.model
        if self.run.generations and self.state.is_world_process_zero:
            done = len(self.run.generations)
            logger.warning(
                f"Going on with the run in '{self.args.output_dir}': {done} of {generations} generations are done."
            )
        if self.args.should_save:
            write_lines(Path(self.args.output_dir) / CHILDREN_NAME, self.run.generations, mode="w")

    def _init_state(self, state: Mapping[str, Any] | None, trial: Any) -> None:
        """Trainer's own state, by Trainer's own means: it reads a file."""
        generations = self.args.num_generations
        if state is None:
            self._init_training_state(generations, 1, generations, None, trial)
            return
        with tempfile.TemporaryDirectory(prefix="smd-hf-") as folder:
            Path(folder, TRAINER_STATE_NAME).write_text(json.dumps(state), encoding="utf-8")
            try:
                self._init_training_state(generations, 1, generations, folder, trial)
            except (TypeError, AttributeError, ValueError) as error:
                raise SMDError(
                    f"The state of the run in '{self.args.output_dir}' is none that this version of transformers reads "
                    f"({error}). Resume with the version that began it, or start anew."
                ) from error

    def _record(self, generation: Generation) -> None:
        record = generation.record()
        self.run.generations.append(record)
        self.run.loss += generation.selected.nll
        self._total_loss_scalar = self.run.loss
        if self.args.should_save:
            write_lines(Path(self.args.output_dir) / CHILDREN_NAME, [record], mode="a")

    def _finish(self, generation: Generation) -> None:
        """From here on, the generation is known by its line in the ledger, and is never scored again."""
        number = generation.generation
        # Trainer brings these up to date in checkpoints alone, so that they would tell whether one was saved since a kill.
        handlers = [
            each for each in [*self.callback_handler.callbacks, self.control] if isinstance(each, ExportableState)
        ]
        self.state.stateful_callbacks = TrainerState(stateful_callbacks=handlers).stateful_callbacks
        entry = {
            "record": self.run.generations[-1],
            "after": {
                "totals": self.run.totals(),
                "state": self._state_without_log(),
                "log": self.state.log_history[self._logged :],
                "selected": True,
                "stopped": bool(self.control.should_training_stop and number + 1 < self.args.num_generations),
            },
        }
        self._logged = len(self.state.log_history)
        self.ledger.finish(number, entry, generation.selected)
        self.ledger.drop(CALIBRATION_SCOPE, generation_scope(number))

    def _state_without_log(self) -> dict[str, Any]:
        """Trainer's state as it saves it, less the part that grows."""
        return {
            each.name: getattr(self.state, each.name) for each in fields(TrainerState) if each.name != "log_history"
        }


def generation_scope(number: int) -> str:
    """Under which the ledger has the cells of a generation."""
    return f"generation-{number:05d}"


def end_scope(number: int) -> str:
    """The same of what comes after so many generations: another number ends in another model."""
    return f"end-{number:05d}"
