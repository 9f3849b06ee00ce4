"""What generations cost, before they are run: in images and passes, the same on every machine, and roughly in seconds."""

import time
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.reading import seconds_in_the_way
from ..models.blocks import find_blocks
from ..scoring.costs import suffix_costs
from ..scoring.racing import rounds
from ..search.evolution import PARENT, Evolution
from ..search.mutation import Child
from ..search.sigma import PROBES
from .run_images import RunImages
from .state import RunState


@dataclass(frozen=True)
class Cost:
    """
    What something costs.

    Args:
        images (`int`): number of images that variants are scored on.
        passes (`float`): the same in passes of the whole model over all fitness images.
    """

    images: int = 0
    passes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.images + other.images, self.passes + other.passes)


@dataclass(eq=False)
class CostModel:
    """
    The costs of a run's generations.

    A child whose pass begins at a later block counts by the operations from there on. The report counts it by the time
    instead. Operations give the same estimate on every machine. Candidates count as whole passes, as many as there can be.

    Args:
        evolution ([`Evolution`]): before its first generation.
    """

    evolution: Evolution
    images: RunImages
    args: EvolutionArguments
    _behind: list[Cost] = field(default_factory=list, init=False)

    def ahead(self, generation: int) -> Cost:
        """The most that a generation can cost."""
        children = self.children(generation)
        shares = self._shares(children)
        images = self.images.per_generation
        if self.evolution.survivors:
            # Which children survive is not known: assume the most expensive ones.
            shares = sorted(shares, reverse=True)
            seen = self.seen_in_race(len(children))
        else:
            seen = [images] * len(children)
        refit = 0
        if self.args.refit_head and generation == self.args.num_generations - 1:
            selection = self.images.selection
            refit = self.images.fitness.num_images + (0 if selection is None else selection.num_images)
        return self._cost(images, seen, shares, self.candidates(generation, len(children)), refit)

    def candidates(self, generation: int, num_children: int) -> int:
        """The most candidates that a generation can score on the selection split, with its parent."""
        children = self.evolution.recombination.most_candidates(num_children)
        return children + (self.evolution.elitism and self._scores_parent(generation))

    def behind(self, record: dict[str, Any]) -> Cost:
        """What a generation has cost, from its [`Generation.record`]."""
        shares = self._shares(self.children(record["generation"]))
        seen = [child["num_images"] for child in record["children"]]
        candidates = len(record["selection"])
        if self.evolution.elitism and not self._scores_parent(record["generation"]):
            candidates -= 1
        return self._cost(record["parent"]["num_images"], seen, shares, candidates)

    def calibration(self, run: RunState) -> Cost:
        """What the calibration of sigma has cost."""
        if run.calibration is None:
            return Cost()
        total = self.images.fitness.num_images
        variants = 1 + min(PROBES, self.args.population_size)
        images = len(run.calibration.curve) * variants * min(self.args.calibration_samples, total)
        return Cost(images, images / total)

    def spent(self, run: RunState) -> Cost:
        """What a run has cost so far."""
        self._behind += map(self.behind, run.generations[len(self._behind) :])
        return sum(self._behind, self.calibration(run))

    def _cost(self, parent: int, seen: list[int], shares: list[float], candidates: int, refit: int = 0) -> Cost:
        ood = self.evolution.ood
        ood_fitness, ood_selection = (0, 0) if ood is None else (ood.fitness.num_images, ood.selection.num_images)
        parent, seen = parent + ood_fitness, [images + ood_fitness for images in seen]
        selection = candidates * (self.images.per_candidate + ood_selection)
        children = sum(images * share for images, share in zip(seen, shares))
        whole = parent + selection + refit
        return Cost(whole + sum(seen), (whole + children) / self.images.fitness.num_images)

    def _scores_parent(self, generation: int) -> bool:
        """Whether the parent is scored as a candidate: only once, unless the images change."""
        return generation == 0 or (self.images.fresh is not None and self.images.selection is None)

    def seen_in_race(self, num_children: int) -> list[int]:
        """How many images each child sees in a race, the survivors first."""
        images, size, survivors = self.images.per_generation, self.images.fitness.batch_size, self.evolution.survivors
        running, start, seen = num_children, 0, [0] * num_children
        for end in rounds(num_children, -(-images // size), survivors):
            for child in range(running):
                seen[child] += min(end * size, images) - start
            start, running = min(end * size, images), max(survivors, (running + 1) // 2)
        return seen

    def children(self, generation: int) -> list[Child]:
        """The children of a generation. Costs do not depend on their sigma."""
        return self.evolution.mutation.children(generation, 1.0)

    def _shares(self, children: list[Child]) -> list[float]:
        """The share of a whole pass that each child costs."""
        variants = [PARENT, *map(self.evolution.variant, children)]
        if not self.evolution.evaluator.replays(variants) or not self._replayable:
            return [1.0] * len(children)
        return [max(self._cost_from[name] for name in variant.changed or ()) for variant in variants[1:]]

    @cached_property
    def _replayable(self) -> bool:
        return self.evolution.evaluator.runtime.can_replay()

    @cached_property
    def _cost_from(self) -> dict[str, float]:
        """The share of a pass that begins at each parameter's block."""
        model = self.evolution.model
        [batch] = self.images.fitness.head(1)
        costs = suffix_costs(model, self.evolution.evaluator.inputs(batch))
        return {name: cost for block, cost in zip(find_blocks(model), costs) for name in block.parameter_names}

    def estimate(self, numbers: range) -> str:
        """What some generations will cost and how long they will take, in one line. Reads and scores one batch to see."""
        args, fitness, per_generation = self.args, self.images.fitness, self.images.per_generation
        cost, total = sum(map(self.ahead, numbers), Cost()), fitness.num_images
        size, read, forward = self._time_batch()
        share = 1 / size / args.world_size
        seconds = cost.passes * total * forward * share
        # Images that fit into memory are read once, others in each generation, while the batches before are scored.
        laps = len(numbers) if self.images.fresh is not None or not args.image_cache_gb else 1
        reading = read * per_generation * share
        working = seconds / max(1, len(numbers))
        threads = args.dataloader_num_workers or fitness.threads
        seconds += laps * seconds_in_the_way(reading, read, working, threads, args.device)
        return (
            f"Ahead: {len(numbers)} generation{'s' * (len(numbers) != 1)} of {args.population_size} children, at most "
            f"{cost.images:,} images or {cost.passes:,.1f} passes of the model over the {total:,} fitness images, about "
            f"{timedelta(seconds=round(seconds))} (h:mm:ss; estimated from one batch of {size}, which took {read:.2g} s to read and "
            f"{forward:.2g} s to score)."
        )

    def _time_batch(self) -> tuple[int, float, float]:
        """The size of the first batch, and the seconds to read it and to score it."""
        fitness, evaluator = self.images.fitness, self.evolution.evaluator
        rows = np.array(fitness.indices[: fitness.batch_size])
        start = time.perf_counter()
        [batch] = self.images.of_training(rows)  # none that is in memory already
        read = time.perf_counter() - start
        self.evolution.model.eval()
        for _ in range(2):  # the first pass over a shape takes longer
            start = time.perf_counter()
            evaluator.forward(evaluator.inputs(batch)).cpu()
        return len(batch), read, time.perf_counter() - start
