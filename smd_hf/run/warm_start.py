"""
What comes before the first generation and after the last: BatchNorm statistics and the best head that one pass gives.

Class prior, temperature and head are fitted on the features of the fitness images, and the selection images choose one of
them, or the model as it is. Where there are few images, cross-validation on the fitness images chooses. With `warm_start` the
generations start from there; with `refit_head` they are followed by it. The ledger keeps what was found, for a run that goes on.

A head knows the images that it was fitted on by heart, and children that are scored on the same images with it learn little. So
where the head is fitted at the end, the generations start from the class prior or a temperature at most.

The evolved model in turn knows the fitness images. Where cross-validation on them has chosen before the generations, it cannot
do so again: the head is then fitted with the strength that it chose, if it found that a head is best.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.batches import ImageBatches
from ..errors import SMDError
from ..models.checkpoints import weights_hash
from ..models.linear_head import HeadInputs
from ..models.pixel_head import PixelHeadInputs
from ..models.query_head import QueryHeadInputs
from ..scoring.bars import ScoringBar, TickingBar
from ..scoring.evaluator import Evaluator, Variant
from ..scoring.reading import Reading
from ..scoring.scores import Score
from ..search.build import loss_of
from ..search.evolution import Evolution
from ..search.fitness_scorer import check_parent
from ..search.head.baselines import HEAD, NUM_FOLDS, PARENT, Baseline, Folds, Part, baselines, best_of, measured_on
from ..search.head.features import features_of
from ..search.head.fit import HeadFits
from ..search.head.linear import LinearHead
from ..search.head.pixels import pixel_baselines
from ..search.head.queries import query_baselines
from ..search.image_slopes import image_slopes, slopes_of_logits
from ..search.information import Guard
from ..search.losses import Loss
from .found_step import FoundStep, best_line, kept_of, kept_or_found, kept_score
from .journal import Journal
from .run_images import RunImages
from .statistics_step import estimate_statistics

logger = logging.get_logger(__name__)

FILE_NAME = "warm_start.safetensors"

LAST_FILE_NAME = "refit_head.safetensors"

Fits = Callable[[Part, Part | None], list[Baseline]]
"""Fits heads on the fitness images and measures them on the selection images, if there are any."""

Choose = Callable[[list[Baseline]], Baseline]
"""Takes one of the heads."""

HOLD_OUT = 5
"""Without selection images, every so many of the fitness images choose among the heads."""

MOST_CROSSED = 2000
"""Up to so many fitness images, heads of images are chosen by cross-validation: a tenth of them would choose by chance."""


@dataclass(eq=False)
class WarmStart:
    """
    Re-estimates BatchNorm statistics and fits the head before the first generation, and the head after the last one, on all
    processes, as the arguments want it.

    Args:
        evolution ([`Evolution`]): its model holds the parent.
        images ([`RunImages`]): heads are fitted on all fitness images, whatever sample of them the generations see. The test images,
            if there are any, choose nothing: heads are reported on them.
        journal ([`Journal`]): open. It says where the run keeps its files, what it is, and whether it goes on.
        compute_loss_func (`Callable`, *optional*): as of [`EvolutionTrainer`]: what the fits lower, in place of `args.loss`.
    """

    args: EvolutionArguments
    evolution: Evolution
    images: RunImages
    journal: Journal
    shown: bool
    compute_loss_func: Callable | None = None
    last: FoundStep | None = field(default=None, init=False)
    _head: HeadInputs | None = field(default=None, init=False)
    _best_crossed: str | None = field(default=None, init=False)

    def before(self) -> tuple[FoundStep | None, FoundStep | None]:
        """
        The steps before the first generation. The best statistics and the best head are put into the model.

        Returns:
            `tuple` of two [`FoundStep`] or `None`: statistics and head. `None` if there is no such step, or, with a warning, if the
            logits are not the output of one linear layer.
        """
        statistics = estimate_statistics(self.args, self.evolution, self.images, self.journal, self.shown)
        found = statistics, self._first_head()
        if not self.journal.run.generations:
            for step in found:
                if step is not None:
                    self.journal.run.add_before(step.images, step.seconds)
        if self.images.needs_slopes:
            self._draw_by_importance(None if found[1] is None else found[1].slopes)
        if self.args.unlabeled:
            # Candidates are held to what the model predicts now.
            with self.evolution.evaluator.aside():
                logits = self.evolution.evaluator.logits(self.evolution.selection_batches)
            self.evolution.guard = Guard(logits.argmax(-1))
        return found

    def _draw_by_importance(self, slopes: np.ndarray | None) -> None:
        """Draws the images of each generation by their slopes, which take a pass if no head was fitted."""
        run, fitness, began = self.journal.run, self.images.fitness, time.monotonic()
        if slopes is None:
            with ScoringBar("Which images have a steep loss", self.shown) as bar:
                slopes = image_slopes(self.evolution, fitness, bar)
            if not run.generations:
                run.add_before(fitness.num_images, time.monotonic() - began)
        self.images.draw_by_importance(slopes)
        self._tell(
            "Each generation sees more of the images on which the loss is steep. Weights make up for it in steps and in the nll; other "
            "metrics of a generation are those of the images as drawn."
        )

    def _first_head(self) -> FoundStep | None:
        args, evolution, journal = self.args, self.evolution, self.journal
        if not (args.warm_start or args.refit_head):
            return None
        evaluator = evolution.evaluator
        evaluator.model.eval()
        make_head = head_inputs_of(evaluator.reading)
        if make_head is None:
            return None
        try:
            inputs: Any = evaluator.inputs(self.images.fitness.first_batch())
            self._head = head = make_head(evaluator.model, inputs)
        except SMDError as error:
            self._tell(str(error))
            return None
        fits = self._fits(head)
        choose = _best_start if args.refit_head else best_of
        found = self._step(head, FILE_NAME, journal.identity, fits, choose, self.images.needs_slopes)
        self._put(head, found)
        self._best_crossed = found.best_crossed
        how = "in cross-validation" if found.crossed else ""
        self._tell(f"Warm start: {best_line(found, evolution.fitness, 'parent', how)}")
        return found

    def after(self) -> FoundStep | None:
        """The step after the last generation. [`WarmStart.put_last`] puts its head into the model."""
        if not self.args.refit_head or self._head is None:
            return None
        best = self._best_crossed
        if best is not None and not best.startswith(HEAD):
            self._tell(
                f"Head after the last generation: it stays, as {best} was better than all heads in cross-validation."
            )
            return None
        # It depends on the weights that the generations have left, of which the run's identity says nothing.
        identity = {**self.journal.identity, "weights": weights_hash(self.evolution.evaluator.model)}
        if best is None:
            fits, choose, how = self._fits(self._head), best_of, ""
        else:
            # It is taken, whatever a few selection images say.
            fits, choose = self._again(self._head, best), itemgetter(-1)
            how = "by cross-validation before the generations"
        self.last = found = self._step(self._head, LAST_FILE_NAME, identity, fits, choose)
        self._tell(f"Head after the last generation: {best_line(found, self.evolution.fitness, 'evolved model', how)}")
        # The run's own clock has counted the seconds.
        self.journal.run.add_before(found.images, 0.0)
        return found

    def put_last(self) -> None:
        """Puts the head that was found after the last generation into the model."""
        if self._head is not None and self.last is not None:
            self._put(self._head, self.last)

    def _put(self, head: HeadInputs, found: FoundStep) -> None:
        """Puts a head into the model, if a baseline was chosen."""
        if found.chosen != PARENT:
            head.write(found.arrays["weight"], found.arrays.get("bias"))
            self.evolution.mutation.parent_changed()

    def _step(
        self,
        head: HeadInputs,
        file_name: str,
        identity: Mapping[str, Any],
        fits: Fits,
        choose: Choose,
        weighs: bool = False,
    ) -> FoundStep:
        """What the ledger keeps of a step, or what is found now; with `weighs`, also the slopes of the images."""
        self.evolution.evaluator.model.eval()
        return kept_or_found(
            self.journal,
            file_name,
            identity,
            lambda: _find(self.evolution, fits, choose, self.images, head, self.shown, weighs),
        )

    def _fits(self, head: HeadInputs) -> Fits:
        """What fits heads on features and labels of the fitness images, and measures them on those of the selection images."""
        args, evolution = self.args, self.evolution
        start = LinearHead(*head.numbers())
        reading: Any = evolution.evaluator.reading
        if isinstance(head, PixelHeadInputs):
            balances = reading.balances(evolution.fitness.name)
            return lambda learn, choose: pixel_baselines(
                start,
                *_held_out(learn, choose),
                reading,
                evolution.fitness,
                balances,
                args.label_smoothing_factor,
            )
        if isinstance(head, QueryHeadInputs):
            return lambda learn, choose: query_baselines(
                start, *_held_out(learn, choose), reading, reading.set_loss, evolution.fitness
            )
        loss = self._loss()
        named = _named(self.images.fitness) if reading.keeps_labels else np.arange(len(start.weight))

        def fitted(learn: Part, choose: Part | None) -> list[Baseline]:
            folds = None
            if NUM_FOLDS <= len(learn[1]) <= MOST_CROSSED:
                folds = Folds.of(start, learn, loss, reading, evolution.fitness)
            else:
                learn, choose = _held_out(learn, choose)
            fitness = None if choose is None else measured_on(choose, reading, evolution.fitness)
            return baselines(HeadFits(start, *learn, loss), fitness, named, folds)

        return fitted

    def _again(self, head: HeadInputs, best: str) -> Fits:
        """What fits the head of the evolved model with the strength that cross-validation chose before the generations."""
        start = LinearHead(*head.numbers())

        def fitted(learn: Part, choose: Part | None) -> list[Baseline]:
            fitness = measured_on(choose or learn, self.evolution.evaluator.reading, self.evolution.fitness)
            found = HeadFits(start, *learn, self._loss()).head(float(best.removeprefix(HEAD)))
            return [Baseline(PARENT, start, fitness(start)), Baseline(best, found, fitness(found))]

        return fitted

    def _loss(self) -> Loss:
        """What the fits of a classifier's head lower."""
        reading: Any = self.evolution.evaluator.reading
        if reading.keeps_labels:
            num_labels = self.evolution.evaluator.model.config.num_labels or 0
            return loss_of(self.args, num_labels, self.compute_loss_func)
        return reading.head_loss(self.args)

    def _tell(self, line: str) -> None:
        if self.evolution.evaluator.processes.process_index == 0:
            logger.warning(line)


