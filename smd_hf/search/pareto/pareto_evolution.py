"""
Evolution by several objectives: finds the run's front and chooses the next parent from it.

All objectives are computed for the children on the fitness data. The best children by rank and crowding distance are
candidates, and so is the parent. Their objectives are computed again on the selection split. All generations share these
images, so the run's front is the set of non-dominated candidates of all generations.

The next parent is the generation's candidate on the front that is nearest to the ideal point. That point has the best value
of each objective, scaled to its range on the front. In a tie, a child wins over the parent, which stays on the front anyway,
and an earlier child over a later one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...data.ood_images import OODImages
from ...scoring.changes import applied, commit
from ...scoring.evaluator import Variant
from ...scoring.scores import Score
from ...scoring.sums import BatchSums
from ..evolution import PARENT, Evolution, Generation
from ..fitness import ScoredChild
from ..fitness_scorer import OnScored
from ..mutation import Child
from ..recombination import Candidate
from ..selection import ScoredCandidate
from .coordinates import CoordinateCounts
from .objectives import Objectives, distances_to_ideal, fittest_of, front_of

Place = tuple[int, int] | None
"""The origin of a model: generation and child, from 0; `None` for the first parent."""


class ParetoEvolution(Evolution):
    """
    Evolves a model in place, generation by generation, by several objectives.

    Args:
        ood ([`OODImages`], *optional*): out-of-distribution images. They are used only if an objective needs them.

    Attributes:
        first_parent (mapping of `str` to `torch.Tensor`): copies of the weights at the start of the run, by name of the mutable
            parameter.
        records (sequence of `dict`): the [`Generation.record`] of each generation so far, also of a run that was resumed.
    """

    def __init__(self, objectives: Objectives, *args, ood: OODImages | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.scorer.ood = ood if objectives.needs_ood else None
        self.scorer.keep_logits = objectives.needs_logits
        self.objectives = objectives
        self._generation: dict[str, Any] = {}
        self._children_values: list[list[float]] = []
        self._candidate_values: list[list[float]] = []
        self.begin()

    def begin(self, records: Sequence[dict[str, Any]] = ()) -> None:
        super().begin(records)
        self.records = records
        self.first_parent = {name: each.detach().clone() for name, each in self.mutation.parameters.items()}
        self.coordinates = CoordinateCounts(self.mutation, self.first_parent)

    def step(self, generation: int, sigma: float, on_scored: OnScored | None = None) -> Generation:
        """As [`Evolution.step`]. The generation also holds the values of the objectives."""
        self.coordinates.parent_changed()
        done = super().step(generation, sigma, on_scored)
        done.objectives = self._generation
        return done

    def values(
        self, scores: Sequence[Score], children: Sequence[Child | None], labels: np.ndarray
    ) -> list[list[float]]:
        """
        The objectives of children of the current parent, on every process. Greater is better.

        Args:
            children (sequence of [`Child`]): `None` for the parent itself.
        """

        def value(number: int) -> list[float]:
            shares = self.coordinates.shares(children[number]) if self.objectives.about_coordinates else {}
            return self.objectives(scores[number], labels, shares)

        return self.evaluator.processes.map(len(scores), value)

    def _score(
        self, children: list[Child], sums: BatchSums | None, on_scored: OnScored | None
    ) -> tuple[Score, float, list[ScoredChild]]:
        parent, fitness, scored = super()._score(children, sums, on_scored)
        scores = [parent, *(each.score for each in scored)]
        [parent_values, *self._children_values] = self.values(scores, [None, *children], self.fitness_batches.labels)
        raw = self.objectives.raw
        self._generation = {"parent": raw(parent_values), "children": [raw(each) for each in self._children_values]}
        return parent, fitness, scored

    def _recombine(self, children: list[ScoredChild], sums: BatchSums | None) -> list[ScoredCandidate]:
        best = fittest_of(np.array(self._children_values), self.recombination.top_k)
        scored = super()._recombine([children[number] for number in best], sums)
        family = [child_of(each.candidate) for each in scored]
        self._candidate_values = self.values([each.score for each in scored], family, self.selection_batches.labels)
        return scored

    def _select(self, candidates: list[ScoredCandidate]) -> ScoredCandidate:
        everything, parent = candidates_of(self.records, self.objectives)
        children = [child_of(each.candidate) for each in candidates]
        places = [parent if child is None else (child.generation, child.index) for child in children]
        everything |= in_order(dict(zip(places, self._candidate_values)), parent)
        front = nondominated(everything)
        self._generation |= {
            "selection": {
                each.candidate.name: self.objectives.raw(values)
                for each, values in zip(candidates, self._candidate_values)
            },
            "front": [each.candidate.name for each, place in zip(candidates, places) if place in front],
        }
        parents = [number for number, child in enumerate(children) if child is None]
        best = min(
            (number for number, place in enumerate(places) if place in front),
            key=lambda number: (front[places[number]], number in parents, places[number] or ()),
            default=parents[0] if parents else 0,
        )
        return candidates[best]

    def replay(self, places: Sequence[Place]) -> Iterator[list[tuple[Place, Child | None, Variant]]]:
        """
        Rebuilds models of the run. The model goes from the first parent through all generations and is restored at the end.

        Yields:
            For each generation with such models, a list of their place, child and variant. Meanwhile the model holds their
            parent. The first parent comes first, in a list of its own.
        """
        records = self.records
        with self.from_first_parent():
            if None in places:
                yield [(None, None, PARENT)]
            for record in records:
                children = self.mutation.children(record["generation"], record["sigma"])
                wanted = [child for child in children if (child.generation, child.index) in places]
                if wanted:
                    self.coordinates.parent_changed()
                    yield [((child.generation, child.index), child, self.variant(child)) for child in wanted]
                if record["parts"]:
                    parts = [(children[index], coefficient) for index, coefficient in record["parts"]]
                    commit(self.mutation.parameters, self.mutation.combination(parts))
                    self.mutation.parent_changed()

    @contextmanager
    def from_first_parent(self) -> Iterator[None]:
        """Within the context, the model holds the first parent. What the context does to it is undone at the end."""
        whole = [(name, (None, values)) for name, values in self.first_parent.items()]
        with applied(self.mutation.parameters, whole):
            self.mutation.parent_changed()
            self.coordinates.parent_changed()
            yield
        self.mutation.parent_changed()
        self.coordinates.parent_changed()


def child_of(candidate: Candidate) -> Child | None:
    """The candidate's child; `None` for the parent."""
    return candidate.parts[0][0] if candidate.parts else None


