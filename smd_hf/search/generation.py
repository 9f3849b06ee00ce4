"""What happened in one generation, as the run remembers, records and logs it."""

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
    What happened in one generation.

    Args:
        generation (`int`): from 0.
        sigma (`float`): before `match_norm` and the tensors' own scales.
        parent ([`Score`]): of the parent on the fitness data.
        parent_fitness (`float`): likewise.
        children (list of [`ScoredChild`]): in their order.
        selection (dict of `str` to `float`): fitness of each finished candidate on the selection split, by name.
        chosen ([`Candidate`]): the next parent; without parts where the parent is kept.
        selected ([`Score`]): of the chosen one on the selection split.
        discordance (`float`, *optional*): share of selection images on which exactly one of parent and candidate is right,
            mean over the candidates; `None` where the parent was not among them.
        objectives (`dict`, *optional*): values of several objectives, as [`ParetoEvolution`] finds them.
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
        """The generation as JSON values: enough to build each child, and the next parent, again."""
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
        The generation again, with its fitness values but without the scores that they come from.

        Args:
            record (`dict`): as [`Generation.record`] gives it.
            children (sequence of [`Child`]), chosen ([`Candidate`]): made again.
            selected ([`Score`], *optional*): of the chosen one, where that was kept.
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
        """The generation as Trainer logs it, metrics in their own direction; of the children that saw all images."""
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
    return {
        "fitness": _finite_or_none(fitness),
        "accuracy": score.accuracy,
        "nll": _finite_or_none(score.nll),
        "num_images": score.num_images,
    }


def _finite_or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _or_infinite(value: float | None) -> float:
    return -np.inf if value is None else value
