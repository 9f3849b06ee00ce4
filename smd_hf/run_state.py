"""What a run has found and spent so far: kept with every checkpoint, so that a resumed run goes on with it."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .calibration import Calibration
from .errors import SMDError
from .evaluation.engine import Evaluator
from .files import write_json

STATE_NAME = "evolution_state.json"


@dataclass
class RunState:
    """
    The course of a run.

    Args:
        generations (list of `dict`): a [`Generation.record`] each.
        calibration ([`Calibration`], *optional*): how sigma was found, where it was not given.
        images_before (`int`), passes_before (`float`), seconds_before (`float`): spent before this process took the run up.
    """

    generations: list[dict[str, Any]] = field(default_factory=list)
    calibration: Calibration | None = None
    images_before: int = 0
    passes_before: float = 0.0
    seconds_before: float = 0.0

    def start(self, evaluator: Evaluator) -> None:
        """Begins to count what the evaluator forwards, and seconds."""
        self._evaluator = evaluator
        self._images_at_start = evaluator.images_forwarded
        self._passes_at_start = evaluator.full_passes
        self._started = time.monotonic()

    @property
    def images_forwarded(self) -> int:
        return self.images_before + self._evaluator.images_forwarded - self._images_at_start

    @property
    def full_passes(self) -> float:
        return self.passes_before + self._evaluator.full_passes - self._passes_at_start

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self._started

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
        """How many candidates were compared on how many images, as `gain_report` takes it; `None` if none were."""
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
        """Fitness by generation, as `plot_fitness` takes it: of children that saw all images, NaN for those that failed."""
        history = []
        for record in self.generations:
            parent = record["parent"]["fitness"]
            whole = [child for child in record["children"] if not child.get("eliminated")]
            children = [float("nan") if child["fitness"] is None else child["fitness"] for child in whole]
            history.append({"children": children, "parent": parent, "best": float(np.nanmax([parent, *children]))})
        return history

    def save(self, folder: Path) -> None:
        state = {
            "generations": self.generations,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "images_forwarded": self.images_forwarded,
            "full_passes": self.full_passes,
            "seconds": self.seconds,
        }
        write_json(folder / STATE_NAME, state)

    @classmethod
    def load(cls, folder: Path) -> "RunState":
        """The state in a checkpoint; [`SMDError`] if there is none."""
        path = folder / STATE_NAME
        if not path.is_file():
            raise SMDError(
                f"{folder} has no {STATE_NAME}: it is not a checkpoint of an EvolutionTrainer. Resume from a checkpoint-N "
                "folder that one has written, or start anew."
            )
        state = json.loads(path.read_text(encoding="utf-8"))
        calibration = state["calibration"]
        if calibration is not None:
            calibration = Calibration(**calibration | {"curve": tuple(map(tuple, calibration["curve"]))})
        return cls(
            state["generations"], calibration, state["images_forwarded"], state["full_passes"], state["seconds"]
        )
