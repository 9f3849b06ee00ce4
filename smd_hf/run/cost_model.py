"""What generations cost, before they are run: counted, so that it is the same on every machine, and in seconds, about."""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..data.batches import ImageBatches
from ..data.reading import seconds_in_the_way
from ..models.blocks import find_blocks
from ..scoring.costs import suffix_costs
from ..scoring.prefix_replay import PrefixReplay
from ..scoring.racing import rounds
from ..search.evolution import PARENT, PROBES, Evolution
from ..search.mutation import Child

if TYPE_CHECKING:
    from ..trainer import EvolutionTrainer


@dataclass(frozen=True)
class Cost:
    """
    What something costs.

    Args:
        images (`int`): that variants are scored on.
        passes (`float`): of the whole model over all fitness images.
    """

    images: int = 0
    passes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.images + other.images, self.passes + other.passes)


class Foresight:
    """
    The costs of a run's generations.

    A child whose pass begins at a later block counts by the operations from there on, so not by time, as in the report:
    the same run is foreseen alike on every machine. Candidates count as whole passes, as many as there can be.

    Args:
        trainer ([`EvolutionTrainer`]): before its first generation.
        evolution ([`Evolution`]): likewise.
    """

    def __init__(self, trainer: "EvolutionTrainer", evolution: Evolution):
        self.trainer = trainer
        self.evolution = evolution

    def ahead(self, generation: int) -> Cost:
        """A generation that is still to be run, at the most."""
        children = self.children(generation)
        shares = self._shares(children)
        images = self.trainer.images_per_generation
        if self.evolution.survivors:
            # Who comes through is not known: the costliest, at the most.
            shares = sorted(shares, reverse=True)
            seen = self.seen_in_race(len(children), images)
        else:
            seen = [images] * len(children)
        return self._cost(images, seen, shares, self.candidates(generation, len(children)))

    def candidates(self, generation: int, num_children: int) -> int:
        """How many candidates a generation scores on the selection split, at the most, its parent among them."""
        children = self.evolution.recombination.most_candidates(num_children)
        return children + (self.trainer.args.elitism and self._scores_parent(generation))

    def behind(self, record: dict[str, Any]) -> Cost:
        """A generation that was run, from its [`Generation.record`]."""
        shares = self._shares(self.children(record["generation"]))
        seen = [child["num_images"] for child in record["children"]]
        candidates = len(record["selection"])
        if self.trainer.args.elitism and not self._scores_parent(record["generation"]):
            candidates -= 1
        return self._cost(record["parent"]["num_images"], seen, shares, candidates)

    def calibration(self) -> Cost:
        """What the search for sigma has cost."""
        found = self.trainer.run.calibration
        if found is None:
            return Cost()
        args, total = self.trainer.args, self.trainer.fitness_batches.num_images
        variants = 1 + min(PROBES, args.population_size)
        images = len(found.curve) * variants * min(args.calibration_samples, total)
        return Cost(images, images / total)

    def _cost(self, parent: int, seen: list[int], shares: list[float], candidates: int) -> Cost:
        others = self.evolution.ood
        others_fitness, others_selection = (
            (0, 0) if others is None else (others.fitness.num_images, others.selection.num_images)
        )
        parent, seen = parent + others_fitness, [images + others_fitness for images in seen]
        selection = candidates * (self.selection_images + others_selection)
        children = sum(images * share for images, share in zip(seen, shares))
        total = self.trainer.fitness_batches.num_images
        return Cost(parent + sum(seen) + selection, (parent + children + selection) / total)

    @property
    def selection_images(self) -> int:
        """How many images each candidate is scored on."""
        chosen_on = self.trainer.selection_batches
        return self.trainer.images_per_generation if chosen_on is None else chosen_on.num_images

    def _scores_parent(self, generation: int) -> bool:
        """Whether the parent is scored as a candidate: later on it has been, unless the images are others each time."""
        trainer = self.trainer
        return generation == 0 or (trainer.fresh_samples is not None and trainer.selection_batches is None)

    def seen_in_race(self, num_children: int, images: int) -> list[int]:
        """How many images each child sees, those first that come furthest."""
        size, survivors = self.trainer.args.eval_batch_size, self.evolution.survivors
        running, start, seen = num_children, 0, [0] * num_children
        for end in rounds(num_children, -(-images // size), survivors):
            for child in range(running):
                seen[child] += min(end * size, images) - start
            start, running = min(end * size, images), max(survivors, (running + 1) // 2)
        return seen

    def children(self, generation: int) -> list[Child]:
        """Of a generation still to come, of any sigma."""
        return self.evolution.mutation.children(generation, 1.0)

    def _shares(self, children: list[Child]) -> list[float]:
        """The share of a whole pass that each child costs."""
        variants = [PARENT, *map(self.evolution.variant, children)]
        if not self.evolution.evaluator.replays(variants) or not self._replayable:
            return [1.0] * len(children)
        return [max(self._cost_from[name] for name in variant.changed) for variant in variants[1:]]

    @cached_property
    def _replayable(self) -> bool:
        return PrefixReplay(self.trainer.model).supported[0]

    @cached_property
    def _cost_from(self) -> dict[str, float]:
        """The share of a pass that begins at each parameter's block."""
        trainer = self.trainer
        [batch] = trainer.fitness_batches.head(1)
        costs = suffix_costs(trainer.model, trainer.evaluator.inputs(batch))
        blocks = find_blocks(trainer.model)
        return {name: cost for block, cost in zip(blocks, costs) for name in block.parameter_names}


def estimate(foresight: Foresight, test_seconds: float) -> str:
    """
    What the generations still to come will take, in one line.

    Args:
        foresight ([`Foresight`]): of the run.
        test_seconds (`float`): what the parent took on the test images; the evolved model will, too.
    """
    trainer, evolution = foresight.trainer, foresight.evolution
    args, total = trainer.args, trainer.fitness_batches.num_images
    numbers = range(trainer.state.global_step, args.num_generations)
    cost = sum((foresight.ahead(number) for number in numbers), Cost())
    size, read, forward, make = measured(trainer, evolution)
    per_image = forward / size / args.world_size
    seconds = cost.passes * total * per_image + len(numbers) * args.population_size * make
    # What fits into memory is read once; all is read while the batches before are scored.
    laps = len(numbers) if trainer.fresh_samples is not None or not args.image_cache_gb else 1
    reading = read / size / args.world_size * trainer.images_per_generation
    threads = args.dataloader_num_workers or trainer.fitness_batches.threads
    seconds += laps * seconds_in_the_way(reading, read, seconds / max(1, len(numbers)), threads, args.device)
    if args.ensemble_size:
        seconds += args.population_size * foresight.selection_images * per_image
    seconds += test_seconds * (1 + args.save_children + args.ensemble_size)
    return (
        f"Ahead: {len(numbers)} generation{'s' * (len(numbers) != 1)} of {args.population_size} children, at most "
        f"{cost.images:,} images or {cost.passes:,.1f} passes of the model over the {total:,} fitness images, about "
        f"{duration(seconds)} (judged by one batch of {size}, which took {read:.2g} s to read and {forward:.2g} s to score)."
    )


def measured(trainer: "EvolutionTrainer", evolution: Evolution) -> tuple[int, float, float, float]:
    """The size of the first batch; seconds to read it, to score it, and to make one child."""
    batches, evaluator = trainer.fitness_batches, trainer.evaluator
    first = batches.indices[: batches.batch_size]
    # Not one that is in memory already, and by this thread alone.
    sample = ImageBatches(
        batches.dataset,
        batches.collator,
        batches.batch_size,
        first,
        codec=batches.codec,
        input_names=batches.input_names,
        threads=0,
    )
    start = time.perf_counter()
    [batch] = sample
    read = time.perf_counter() - start
    trainer.model.eval()
    for _ in range(2):  # the first pass over a shape takes longer
        start = time.perf_counter()
        evaluator.forward(evaluator.inputs(batch)).cpu()
    forward = time.perf_counter() - start
    children = evolution.mutation.children(trainer.state.global_step, 1.0)
    start = time.perf_counter()
    for _ in evolution.mutation.changes(children[len(children) // 2]):
        pass
    return len(batch), read, forward, time.perf_counter() - start


def duration(seconds: float) -> str:
    """Seconds for people: `40 s`, `3 min 20 s`, `2 h 5 min`."""
    seconds = max(1, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
