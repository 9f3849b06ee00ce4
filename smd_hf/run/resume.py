"""Where a run resumes: after its last finished generation, with the weights of a checkpoint or of the first parent."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..errors import SMDError
from ..files import check_entries
from ..messages import one_line
from ..scoring.scores import Score
from .cells import read_score
from .identity import check_same
from .ledger import ENDED_NAME, FINISHED_NAME, Ledger, read_header, selected_name
from .lines import check_keys, damaged, read_lines
from .records import LEDGER_NAME
from .state import RunState, read_state

logger = logging.get_logger(__name__)


@dataclass
class ResumePoint:
    """
    Where a run resumes.

    Args:
        run ([`RunState`]): what it has found and spent.
        trainer_state (`dict`, *optional*): Trainer's state; `None` before the first generation is finished.
        selected ([`Score`], *optional*): of the parent on the selection split, if it is known.
        stopped (`bool`, *optional*, defaults to `False`): a callback ended the run, which has only its results to write.
        in_ledger (`bool`, *optional*, defaults to `True`): the ledger in `output_dir` has all this.
        checkpoint (`str`, *optional*): whose weights to begin with.
        weights (`str`, *optional*): their hash.
        generations_in_weights (`int`, *optional*, defaults to 0): how many generations made them.
    """

    run: RunState
    trainer_state: dict[str, Any] | None = None
    selected: Score | None = None
    stopped: bool = False
    in_ledger: bool = True
    checkpoint: str | None = None
    weights: str | None = None
    generations_in_weights: int = 0

    @property
    def finished(self) -> int:
        """How many generations are finished."""
        return len(self.run.generations)

    def without_checkpoint(self) -> "ResumePoint":
        """The same with the weights of the first parent."""
        return replace(self, checkpoint=None, weights=None, generations_in_weights=0)


def find_resume_point(
    output_dir: Path, resume: str | bool, identity: Mapping[str, Any], num_generations: int
) -> ResumePoint | None:
    """
    Where to go on.

    Args:
        resume (`str` or `bool`): a checkpoint; `True` for the last of the run in `output_dir`, or its ledger alone; `False` for
            nothing.
        num_generations (`int`): how many generations the run is to have.

    Returns:
        [`ResumePoint`]; `None` if there is nothing to go on with.

    Raises:
        `SMDError`: if what there is belongs to another run, or is damaged.
    """
    if not resume:
        return None
    folder = output_dir / LEDGER_NAME
    header, point = read_header(folder), None
    if header is not None:
        check_same(header, identity, folder)
        point = read_finished(folder)
    if isinstance(resume, bool):
        found = last_checkpoint(output_dir, identity, None if point is None else point.finished)
    else:
        found, theirs = read_checkpoint(Path(resume))
        check_same(theirs, identity, Path(resume))
    if point is None or (found is not None and found.finished > point.finished):
        point = found
    elif found is not None:
        weights = {name: getattr(found, name) for name in ("checkpoint", "weights", "generations_in_weights")}
        point = replace(point, **weights)
    if point is not None and point.finished > num_generations:
        raise SMDError(
            f"num_generations is {num_generations}, but the run in '{output_dir}' has finished {point.finished} generations. Set "
            "num_generations to that or more, or start anew in another output_dir."
        )
    return point


def last_checkpoint(output_dir: Path, identity: Mapping[str, Any], finished: int | None) -> ResumePoint | None:
    """
    The last whole checkpoint in a folder.

    Args:
        finished (`int`, *optional*): how many generations the ledger has. Checkpoints of other runs are skipped. So are those
            after the last generation, which is rebuilt because its parent and children may be needed. By default,
            checkpoints of other runs are an error.
    """
    numbered = {
        int(name): path
        for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (name := path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")).isdecimal() and path.is_dir()
    }
    for number in sorted(numbered, reverse=True):
        try:
            found, theirs = read_checkpoint(numbered[number])
        except SMDError as error:
            logger.warning(f"Passed over: {error}")
            continue
        if finished is None:
            check_same(theirs, identity, numbered[number])
        if finished is None or (theirs == identity and found.finished < finished):
            return found
    return None


def read_finished(folder: Path) -> ResumePoint:
    """
    The finished generations of a ledger.

    Raises:
        `SMDError`: for a line that no run has written.
    """
    path = folder / FINISHED_NAME
    records: list[dict[str, Any]] = []
    log: list[dict[str, Any]] = []
    after, line = None, 0
    for line, entry in read_lines(path):
        try:
            check_keys(entry, {"record", "after"})
            records.append(entry["record"])
            after = entry["after"]
            if after is not None:
                check_keys(after, {"totals", "state", "log", "selected", "stopped"})
                for key, kind in (
                    ("totals", dict),
                    ("state", dict),
                    ("log", list),
                    ("selected", bool),
                    ("stopped", bool),
                ):
                    if type(after[key]) is not kind:
                        raise ValueError(f"its {key} is no {kind.__name__}")
                log += after["log"]
        except ValueError as error:
            raise damaged(path, line, str(error)) from None
    if not records:
        return ResumePoint(RunState())
    try:
        if after is None:
            raise ValueError("it is the last, and does not say what came after")
        run = RunState.from_totals(records, after["totals"])
        check_state(after["state"], run)
    except ValueError as error:
        raise damaged(path, line, str(error)) from None
    selected = read_score(folder / selected_name(len(records)))
    if after["selected"] and selected is None:
        raise SMDError(
            f"'{folder}' has lost {selected_name(len(records))}, the score of the present parent. Put it back, or start anew."
        )
    stopped = after["stopped"] and not (folder / ENDED_NAME).is_file()
    return ResumePoint(run, after["state"] | {"log_history": log}, selected, stopped)


def read_checkpoint(folder: Path) -> tuple[ResumePoint, dict[str, Any]]:
    """
    The point that a checkpoint was saved at, and the identity of its run.

    Raises:
        `SMDError`: if there is none, or a file is missing or cut off.
    """
    if not folder.is_dir():
        raise SMDError(
            f"There is no checkpoint '{folder}' to resume from. Expected a folder checkpoint-N that a run has written."
        )
    check_entries(str(folder))
    run, identity, weights = read_state(folder)
    try:
        state = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        check_state(state, run)
        if not any(folder.glob("*.safetensors")):
            raise ValueError("there are no weights")
    except (OSError, ValueError, RecursionError) as error:
        raise SMDError(
            f"'{folder}' is no whole checkpoint of an EvolutionTrainer ({one_line(str(error))}). Resume from another, or from what "
            "is in output_dir with resume_from_checkpoint=True."
        ) from error
    point = ResumePoint(run, state, in_ledger=False, checkpoint=str(folder), weights=weights)
    return replace(point, generations_in_weights=point.finished), identity


def check_state(state: Any, run: RunState) -> None:
    """Raises `ValueError` if this is not Trainer's state after the run's last generation."""
    if not isinstance(state, dict) or state.get("global_step") != len(run.generations):
        raise ValueError(f"{TRAINER_STATE_NAME} is not that of a run after {len(run.generations)} generations")


def seed(ledger: Ledger, point: ResumePoint) -> None:
    """Writes the generations that a checkpoint has into a new ledger."""
    state = dict(point.trainer_state or {})
    after = {"totals": point.run.totals(), "log": state.pop("log_history"), "selected": False, "stopped": False}
    entries = [{"record": record, "after": None} for record in point.run.generations]
    if entries:
        entries[-1]["after"] = after | {"state": state}
        ledger.write_finished(entries)
