"""
The statistics of BatchNorm layers, re-estimated before the first generation, wholly or in part.

A parent that meets images of another brightness, sensor or style normalises them by the mean and variance of the images that it was
trained on. Those of the new images take one pass and no label. The selection images choose how far to go to them.
"""

import time
from operator import itemgetter

import numpy as np
import torch
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.batches import Batch, ImageBatches
from ..models.norm_statistics import Moments, NormStatistics, mixed, pooled
from ..scoring.bars import ScoringBar
from ..scoring.evaluator import Evaluator, Variant
from ..scoring.one_pass import one_pass
from ..scoring.work import Work
from ..search.evolution import Evolution
from ..search.fitness_scorer import check_parent
from ..search.head.baselines import PARENT, until_worse
from .found_step import FoundStep, best_line, kept_of, kept_or_found
from .journal import Journal
from .run_images import RunImages

logger = logging.get_logger(__name__)

FILE_NAME = "statistics.safetensors"

NAME = "statistics re-estimated"

SHARES = (0.25, 0.5, 0.75, 1.0)
"""How far to go from the parent's statistics to those of the new images, until it gets worse."""

MOST_IMAGES = 1024
"""Images that statistics are estimated on, at most. Four times as many gave no better a model."""


def estimate_statistics(
    args: EvolutionArguments, evolution: Evolution, images: RunImages, journal: Journal, shown: bool
) -> FoundStep | None:
    """
    Finds the best statistics of the model and puts them into it, on all processes.

    Args:
        evolution ([`Evolution`]): its model holds the parent.
        images ([`RunImages`]): statistics are estimated on all fitness images, whatever sample of them the generations see. The
            test images, if there are any, choose nothing: what is chosen is reported on them.
        journal ([`Journal`]): open. It says where the run keeps its files, what it is, and whether it goes on.

    Returns:
        [`FoundStep`] or `None`: `None` without `warm_start`, or if the model has no layer with running statistics.
    """
    evaluator = evolution.evaluator
    statistics = NormStatistics(evaluator.model)
    if not args.warm_start or not statistics.layers:
        return None
    found = kept_or_found(journal, FILE_NAME, journal.identity, lambda: _find(evolution, statistics, images, shown))
    if evaluator.processes.process_index == 0:
        logger.warning(f"BatchNorm: {best_line(found, evolution.fitness, 'parent')}")
    if found.chosen != PARENT:
        statistics.write(found.arrays)
        evolution.mutation.parent_changed()
    return found


def _find(evolution: Evolution, statistics: NormStatistics, images: RunImages, shown: bool) -> FoundStep:
    evaluator, began = evolution.evaluator, time.monotonic()
    selection, sample = images.selection or images.fitness, images.fitness.head(MOST_IMAGES)
    before = statistics.arrays()
    with ScoringBar("Re-estimating BatchNorm statistics", shown) as bar:
        after = _estimated(evaluator, statistics, sample, bar)
    tried = {PARENT: before} | {f"{NAME}, share {share:g}": mixed(before, after, share) for share in SHARES}
    scores = {}

    def fitness_of(name: str) -> float:
        statistics.write(tried[name])
        [(_, found)] = evolution.scorer.score([Variant(name)], selection, "selection")
        return found

    # A compiled graph has the statistics as constants, so that each share would be another graph.
    with evaluator.aside(), evaluator.eagerly():
        try:
            with ScoringBar("Choosing BatchNorm statistics", shown) as evaluator.work:
                fitness = dict(until_worse(((name, fitness_of(name)) for name in tried), itemgetter(1)))
            chosen = max(fitness, key=lambda name: fitness[name])
            if images.test is not None and chosen != PARENT:
                statistics.write(tried[chosen])
                with ScoringBar("Testing BatchNorm statistics", shown) as evaluator.work:
                    scores[chosen] = kept_of(evaluator.score_model(images.test), evaluator.reading)
        finally:
            statistics.write(before)
    return FoundStep(
        chosen,
        {} if chosen == PARENT else tried[chosen],
        fitness,
        sample.num_images + len(fitness) * selection.num_images,
        scores,
        time.monotonic() - began,
    )


def _estimated(
    evaluator: Evaluator, statistics: NormStatistics, batches: ImageBatches, shown: Work
) -> dict[str, np.ndarray]:
    """The statistics of these images, by one pass."""

    def visit(batch: Batch) -> dict[str, list[Moments]]:
        with statistics.by_batch() as seen, torch.inference_mode(), evaluator.autocast():
            evaluator.model(**evaluator.inputs(batch))
        return seen

    after = pooled(one_pass(evaluator, batches, visit, shown))
    check_parent(all(np.isfinite(array).all() for array in after.values()))
    return after