def head_inputs_of(reading: Reading) -> type[HeadInputs] | None:
    """How the head of a task's models is found; `None` for a task whose models have none to fit."""
    return getattr(reading, "head_inputs", HeadInputs if reading.keeps_labels else None)


def _find(
    evolution: Evolution,
    fits: Fits,
    choose: Choose,
    images: RunImages,
    head: HeadInputs,
    shown: bool,
    weighs: bool = False,
) -> FoundStep:
    evaluator, began = evolution.evaluator, time.monotonic()
    sets = [batches for batches in (images.fitness, images.selection) if batches is not None]
    with ScoringBar("Features for the head", shown) as bar:
        parts = [features_of(evaluator, head, batches, bar) for batches in sets]
        check_parent(all(np.isfinite(features).all() for features, _ in parts))
        fitness_set, selection_set = parts if len(parts) == 2 else (*parts, None)

    def fit() -> list[Baseline] | None:
        # One machine solves it: another one may come to other last bits.
        if evaluator.processes.process_index:
            return None
        return fits(fitness_set, selection_set)

    with TickingBar("Fitting the head", shown):
        [found, *_] = evaluator.processes.gather(fit)
    assert found is not None
    best = choose(found)
    result = FoundStep(
        best.name,
        best.head.arrays,
        {each.name: each.fitness for each in found},
        sum(batches.num_images for batches in sets),
        seconds=time.monotonic() - began,
        crossed={each.name: each.crossed for each in found if each.crossed is not None},
    )
    if weighs:
        features, labels = fitness_set
        result.slopes = slopes_of_logits(evolution, best.head.logits(features), labels)
    if images.test is not None:
        with ScoringBar("Testing the heads", shown) as bar:
            tested = _shown(found, best, passes=not evaluator.reading.keeps_labels)
            if evaluator.reading.keeps_labels:
                features, _ = features_of(evaluator, head, images.test, bar)
                result.test = {each.name: kept_score(each.head.logits(features)) for each in tested}
            else:
                result.test = _test(evaluator, head, tested, images.test, bar)
    return result


