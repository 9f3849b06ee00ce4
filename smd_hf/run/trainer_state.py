"""Trainer's own state in the ledger: which of its callbacks want what kept, and how a resumed run gets it back."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, TrainerState

from ..errors import SMDError


def callback_states(callbacks: Iterable[Any]) -> Any:
    """
    What callbacks want kept now, as Trainer writes it into a checkpoint.

    Trainer brings these up to date only when it saves a checkpoint. The ledger has them after each generation.
    """
    exportable: list[Any] = [each for each in callbacks if isinstance(each, ExportableState)]
    return TrainerState(stateful_callbacks=exportable).stateful_callbacks


def without_log(state: TrainerState) -> dict[str, Any]:
    """Trainer's state as JSON values, without its log, which the ledger keeps line by line."""
    return {each.name: getattr(state, each.name) for each in fields(TrainerState) if each.name != "log_history"}


@contextmanager
def state_folder(state: Mapping[str, Any] | None) -> Iterator[str | None]:
    """
    A folder that Trainer can read a state from, as from a checkpoint; `None` for a run from its beginning.

    Raises:
        `SMDError`: if Trainer cannot read the state in it.
    """
    if state is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="smd-hf-") as folder:
        Path(folder, TRAINER_STATE_NAME).write_text(json.dumps(state), encoding="utf-8")
        try:
            yield folder
        except (TypeError, AttributeError, ValueError) as error:
            raise SMDError(
                f"The state of the run to resume is none that this version of transformers reads ({error}). Resume with the "
                "version that began it, or start anew."
            ) from error