def candidates_of(
    records: Sequence[Mapping[str, Any]], objectives: Objectives
) -> tuple[dict[Place, list[float]], Place]:
    """All candidates of some generations, in order, with their values on the selection split; and the place of the last parent."""
    found: dict[Place, list[float]] = {}
    parent: Place = None
    for record in records:
        places: dict[str, Place] = {"parent": parent}
        for child in record["children"]:
            places[f"child {child['index']}"] = (record["generation"], child["index"])
        selection = record["objectives"]["selection"]
        values = {places[name]: objectives.signed(raw) for name, raw in selection.items()}
        for place, each in in_order(values, parent).items():
            found.setdefault(place, each)
        parent = places[record["chosen"]]
    return found, parent


def in_order(candidates: Mapping[Place, list[float]], parent: Place) -> dict[Place, list[float]]:
    """Sorts a generation's candidates, the parent first, then by index. Of equal candidates, the first is on the front."""
    return {place: candidates[place] for place in sorted(candidates, key=lambda place: (place != parent, place or ()))}


def nondominated(candidates: Mapping[Place, Sequence[float]]) -> dict[Place, float]:
    """The non-dominated candidates, in their order, with their distances to the ideal point."""
    places, values = list(candidates), np.array(list(candidates.values()))
    front = front_of(values)
    return dict(zip((places[number] for number in front), distances_to_ideal(values[front]).tolist())) if front else {}
