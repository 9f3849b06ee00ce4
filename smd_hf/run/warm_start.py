"""
The first step of a run with `warm_start`: the best head that one pass gives, and what each such head is worth.

Class prior, temperature and head are fitted on the features of the fitness images, and the selection images choose one of
them, or the parent as it is. The generations start from there. The ledger keeps what was found, for a run that goes on.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from ..data.batches import ImageBatches
from ..errors import SMDError
from ..files import save_arrays
from ..models.linear_head import HeadInputs
from ..scoring.bars import TickingBar
from ..search.evolution import Evolution
from ..search.head.baselines import HEAD, PARENT, Baseline, baselines, best_of
from ..search.head.features import features_of
from ..search.head.linear import LinearHead
from ..search.losses import Loss
from .journal import Journal

logger = logging.get_logger(__name__)

FILE_NAME = "warm_start.safetensors"

HOLD_OUT = 5
"""Without selection images, every so many of the fitness images choose among the heads."""


@dataclass
class WarmStart:
    """
    What the first step of a run has found.

    Args:
        chosen (`str`): name of the chosen baseline, `"parent"` if none is better.
        head ([`LinearHead`]): its weight and bias.
        fitness (dict of `str` to `float`): of each baseline on the selection images.
        images (`int`): how many images were passed through the model.
        test_logits (dict of `str` to `numpy.ndarray`): the best baseline of each kind on the test images, if there are any:
            float32, of shape `(n, num_labels)`.
        seconds (`float`, *optional*, defaults to 0): how long passes and fits took. It is not kept.
        features (`tuple` of two `numpy.ndarray`, *optional*): of the fitness images, and their labels. They are not kept.
    """

    chosen: str
    head: LinearHead
    fitness: dict[str, float]
    images: int
    test_logits: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0
    features: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def pull(self) -> float:
        """The pull of the best fit of the whole head."""
        fitted = {name: value for name, value in self.fitness.items() if name.startswith(HEAD)}
        return float(max(fitted, key=fitted.__getitem__).removeprefix(HEAD))

    def save(self, path: Path, identity: str) -> None:
        """Writes all but the features, for the run of this identity."""
        arrays = {f"logits/{name}": logits for name, logits in self.test_logits.items()} | self.head.arrays
        about = {"chosen": self.chosen, "fitness": self.fitness, "images": self.images}
        save_arrays(path, arrays, {"warm_start": json.dumps(about), "identity": identity})

    @classmethod
    def load(cls, path: Path, identity: str) -> "WarmStart | None":
        """What a file holds; `None` if there is none of this run, or it is damaged. It is then found again."""
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                if metadata.get("identity") != identity:
                    return None
                about = json.loads(metadata["warm_start"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            head = LinearHead(arrays.pop("weight"), arrays.pop("bias", None))
            logits = {name.removeprefix("logits/"): array for name, array in arrays.items()}
            return cls(head=head, test_logits=logits, **about)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None


def warm_start(
    evolution: Evolution,
    loss: Loss,
    test: ImageBatches | None,
    journal: Journal,
    shown: bool,
) -> WarmStart | None:
    """
    Fits the head, on all processes, and puts the best one into the model.

    Args:
        evolution ([`Evolution`]): before its first generation. The model holds the first parent.
        loss ([`Loss`]): what the fits lower.
        test ([`ImageBatches`], *optional*): the baselines are reported on them. They choose nothing.
        journal ([`Journal`]): open. It says where the run keeps its files, what it is, and whether it goes on.
        shown (`bool`): shows a progress bar.

    Returns:
        [`WarmStart`] or `None`: `None`, with a warning, if the logits are not the output of one linear layer.
    """
    evaluator = evolution.evaluator
    processes, first = evaluator.processes, evaluator.processes.process_index == 0
    path, digest = journal.ledger.folder / FILE_NAME, _digest(journal.identity)
    evaluator.model.eval()
    batch = evolution.fitness_batches.first_batch()
    try:
        head = HeadInputs(evaluator.model, evaluator.inputs(batch))  # type: ignore[arg-type]
    except SMDError as error:
        if first:
            logger.warning(f"warm_start is skipped. {error}")
        return None
    [found, *_] = processes.gather(lambda: WarmStart.load(path, digest) if first and journal.ledger.resumed else None)
    if found is None:
        found = _find(evolution, loss, test, head, shown)
        processes.gather(lambda: found.save(path, digest) if first else None)
    if found.chosen != PARENT:
        head.write(found.head.weight, found.head.bias)
        evolution.mutation.parent_changed()
    if evolution.head is not None:
        evolution.head.pull = found.pull
        if found.features is not None:
            evolution.head.know(*found.features)
    if first:
        logger.warning(f"Warm start: {_best_line(found, evolution)}")
    if not journal.run.generations:
        journal.run.add_before(found.images, found.seconds)
    return found


def _find(evolution: Evolution, loss: Loss, test: ImageBatches | None, head: HeadInputs, shown: bool) -> WarmStart:
    evaluator, began = evolution.evaluator, time.monotonic()
    start = LinearHead(*head.numbers())
    sets = [evolution.fitness_batches]
    if evolution.selection_batches is not evolution.fitness_batches:
        sets.append(evolution.selection_batches)
    images = sum(batches.num_images for batches in sets)
    with _bar("Fitting the head", shown, images) as bar:
        parts = [features_of(evaluator, head, batches, bar.counting) for batches in sets]
        fitness_set, selection_set = parts if len(parts) == 2 else _split(*parts[0])
        features = parts[0]

        def fit() -> list[Baseline] | None:
            # One machine solves it: another one may come to other last bits.
            if evaluator.processes.process_index:
                return None
            return baselines(start, fitness_set, selection_set, loss, evolution.fitness)

        [found, *_] = evaluator.processes.gather(fit)
    assert found is not None
    best = best_of(found)
    result = WarmStart(
        best.name,
        best.head,
        {each.name: each.fitness for each in found},
        images,
        seconds=time.monotonic() - began,
        features=features,
    )
    if test is not None:
        with _bar("Testing the heads", shown, test.num_images) as bar:
            features, _ = features_of(evaluator, head, test, bar.counting)
        result.test_logits = {each.name: each.head.logits(features) for each in _shown(found, best)}
    return result


def _shown(found: Sequence[Baseline], best: Baseline) -> list[Baseline]:
    """The best baseline of each kind, and the chosen one."""
    kinds = dict.fromkeys(each.name.split(",")[0] for each in found if each.name != PARENT)
    chosen = {each.name: each for each in (*(best_of(list(found), kind) for kind in kinds), best)}
    return [each for name, each in chosen.items() if name != PARENT]


def _split(features: np.ndarray, labels: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    chooses = np.arange(len(labels)) % HOLD_OUT == HOLD_OUT - 1
    return (features[~chooses], labels[~chooses]), (features[chooses], labels[chooses])


def _best_line(found: WarmStart, evolution: Evolution) -> str:
    raw, name = evolution.fitness.raw, evolution.fitness.name
    before, after = raw(found.fitness[PARENT]), raw(found.fitness[found.chosen])
    if found.chosen == PARENT:
        return (
            f"no fitted head has a better {name} than the parent ({before:.4g}) on the images that choose; it stays."
        )
    return f"{found.chosen} is chosen; {name} {before:.4g} before, {after:.4g} after, on the images that choose."


def _bar(description: str, shown: bool, images: int) -> TickingBar:
    return TickingBar(description, shown, images)


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
