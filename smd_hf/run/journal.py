"""What a run keeps in its folder while it runs: the ledger, its state, and a line for each generation."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..errors import SMDError
from ..files import write_lines
from ..models.checkpoints import load_weights, weights_hash
from ..parallel.processes import Processes
from ..search.evolution import Evolution
from ..search.generation import Generation
from .ledger import Ledger
from .records import CHILDREN_NAME, LEDGER_NAME
from .resume import ResumePoint, find_resume_point, seed
from .state import RunState

logger = logging.get_logger(__name__)

PARENT_SCOPE, CALIBRATION_SCOPE = "parent", "calibration"


class Journal:
    """
    Records a run, and finds what an earlier process has recorded of it.

    Args:
        folder (`str` or `Path`): `output_dir`.
        processes ([`Processes`]): the processes of the run. All of them must call the methods.
        writes (`bool`): whether this process writes `children.jsonl`.

    Attributes:
        run ([`RunState`]): the generations so far, and what they cost.
        ledger ([`Ledger`]): what was scored. There is none before [`Journal.open`].
        identity (`dict`): what the run is: arguments, data, parent.
        point ([`ResumePoint`]): where it begins or resumes.
    """

    ledger: Ledger
    identity: dict[str, Any]

    def __init__(self, folder: str | Path, processes: Processes, writes: bool):
        self.folder = Path(folder)
        self.processes = processes
        self.writes = writes
        self.run = RunState()
        self.point = ResumePoint(self.run)

    def open(
        self, find_identity: Callable[[], dict[str, Any]], resume: str | bool | None, num_generations: int
    ) -> None:
        """
        Finds what there is to go on with, the same on every process, or begins a new ledger.

        Args:
            find_identity (`Callable`): returns what the run is. Called on the first process only.
            resume (`str` or `bool`, *optional*): a checkpoint; `True` for what is in `output_dir`. A process that torchrun has
                started again, after one was lost, always goes on.
            num_generations (`int`): how many generations the run is to have.

        Raises:
            `SMDError`: if what there is belongs to another run, or is damaged.
        """
        resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        gather, folder, first = self.processes.gather, self.folder, self.processes.process_index == 0
        # A data set on a slow disk is read once, and all processes go by what the first one found.
        [identity, *_] = gather(lambda: find_identity() if first else None)
        self.identity = identity or {}
        [point, *_] = gather(
            lambda: find_resume_point(folder, resume, self.identity, num_generations) if first else None
        )
        # If processes do not share a disk, the weights are rebuilt from the first parent.
        checkpoint = None if point is None else point.checkpoint
        if point is not None and checkpoint is not None and not all(gather(lambda: Path(checkpoint).is_dir())):
            point = point.without_checkpoint()
        if point is None and resume and first:
            logger.warning(f"There is no run in '{folder}' to go on with: this one begins anew.")
        if point is not None and point.in_ledger:
            self.ledger = Ledger(folder / LEDGER_NAME, self.processes, resumed=True)
        else:
            self.ledger = Ledger.start(folder / LEDGER_NAME, self.processes, self.identity)
            gather(lambda: seed(self.ledger, point) if first and point is not None else None)
        self.point = point or ResumePoint(RunState())
        self.run = self.point.run

    def rebuild(self, evolution: Evolution) -> None:
        """
        Puts the weights after the last finished generation into the model, without scoring anything, and begins to count.

        Args:
            evolution ([`Evolution`]): its model holds the first parent.

        Raises:
            `SMDError`: if the checkpoint has other weights than those that were saved in it.
        """
        point, records = self.point, self.run.generations
        if point.checkpoint is not None:
            load_weights(evolution.model, point.checkpoint)
            evolution.mutation.parent_changed()
        if point.weights is not None and weights_hash(evolution.model) != point.weights:
            raise SMDError(
                f"The weights in '{point.checkpoint}' are not those that were saved there. Remove this checkpoint and resume again."
            )
        self.run.start(evolution.evaluator)
        for record in records[point.generations_in_weights :]:
            evolution.restore(record, point.selected if record is records[-1] else None)
        if self.writes:
            write_lines(self.folder / CHILDREN_NAME, records, mode="w")

    def scope(self, name: str) -> AbstractContextManager[None]:
        """Scoring calls inside belong to one part of the run."""
        return self.ledger.scope(name)

    def record(self, generation: Generation) -> None:
        """Adds a generation to the run."""
        record = generation.record()
        self.run.generations.append(record)
        self.run.loss += generation.selected.nll
        if self.writes:
            write_lines(self.folder / CHILDREN_NAME, [record], mode="a")

    def finish(self, generation: Generation, state: dict[str, Any], log: list[dict[str, Any]], stopped: bool) -> None:
        """
        Writes the generation's line into the ledger. From here on, it is never scored again.

        Args:
            state (`dict`), log (list of `dict`): Trainer's state after it, and the log since the generation before.
            stopped (`bool`): whether a callback has ended the run early.
        """
        after = {"totals": self.run.totals(), "state": state, "log": log, "selected": True, "stopped": stopped}
        number = generation.generation
        self.ledger.finish(number, {"record": self.run.generations[-1], "after": after}, generation.selected)
        self.ledger.drop(CALIBRATION_SCOPE, generation_scope(number))

    def begin_checkpoint(self, folder: Path, model: PreTrainedModel) -> None:
        """Writes the run's part of a checkpoint, before Trainer writes its own."""
        if self.writes:
            folder.mkdir(parents=True, exist_ok=True)
            # Trainer writes its state last: a checkpoint without it is incomplete.
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
            self.run.save(folder, self.identity, weights_hash(model))

    def end(self, unfinished: int | None = None) -> None:
        """
        All results are written, and no cells are needed any more.

        Args:
            unfinished (`int`, *optional*): the generation that a limit has ended. Its cells are kept for a run that goes on with
                a higher limit.
        """
        self.ledger.end(keep=() if unfinished is None else (PARENT_SCOPE, generation_scope(unfinished)))


def generation_scope(number: int) -> str:
    """The ledger's scope of a generation."""
    return f"generation-{number:05d}"


def end_scope(number: int) -> str:
    """The scope of what follows after so many generations."""
    return f"end-{number:05d}"
