"""The method: generations of mutation, scoring, recombination and selection. [`Evolution.step`] is one generation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from ..data.batches import ImageBatches
from ..data.ood_images import OODImages
from ..errors import SMDError
from ..models.checkpoints import weights_hash
from ..scoring.changes import Change, applied, commit
from ..scoring.evaluator import Evaluator, Variant
from ..scoring.scores import Score
from ..scoring.sums import BatchSums
from .fitness import Fitness, ScoredChild
from .fitness_scorer import PARENT, FitnessScorer, OnScored
from .generation import Generation
from .information import Guard
from .mutation import Child, Mutation
from .recombination import Candidate, Recombination
from .selection import KEEP_PARENT, ScoredCandidate, discordance, fittest, score_proposals

__all__ = ["KEEP_PARENT", "PARENT", "Evolution", "Generation"]


class Evolution:
    """
    Evolves a model in place, generation by generation.

    Args:
        model ([`~transformers.PreTrainedModel`]): the parent. Each [`Evolution.step`] replaces it by the next parent.
        mutation ([`Mutation`]), evaluator ([`Evaluator`]), fitness ([`Fitness`]), recombination ([`Recombination`]): the
            parts of the method.
        selection_batches ([`ImageBatches`], *optional*): images that the candidates are scored on. Defaults to the fitness
            images.
        elitism (`bool`, *optional*, defaults to `True`): the parent is a candidate too.
        survivors (`int`, *optional*, defaults to 0): children race by successive halving until at most this many are left.
            With 0, they do not race.
        keep_parent (`bool`, *optional*, defaults to `False`): keeps each generation's parent for
            [`Evolution.last_parent`]. This takes as much memory as the weights that change.
        ood ([`OODImages`], *optional*): out-of-distribution images. They are used only if the fitness needs them.

    Attributes:
        guard ([`Guard`], *optional*): refuses candidates by their scores on the selection images.
        last ([`Generation`], *optional*): the last generation; `None` before the first. A restored generation has no scores.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        mutation: Mutation,
        evaluator: Evaluator,
        fitness: Fitness,
        recombination: Recombination,
        fitness_batches: ImageBatches,
        selection_batches: ImageBatches | None = None,
        elitism: bool = True,
        survivors: int = 0,
        keep_parent: bool = False,
        ood: OODImages | None = None,
    ):
        self.model = model
        self.mutation = mutation
        self.evaluator = evaluator
        self.fitness = fitness
        self.recombination = recombination
        self.fitness_batches = fitness_batches
        self.selection_batches = selection_batches or fitness_batches
        self.elitism = elitism
        self.survivors = survivors
        self.keep_parent = keep_parent
        self.scorer = FitnessScorer(
            evaluator, fitness, survivors, ood if fitness.needs_ood else None, fitness.needs_logits
        )
        self.guard: Guard | None = None
        self.last: Generation | None = None
        self._parent_result: ScoredCandidate | None = None
        self._undo: list[tuple[str, Change]] = []

    @property
    def ood(self) -> OODImages | None:
        """The out-of-distribution images, if they are needed."""
        return self.scorer.ood

    # ---- One generation ----------------------------------------------------------------------------------------------

    def step(self, generation: int, sigma: float, on_scored: OnScored | None = None) -> Generation:
        """
        Runs one generation and leaves the next parent in the model.

        Args:
            generation (`int`): counts from 0. Keys masks and noise.
            on_scored (`Callable`, *optional*): called with a child's index and its fitness when the child has been scored.
                The fitness is `None` if other processes score a part of the child.

        Raises:
            `SMDError`: if the parent's logits are not finite.
            `RuntimeError`: if the parent's weights were not restored exactly. This is a bug, and nothing is saved.
        """
        children = self.mutation.children(generation, sigma)
        self.recombination.prepare(lambda: self.evaluator.logits(self.fitness_batches))
        sums = self.recombination.sums(children)
        if self.guard is not None:
            self.guard.begin()
        with self._parent_restored():
            parent, parent_fitness, scored = self._score(children, sums, on_scored)
        candidates = self._recombine(scored, sums)
        if self.guard is not None:
            self.guard.tell(generation, sum(bool(each.candidate.parts) for each in candidates))
        best = self._select(candidates)
        self._parent_result = replace(best, candidate=KEEP_PARENT)
        self._advance(best.candidate)
        self.last = Generation(
            generation,
            sigma,
            parent,
            parent_fitness,
            scored,
            selection={each.candidate.name: each.fitness for each in candidates},
            chosen=best.candidate,
            selected=best.score,
            discordance=discordance(candidates),
        )
        return self.last

    def _score(
        self, children: list[Child], sums: BatchSums | None, on_scored: OnScored | None
    ) -> tuple[Score, float, list[ScoredChild]]:
        """Scores the parent and its children on the fitness images."""
        variants = list(map(self.variant, children))
        return self.scorer.family(children, variants, self.fitness_batches, sums, on_scored)

    def _recombine(self, children: list[ScoredChild], sums: BatchSums | None) -> list[ScoredCandidate]:
        """Scores all candidates on the selection images. With elitism, the parent comes first."""
        # The last generation chose the parent, so it has been scored on these images already.
        known = None if self._parent_result is None else [self._parent_result]
        parent = (known or self._score_candidates([KEEP_PARENT])) if self.elitism else []
        proposals = self.recombination.propose(children, sums)
        proposed = score_proposals(proposals, self._score_candidates, self.evaluator.processes)
        return [*parent, *proposed] or self._score_candidates([KEEP_PARENT])

    def _select(self, candidates: list[ScoredCandidate]) -> ScoredCandidate:
        """The next parent. When weights are pruned, a child that is as good as its parent wins."""
        return fittest(candidates, prefers_children=self.mutation.prune)

    def _advance(self, chosen: Candidate) -> None:
        """Makes the chosen candidate the parent."""
        self._undo = []
        if chosen.parts:
            undo = commit(self.mutation.parameters, self.mutation.combination(list(chosen.parts)))
            self.mutation.parent_changed()
            if self.keep_parent:
                self._undo = undo

    # ---- Before and between generations --------------------------------------------------------------------------------

    def begin(self, records: Sequence[dict[str, Any]] = ()) -> None:
        """
        Begins a run: the model as it is now is the first parent, and nothing is known of it.

        Args:
            records (sequence of `dict`, *optional*): the run's [`Generation.record`]s. Whoever records generations appends to
                it. Selection by several objectives reads it.
        """
        self.last = self._parent_result = None
        self._undo = []
        self.mutation.parent_changed()

    def restore(self, record: dict[str, Any], selected: Score | None = None) -> None:
        """
        Repeats a recorded generation without scoring anything.

        Args:
            record (`dict`): a [`Generation.record`]. The model must hold that generation's parent; afterwards it holds the
                next one.
            selected ([`Score`], *optional*): the next parent's score on the selection split, if known.

        Raises:
            `SMDError`: if the record has another number of children.
        """
        children = self.mutation.children(record["generation"], record["sigma"])
        if len(children) != len(record["children"]):
            raise SMDError(
                f"Generation {record['generation']} of the run to resume has {len(record['children'])} children; these arguments "
                f"make {len(children)}. Resume with the arguments of that run."
            )
        chosen = Candidate(record["chosen"], tuple((children[index], weight) for index, weight in record["parts"]))
        self._advance(chosen)
        self.last = last = Generation.from_record(record, children, chosen, selected)
        known = selected is not None
        self._parent_result = ScoredCandidate(KEEP_PARENT, selected, last.selection[chosen.name]) if known else None

    def score_on(self, fitness_batches: ImageBatches) -> None:
        """Replaces the fitness images. If they are the selection images too, the parent is scored on them again."""
        if fitness_batches is self.fitness_batches:
            return
        if self.selection_batches is self.fitness_batches:
            self.selection_batches = fitness_batches
            self._parent_result = None
        self.fitness_batches = fitness_batches

    @contextmanager
    def last_parent(self) -> Iterator[None]:
        """Within the context, the model holds the parent of the last generation's children again."""
        with applied(self.mutation.parameters, self._undo):
            self.mutation.parent_changed()
            yield
        self.mutation.parent_changed()

    # ---- Variants ------------------------------------------------------------------------------------------------------

    def variant(self, child: Child) -> Variant:
        """The child as a variant that the evaluator can score."""
        return Variant(
            f"child {child.index}", lambda: self.mutation.changes(child), self.mutation.changed_names(child)
        )

    def _candidate_variant(self, candidate: Candidate) -> Variant:
        parts = list(candidate.parts)
        changed = frozenset().union(*(self.mutation.changed_names(child) for child, _ in parts))
        return Variant(candidate.name, lambda: self.mutation.combination(parts), changed)

    def _score_candidates(self, candidates: list[Candidate]) -> list[ScoredCandidate]:
        variants = list(map(self._candidate_variant, candidates))
        results = self.scorer.score(variants, self.selection_batches, "selection")
        return [
            ScoredCandidate(candidate, score, fitness if self._lets_through(candidate, score) else float("-inf"))
            for candidate, (score, fitness) in zip(candidates, results)
        ]

    def _lets_through(self, candidate: Candidate, score: Score) -> bool:
        return self.guard is None or not candidate.parts or self.guard(score)

    @contextmanager
    def _parent_restored(self) -> Iterator[None]:
        """Checks that the parent has the same weights afterwards."""
        before = weights_hash(self.model)
        yield
        if weights_hash(self.model) != before:
            raise RuntimeError(
                "The parent's weights changed while its children were scored. This is a bug in smd_hf, or the model changes "
                "its own weights in a forward pass. Nothing was saved."
            )
