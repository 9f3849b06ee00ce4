"""What a run has found and spent so far. The ledger and every checkpoint keep it for a resumed run."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SMDError
from ..files import write_json
from ..messages import one_line
from ..scoring.evaluator import Evaluator
from ..search.sigma import Calibration
from .records import check_record

STATE_NAME = "evolution_state.json"


@dataclass
class RunState:
    """
    What a run has found and spent.

    Args:
        generations (list of `dict`): a [`Generation.record`] each.
        calibration ([`Calibration`], *optional*): how sigma was found, if it was not given.
        images_before (`int`), passes_before (`float`), seconds_before (`float`): spent before this process resumed the run.
        loss (`float`): the sum over generations of the loss that Trainer logs.
    """

    generations: list[dict[str, Any]] = field(default_factory=list)
    calibration: Calibration | None = None
    images_before: int = 0
    passes_before: float = 0.0
    seconds_before: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        self._evaluator: Evaluator | None = None

    def start(self, evaluator: Evaluator) -> None:
        """Begins to count images, passes and seconds."""
        self._evaluator = evaluator
        self._images_at_start = evaluator.images_forwarded
        self._passes_at_start = evaluator.full_passes
        self._started = time.monotonic()

    def add_before(self, images: int, seconds: float) -> None:
        """Counts whole passes of images that came before the first generation."""
        self.images_before += images
        self.passes_before += images
        self.seconds_before += seconds

    @property
    def images_forwarded(self) -> int:
        since = 0 if self._evaluator is None else self._evaluator.images_forwarded - self._images_at_start
        return self.images_before + since

    @property
    def full_passes(self) -> float:
        since = 0.0 if self._evaluator is None else self._evaluator.full_passes - self._passes_at_start
        return self.passes_before + since

    @property
    def seconds(self) -> float:
        return self.seconds_before + (0.0 if self._evaluator is None else time.monotonic() - self._started)

    def cost(self, num_fitness_images: int) -> dict[str, float]:
        """
        What evolution has cost: images that variants were scored on; passes of one whole model over the fitness data that
        this took, parts of a pass counted by their time; and seconds.
        """
        return {
            "images_forwarded": self.images_forwarded,
            "parent_passes": self.full_passes / num_fitness_images,
            "seconds": self.seconds,
        }

    def candidates(self, num_selection_images: int) -> dict[str, Any] | None:
        """How many candidates were compared on how many images, for `gain_report`; `None` if none were."""
        compared = [len(set(record["selection"]) - {"parent"}) for record in self.generations]
        if not sum(compared):
            return None
        discordances = [record["discordance"] for record in self.generations if record["discordance"] is not None]
        return {
            "n_candidates": sum(compared),
            "n_images": num_selection_images,
            "keeps_parent": all("parent" in record["selection"] for record in self.generations),
            "discordance": float(np.mean(discordances)) if discordances else None,
        }

    def fitness_history(self) -> list[dict[str, Any]]:
        """Fitness by generation, for `plot_fitness`: of children that were scored on all images, NaN for those that failed."""
        history = []
        for record in self.generations:
            parent = record["parent"]["fitness"]
            whole = [child for child in record["children"] if not child.get("eliminated")]
            children = [float("nan") if child["fitness"] is None else child["fitness"] for child in whole]
            history.append({"children": children, "parent": parent, "best": float(np.nanmax([parent, *children]))})
        return history

    def totals(self) -> dict[str, Any]:
        """All but the generations, as JSON values."""
        return {
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "images_forwarded": self.images_forwarded,
            "full_passes": self.full_passes,
            "seconds": self.seconds,
            "loss": self.loss if math.isfinite(self.loss) else None,
        }

    @classmethod
    def from_totals(cls, generations: list[dict[str, Any]], totals: Mapping[str, Any]) -> "RunState":
        """
        The state again, not yet started.

        Raises:
            `ValueError`: for records or totals that no run has written.
        """
        for number, record in enumerate(generations):
            check_record(record, number)
        try:
            calibration = totals["calibration"]
            if calibration is not None:
                calibration = Calibration(**calibration | {"curve": tuple(map(tuple, calibration["curve"]))})
            return cls(
                generations,
                calibration,
                int(totals["images_forwarded"]),
                float(totals["full_passes"]),
                float(totals["seconds"]),
                math.nan if totals["loss"] is None else float(totals["loss"]),
            )
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"it lacks what a run has spent, or holds it in another form ({error})") from None

    def save(self, folder: Path, identity: Mapping[str, Any], weights: str) -> None:
        """Writes the state into a checkpoint."""
        state = self.totals() | {"generations": self.generations, "identity": identity, "weights": weights}
        write_json(folder / STATE_NAME, state)


def read_state(folder: Path) -> tuple[RunState, dict[str, Any], str]:
    """
    The state in a checkpoint, the identity of its run, and the hash of its weights.

    Raises:
        `SMDError`: if there is none, or it is damaged.
    """
    path = folder / STATE_NAME
    if not path.is_file():
        raise SMDError(
            f"{folder} has no {STATE_NAME}: it is not a checkpoint of an EvolutionTrainer. Resume from a checkpoint-N "
            "folder that one has written, or start anew."
        )
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"generations": list, "identity": dict, "weights": str}
        if not isinstance(state, dict) or any(type(state.get(key)) is not kind for key, kind in kinds.items()):
            raise ValueError(f"expected {', '.join(kinds)}")
        return RunState.from_totals(state["generations"], state), state["identity"], state["weights"]
    except (ValueError, RecursionError) as error:
        raise SMDError(
            f"'{path}' is not as a run has written it ({one_line(str(error))}). Resume from another checkpoint, or start anew."
        ) from error
