"""Runs generations: mutate, score, recombine, select. This is the part of a run that does not depend on Trainer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn
from transformers.utils import logging

from ..data.batches import ImageBatches
from ..data.ood_images import OODImages
from ..errors import SMDError
from ..models.checkpoints import weights_hash
from ..scoring.changes import Change, applied, commit
from ..scoring.evaluator import Evaluator, Variant
from ..scoring.racing import race
from ..scoring.scores import Score
from .fitness import Fitness, ScoredChild
from .generation import Generation
from .mutation import Child, Mutation
from .recombination import Candidate, Recombination

logger = logging.get_logger(__name__)


KEEP_PARENT = Candidate("parent", ())
PARENT = Variant("parent", changed=frozenset())
PROBES = 4
"""Number of children that measure the effect of a sigma."""


def _discordance(candidates: list[Candidate], scores: list[Score]) -> float | None:
    if candidates[0] is not KEEP_PARENT or len(candidates) == 1:
        return None
    return float(np.mean([np.mean(scores[0].correct != score.correct) for score in scores[1:]]))


class Evolution:
    """
    Evolves a model in place, generation by generation.

    Args:
        model (`torch.nn.Module`): the parent. Each [`Evolution.step`] replaces it by the next parent.
        mutation ([`Mutation`]), evaluator ([`Evaluator`]), fitness ([`Fitness`]), recombination ([`Recombination`]): the
            parts of the method.
        fitness_batches ([`ImageBatches`]): images that the children are scored on.
        selection_batches ([`ImageBatches`], *optional*): images that the candidates are scored on. Defaults to the fitness
            images.
        elitism (`bool`, *optional*, defaults to `True`): the parent is a candidate too.
        survivors (`int`, *optional*, defaults to 0): children race by successive halving until at most this many are left.
            With 0, they do not race.
        keep_parent (`bool`, *optional*, defaults to `False`): keeps each generation's parent for
            [`Evolution.last_parent`]. This takes as much memory as the weights that change.
        ood ([`OODImages`], *optional*): out-of-distribution images. They are used only if the fitness needs them.

    Attributes:
        last ([`Generation`], *optional*): the last generation; `None` before the first. A restored generation has no scores.
    """

    def __init__(
        self,
        model: nn.Module,
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
        self.ood = ood if fitness.needs_ood else None
        self.needs_logits = fitness.needs_logits
        self.last: Generation | None = None
        self._parent_result: tuple[Score, float] | None = None
        self._undo: list[tuple[str, Change]] = []
        self._warned_of_failed_children = False

    def step(
        self, generation: int, sigma: float, on_scored: Callable[[int, float | None], None] | None = None
    ) -> Generation:
        """
        Runs one generation and leaves the next parent in the model.

        Args:
            generation (`int`): counts from 0. Keys masks and noise.
            sigma (`float`): mutation strength.
            on_scored (`Callable`, *optional*): called with a child's index and its fitness when the child has been scored.
                The fitness is `None` if other processes score a part of the child.

        Raises:
            `SMDError`: if the parent's logits are not finite.
            `RuntimeError`: if the parent's weights were not restored exactly. This is a bug, and nothing is saved.
        """
        parent_hash = weights_hash(self.model)
        children = self.mutation.children(generation, sigma)
        sums = self.recombination.sums(children)
        parent, parent_fitness, scored = self._score(children, on_scored, sums)
        if weights_hash(self.model) != parent_hash:
            raise RuntimeError(
                "The parent's weights changed while its children were scored. This is a bug in smd_hf, or the model changes "
                "its own weights in a forward pass. Nothing was saved."
            )
        candidates, results = self._finalists(scored, sums)
        best = self._best(candidates, [fitness for _, fitness in results])
        self._parent_result = results[best]
        chosen, (selected, _) = candidates[best], results[best]
        self._advance(chosen)
        self.last = Generation(
            generation,
            sigma,
            parent,
            parent_fitness,
            scored,
            selection={candidate.name: fitness for candidate, (_, fitness) in zip(candidates, results)},
            chosen=chosen,
            selected=selected,
            discordance=_discordance(candidates, [score for score, _ in results]),
        )
        return self.last

    def _advance(self, chosen: Candidate) -> None:
        """Makes the chosen candidate the parent."""
        self._undo = []
        if chosen.parts:
            undo = commit(self.mutation.parameters, self.mutation.combination(list(chosen.parts)))
            self.mutation.parent_changed()
            if self.keep_parent:
                self._undo = undo

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
        self.last = Generation.from_record(record, children, chosen, selected)
        self._parent_result = None if selected is None else (selected, self.last.selection[chosen.name])

    def _best(self, candidates: list[Candidate], fitness: list[float]) -> int:
        """The fittest candidate. The parent wins a tie, unless children are pruned: then a child wins it."""
        best = int(np.argmax(fitness))
        if self.mutation.prune and candidates[best] is KEEP_PARENT:
            return next(
                (number for number in range(len(fitness)) if number != best and fitness[number] == fitness[best]), best
            )
        return best

    def score_on(self, fitness_batches: ImageBatches) -> None:
        """Replaces the fitness images. If they are the selection images too, the parent is scored on them again."""
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

    def _score(
        self, children: list[Child], on_scored: Callable[[int, float | None], None] | None, sums: Any | None
    ) -> tuple[Score, float, list[ScoredChild]]:
        batches, keep_logits = self.fitness_batches, self.needs_logits
        known: dict[int, float] = {}

        def report(number: int, score: Score) -> None:
            score.ood = ood[number]
            if score.num_images == batches.num_images:
                known[number] = self.fitness(score, batches.labels)
            if on_scored is not None and number > 0:
                on_scored(number - 1, known.get(number))

        variants = [PARENT, *map(self.variant, children)]
        ood = self.ood_scores(variants, "fitness")
        if self.survivors:
            scores = race(self.evaluator, variants, batches, self.survivors, keep_logits, report)
        else:
            scores = self.evaluator.score(variants, batches, keep_logits, report, sums=sums)
        for score, other in zip(scores, ood):
            score.ood = other
        check_parent(scores[0])
        labels = batches.labels
        fitness = self.evaluator.processes.map(
            len(scores),
            lambda number: (
                known[number] if number in known else self.fitness(scores[number], labels[: scores[number].num_images])
            ),
        )
        scored = [
            ScoredChild(child, score, value, eliminated=score.num_images < batches.num_images)
            for child, score, value in zip(children, scores[1:], fitness[1:])
        ]
        failed = [each.child.index for each in scored if not np.isfinite(each.fitness)]
        if failed and not self._warned_of_failed_children:
            self._warned_of_failed_children = True
            logger.warning(
                f"{len(failed)} of {len(scored)} children have scores that are not finite (the first is child {failed[0]} of "
                f"generation {children[0].generation}). They cannot be selected. A smaller sigma avoids this."
            )
        return scores[0], fitness[0], scored

    def _finalists(
        self, children: list[ScoredChild], sums: Any | None
    ) -> tuple[list[Candidate], list[tuple[Score, float]]]:
        """All rounds' candidates, with score and fitness on the selection split. With elitism, the parent comes first."""
        finalists: list[Candidate] = []
        results: list[tuple[Score, float]] = []
        if self.elitism:
            # The last generation chose it, so it has been scored on these images already.
            finalists = [KEEP_PARENT]
            results = self._score_candidates([KEEP_PARENT]) if self._parent_result is None else [self._parent_result]
        rounds = self.recombination.propose(children, sums)
        proposed = self._of_first_process(next(rounds, None))
        while proposed is not None:
            scored = self._score_candidates(proposed)
            finalists += proposed
            results += scored
            try:
                proposed = rounds.send([fitness for _, fitness in scored])
            except StopIteration:
                proposed = None
            proposed = self._of_first_process(proposed)
        if not finalists:
            return [KEEP_PARENT], self._score_candidates([KEEP_PARENT])
        return finalists, results

    def _of_first_process(self, proposed: list[Candidate] | None) -> list[Candidate] | None:
        """The first process's proposal, on every process: different machines may solve equations to different last bits."""
        [first, *_] = self.evaluator.processes.gather(lambda: proposed)
        return first

    def _score_candidates(self, candidates: list[Candidate]) -> list[tuple[Score, float]]:
        """Score and fitness of each candidate on the selection split."""
        if not candidates:
            return []
        variants = [self._candidate_variant(candidate) for candidate in candidates]
        scores = self.evaluator.score(variants, self.selection_batches, keep_logits=self.needs_logits)
        for score, other in zip(scores, self.ood_scores(variants, "selection")):
            score.ood = other
        labels = self.selection_batches.labels
        fitness = self.evaluator.processes.map(len(scores), lambda number: self.fitness(scores[number], labels))
        return list(zip(scores, fitness))

    def ood_scores(self, variants: list[Variant], part: str) -> list[Score | None]:
        """
        Scores variants on out-of-distribution images, if the fitness needs them; otherwise returns `None` for each.

        Args:
            variants (list of [`Variant`]): what to score.
            part (`str`): `"fitness"`, `"selection"` or `"test"`.
        """
        if self.ood is None:
            return [None] * len(variants)
        return self.evaluator.score(variants, getattr(self.ood, part), keep_logits=True)

    def variant(self, child: Child) -> Variant:
        """The child as a variant that the evaluator can score."""
        return Variant(
            f"child {child.index}", lambda: self.mutation.changes(child), self.mutation.changed_names(child)
        )

    def _candidate_variant(self, candidate: Candidate) -> Variant:
        parts = list(candidate.parts)
        changed = frozenset().union(*(self.mutation.changed_names(child) for child, _ in parts))
        return Variant(candidate.name, lambda: self.mutation.combination(parts), changed)

    def flipped(self, sigma: float, sample: ImageBatches, num_probes: int = PROBES) -> float:
        """
        The mean share of a sample's predictions that a child of this sigma flips.

        The children belong to generation -1, so every sigma gets the same noise. They are evenly spaced in the population.
        """
        children = self.mutation.children(-1, sigma)
        probes = [
            children[round(place)] for place in np.linspace(0, len(children) - 1, min(num_probes, len(children)))
        ]
        variants = [PARENT, *map(self.variant, probes)]
        parent, *scores = self.evaluator.score(variants, sample, keep_logits=True)
        check_parent(parent)
        predictions = parent.logits.argmax(-1)
        return float(np.mean([np.mean(score.logits.argmax(-1) != predictions) for score in scores]))


def check_parent(score: Score) -> None:
    """Raises [`SMDError`] if the parent's logits are not finite."""
    if not score.finite:
        raise SMDError(
            "The parent's logits are not finite (NaN or infinity) on this data, so no child can be compared with it. Check "
            "that the checkpoint loaded fully and fits its image processor, and load it in float32 if it is in float16."
        )
