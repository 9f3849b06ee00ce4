"""Scores variants of the parent and computes their fitness: on all processes, in races, and on out-of-distribution images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers.utils import logging

from ..data.batches import ImageBatches
from ..data.ood_images import OODImages
from ..errors import SMDError
from ..scoring.evaluator import Evaluator, Variant
from ..scoring.racing import race
from ..scoring.scores import Score
from ..scoring.sums import BatchSums
from .fitness import Fitness, ScoredChild
from .mutation import Child

logger = logging.get_logger(__name__)

PARENT = Variant("parent", changed=frozenset())

OnScored = Callable[[int, float | None], None]
"""Called with a child's index and its fitness when it has been scored; `None` if other processes score a part of the child."""


@dataclass(eq=False)
class FitnessScorer:
    """
    Computes the fitness of variants.

    Args:
        survivors (`int`, *optional*, defaults to 0): children race by successive halving until at most this many are left.
            With 0, they do not race.
        keep_logits (`bool`, *optional*, defaults to `False`): scores keep all logits.
    """

    evaluator: Evaluator
    fitness: Fitness
    survivors: int = 0
    ood: OODImages | None = None
    keep_logits: bool = False
    _warned_of_failures: bool = field(default=False, init=False)

    def family(
        self,
        children: Sequence[Child],
        variants: Sequence[Variant],
        batches: ImageBatches,
        sums: BatchSums | None = None,
        on_scored: OnScored | None = None,
    ) -> tuple[Score, float, list[ScoredChild]]:
        """
        The parent's score and fitness on the fitness images, and those of the children, which are given as variants too.

        Raises:
            `SMDError`: if the parent's logits are not finite.
        """
        family = [PARENT, *variants]
        known: dict[int, float] = {}
        ood = self.ood_scores(family, "fitness")

        def report(number: int, score: Score) -> None:
            score.ood = ood[number]
            if score.num_images == batches.num_images:
                known[number] = self.fitness(score, batches.labels)
            if on_scored is not None and number > 0:
                on_scored(number - 1, known.get(number))

        if self.survivors:
            scores = race(self.evaluator, family, batches, self.survivors, self.keep_logits, report)
        else:
            scores = self.evaluator.score(family, batches, self.keep_logits, report, sums=sums, coarse=True)
        [parent, *results] = self._with_fitness(scores, ood, batches, known)
        check_parent(scores[0].finite)
        scored = [
            ScoredChild(child, score, value, eliminated=score.num_images < batches.num_images)
            for child, (score, value) in zip(children, results)
        ]
        self._warn_of_failures(scored)
        return *parent, scored

    def score(self, variants: Sequence[Variant], batches: ImageBatches, part: str) -> list[tuple[Score, float]]:
        """Score and fitness of each variant. `part` of the out-of-distribution images is `"selection"` or `"test"`."""
        if not variants:
            return []
        scores = self.evaluator.score(variants, batches, self.keep_logits)
        return self._with_fitness(scores, self.ood_scores(variants, part), batches, {})

    def ood_scores(self, variants: Sequence[Variant], part: str) -> list[Score | None]:
        """Scores on a part of the out-of-distribution images (a field of [`OODImages`]); `None` if they are not needed."""
        if self.ood is None:
            return [None] * len(variants)
        return list(self.evaluator.score(variants, getattr(self.ood, part), keep_logits=True))

    def _with_fitness(
        self,
        scores: Sequence[Score],
        ood: Sequence[Score | None],
        batches: ImageBatches,
        known: dict[int, float],
    ) -> list[tuple[Score, float]]:
        """Scores with their fitness, the same on every process: each computes a share that is not `known` to it."""
        for score, other in zip(scores, ood):
            score.ood = other
        labels = batches.labels

        def value(number: int) -> float:
            if number in known:
                return known[number]
            return self.fitness(scores[number], labels[: scores[number].num_images])

        return list(zip(scores, self.evaluator.processes.map(len(scores), value)))

    def _warn_of_failures(self, scored: Sequence[ScoredChild]) -> None:
        """Warns once of children whose fitness is not finite."""
        failed = [each.child for each in scored if not np.isfinite(each.fitness)]
        if failed and not self._warned_of_failures:
            self._warned_of_failures = True
            logger.warning(
                f"{len(failed)} of {len(scored)} children have scores that are not finite (the first is child "
                f"{failed[0].index} of generation {failed[0].generation}). They cannot be selected. A smaller sigma avoids this."
            )


def check_parent(finite: bool) -> None:
    """Raises [`SMDError`] if the parent's logits are not finite."""
    if not finite:
        raise SMDError(
            "The parent's logits are not finite (NaN or infinity) on this data, so no child can be compared with it. Check "
            "that the checkpoint loaded fully and fits its image processor, and load it in float32 if it is in float16."
        )
