"""One generation's results: how a run keeps, records and logs them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..scoring.scores import Score
from .fitness import Fitness, ScoredChild, ranked
from .mutation import Child
from .recombination import Candidate


@dataclass
class Generation:
    """
    The results of one generation.

    Args:
        generation (`int`): counts from 0.
        sigma (`float`): mutation strength, before `match_norm` and the scale of each tensor.
        parent ([`Score`]): the parent's score on the fitness data.
        parent_fitness (`float`): the parent's fitness on the same data.
        children (list of [`ScoredChild`]): by index.
        selection (dict of `str` to `float`): fitness of each candidate on the selection split, by the candidate's name.
        chosen ([`Candidate`]): the next parent. It has no parts if the parent stays.
        selected ([`Score`]): the next parent's score on the selection split.
        discordance (`float`, *optional*): share of selection images on which exactly one of parent and candidate is right,
            mean over the candidates. `None` if the parent was not a candidate.
        objectives (`dict`, *optional*): values of several objectives, from [`ParetoEvolution`].
    """

    generation: int
    sigma: float
    parent: Score
    parent_fitness: float
    children: list[ScoredChild]
    selection: dict[str, float]
    chosen: Candidate
    selected: Score
    discordance: float | None
    objectives: dict[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """The generation as JSON values. They suffice to rebuild each child and the next parent."""
        return {
            "generation": self.generation,
            "sigma": self.sigma,
            "parent": _record_score(self.parent, self.parent_fitness),
            "children": [
                asdict(scored.child)
                | _record_score(scored.score, scored.fitness)
                | ({"eliminated": True} if scored.eliminated else {})
                for scored in self.children
            ],
            "selection": {name: _finite_or_none(fitness) for name, fitness in self.selection.items()},
            "discordance": self.discordance,
            "chosen": self.chosen.name,
            "parts": [[child.index, coefficient] for child, coefficient in self.chosen.parts],
        } | ({} if self.objectives is None else {"objectives": self.objectives})

    @classmethod
    def from_record(
        cls, record: dict[str, Any], children: Sequence[Child], chosen: Candidate, selected: Score | None
    ) -> "Generation":
        """
        Restores a generation from its record. It has fitness values, but not the scores that they came from.

        Args:
            record (`dict`): from [`Generation.record`].
            selected ([`Score`], *optional*): the next parent's score on the selection split, if known.
        """
        return cls(
            record["generation"],
            record["sigma"],
            parent=Score(),
            parent_fitness=_or_infinite(record["parent"]["fitness"]),
            children=[
                ScoredChild(child, Score(), _or_infinite(each["fitness"]), eliminated=each.get("eliminated", False))
                for child, each in zip(children, record["children"])
            ],
            selection={name: _or_infinite(fitness) for name, fitness in record["selection"].items()},
            chosen=chosen,
            selected=selected or Score(),
            discordance=record["discordance"],
            objectives=record.get("objectives"),
        )

    def logs(self, fitness: Fitness) -> dict[str, float]:
        """
        The generation's logs for Trainer, with metrics in their own direction.

        Best, mean and standard deviation count only the children that were scored on all images.
        """
        name, raw = fitness.name, fitness.raw
        values = [scored.fitness for scored in ranked(self.children)]
        seen = sum(scored.score.num_images for scored in self.children)
        logs = {
            "loss": self.selected.nll,
            "sigma": self.sigma,
            f"parent_{name}": raw(self.parent_fitness),
            "accepted": float(bool(self.chosen.parts)),
        }
        if any(scored.eliminated for scored in self.children):
            logs["racing_saved"] = 1 - seen / (len(self.children) * self.parent.num_images)
        if values:
            logs[f"best_{name}"] = raw(max(values))
            logs[f"mean_{name}"] = raw(float(np.mean(values)))
            logs[f"std_{name}"] = float(np.std(values))
        return logs


def _record_score(score: Score, fitness: float) -> dict[str, Any]:
    accuracy = {"accuracy": score.accuracy} if score.is_classified else {}
    return {
        "fitness": _finite_or_none(fitness),
        **accuracy,
        "nll": _finite_or_none(score.nll),
        "num_images": score.num_images,
    }


def _finite_or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _or_infinite(value: float | None) -> float:
    return -np.inf if value is None else value