def _best_start(found: list[Baseline]) -> Baseline:
    """The best for the generations to start from, where the head is fitted after them."""
    return best_of([each for each in found if not each.name.startswith(HEAD)])


def _test(
    evaluator: Evaluator, head: HeadInputs, heads: Sequence[Baseline], batches: ImageBatches, shown: ScoringBar
) -> dict[str, Score]:
    """The scores of the model with each of these heads, by passes of the model."""
    keeps = evaluator.reading.keeps_predictions
    changed = frozenset(head.parameter_names)
    variants = [Variant(each.name, lambda each=each: head.changes(each.head.arrays), changed) for each in heads]
    with evaluator.aside():
        evaluator.work = shown
        scores = evaluator.score(variants, batches, keep_logits=keeps)
    return {each.name: kept_of(score, evaluator.reading) for each, score in zip(heads, scores)}


def _named(batches: ImageBatches) -> np.ndarray | None:
    """The classes that the data set names, whether or not they have an image here; `None` where labels are classes."""
    mapping = getattr(batches.collator, "mapping", None)
    return None if mapping is None else np.unique(mapping[mapping >= 0])


def _shown(found: Sequence[Baseline], best: Baseline, passes: bool) -> list[Baseline]:
    """The best baseline of each kind, and the chosen one. Where each takes a pass (`passes`), temperatures are left out."""
    kinds = dict.fromkeys(each.name.split(",")[0] for each in found if not (passes and "temperature" in each.name))
    chosen = {each.name: each for each in (*(best_of(list(found), kind) for kind in kinds), best)}
    return list(chosen.values())


def _held_out(learn: Part, choose: Part | None) -> tuple[Part, Part]:
    """These images, and those that choose: a part of them, if there are no others."""
    if choose is not None:
        return learn, choose
    features, labels = learn
    chooses = np.arange(len(labels)) % HOLD_OUT == HOLD_OUT - 1
    return (features[~chooses], labels[~chooses]), (features[chooses], labels[chooses])
