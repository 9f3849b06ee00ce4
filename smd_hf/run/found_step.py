"""What a step before the first generation or after the last one has found, and its file in the ledger."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..files import save_arrays
from ..scoring.reading import Reading
from ..scoring.scores import Cell, Score
from ..search.fitness import Fitness
from ..search.head.baselines import PARENT
from .journal import Journal

_PARTS = "logits", "sums"
"""What is kept of scores on test images."""

_SLOPES = "slopes"


@dataclass
class FoundStep:
    """
    What a step has found.

    Args:
        chosen (`str`): name of what was chosen, `"parent"` if nothing was better than the model as it was.
        arrays (dict of `str` to `numpy.ndarray`): what is put into the model for it.
        fitness (dict of `str` to `float`): of all that was tried, on the selection images.
        images (`int`): how many images were passed through the model.
        test (dict of `str` to [`Score`]): some of it on the test images, if there are any: with logits, and for tasks other than image
            classification with sums.
        seconds (`float`, *optional*, defaults to 0): how long it took. It is not kept.
        crossed (dict of `str` to `float`, *optional*): the fitness of all that was tried in cross-validation, if that chose.
        slopes (`numpy.ndarray`, *optional*): how steep the loss of each fitness image is with what was chosen ([`~search.image_slopes.slope_norms`]).
    """

    chosen: str
    arrays: dict[str, np.ndarray]
    fitness: dict[str, float]
    images: int
    test: dict[str, Score] = field(default_factory=dict)
    seconds: float = 0.0
    crossed: dict[str, float] = field(default_factory=dict)
    slopes: np.ndarray | None = None

    @property
    def best_crossed(self) -> str | None:
        """Name of what was best in cross-validation, if that chose."""
        return max(self.crossed, key=lambda name: self.crossed[name], default=None)

    def save(self, path: Path, identity: str) -> None:
        """Writes it, for the run of this identity."""
        arrays = dict(self.arrays) if self.slopes is None else {**self.arrays, _SLOPES: self.slopes}
        for name, score in self.test.items():
            [cell] = score.cells.values()
            arrays |= {f"{part}/{name}": array for part in _PARTS if (array := getattr(cell, part)) is not None}
        about = {"chosen": self.chosen, "fitness": self.fitness, "images": self.images, "crossed": self.crossed}
        save_arrays(path, arrays, {"warm_start": json.dumps(about), "identity": identity})

    @classmethod
    def load(cls, path: Path, identity: str) -> "FoundStep | None":
        """What a file holds; `None` if there is none of this run, or it is damaged. It is then found again."""
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                if metadata.get("identity") != identity:
                    return None
                about = json.loads(metadata["warm_start"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            test: dict[str, dict[str, np.ndarray]] = {}
            for key in [key for key in arrays if "/" in key]:
                part, _, name = key.partition("/")
                test.setdefault(name, {})[part] = arrays.pop(key)
            slopes = arrays.pop(_SLOPES, None)
            return cls(
                arrays=arrays, slopes=slopes, test={name: kept_score(**parts) for name, parts in test.items()}, **about
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None


def kept_score(logits: np.ndarray | None = None, sums: np.ndarray | None = None) -> Score:
    """A score on the test images, from what is kept of it."""
    return Score({0: Cell(None, 0.0, True, logits, sums)})


def kept_of(score: Score, reading: Reading) -> Score:
    """What is kept of a score on the test images: logits where metrics need them, and a task's sums."""
    logits = score.logits if reading.keeps_predictions else None
    return kept_score(logits, None if reading.keeps_labels else score.sums)


def best_line(found: FoundStep, fitness: Fitness, start: str, how: str = "") -> str:
    """What was chosen, `how` if not by the selection images, and what it does to the fitness there, for the log."""
    before, after = fitness.raw(found.fitness[PARENT]), fitness.raw(found.fitness[found.chosen])
    if found.chosen == PARENT:
        return f"nothing has a better {fitness.name} than the {start} ({before:.4g}) {how or 'on the selection images'}; it stays."
    return f"{found.chosen} is chosen{how and f' {how}'}; {fitness.name} {before:.4g} before, {after:.4g} after, on the selection images."


def kept_or_found(
    journal: Journal, file_name: str, identity: Mapping[str, Any], find: Callable[[], FoundStep]
) -> FoundStep:
    """What the ledger keeps of a step of this run, or what is found now, on all processes."""
    processes = journal.processes
    first = processes.process_index == 0
    path = journal.ledger.folder / file_name
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    [found, *_] = processes.gather(lambda: FoundStep.load(path, digest) if first and journal.ledger.resumed else None)
    if found is None:
        found = find()
        processes.gather(lambda: found.save(path, digest) if first else None)
    return found
