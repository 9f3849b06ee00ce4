"""
Images from another distribution: how well a model's confidence tells them from those it knows.

A second data set, whose labels are of no meaning, goes through the model as the first does. The score of an image is its
largest probability (Hendrycks and Gimpel 2017) or the log of the sum of exponentials of its logits, which is its negative
energy at temperature 1 (Liu et al. 2020); both should be greater for images of the known distribution. The measure is the
area under the ROC curve (AUROC), the probability that they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score

from .data.rows import ImageCollator, find_image_column
from .errors import SMDError
from .evaluation.images import ImageBatches
from .evaluation.scores import Score
from .keys import keyed_generator
from .statistics import largest_log_prob, row_blocks


def max_softmax(logits: np.ndarray) -> np.ndarray:
    """The log of the largest probability, float64, of shape `(n,)`: in the order of the probabilities, but never rounded to 1."""
    return largest_log_prob(logits)


def negative_energy(logits: np.ndarray) -> np.ndarray:
    """The log of the sum of exponentials of logits of shape `(n, num_labels)`, float64, of shape `(n,)`."""
    parts = [logsumexp(logits[rows].astype(np.float64), axis=-1) for rows in row_blocks(*logits.shape)]
    return np.concatenate([np.empty(0), *parts])


OOD_METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ood_auroc": max_softmax,
    "ood_energy_auroc": negative_energy,
}
"""Names of the measures, greater is better, and the score of an image that each goes by."""


def auroc(name: str, inside: np.ndarray, outside: np.ndarray) -> float:
    """
    The probability that an image of the known distribution has the greater score; equal scores count half.

    Args:
        name (`str`): one of `OOD_METRICS`.
        inside, outside (`numpy.ndarray`): logits of shapes `(n, num_labels)` and `(m, num_labels)`, all finite.
    """
    score = OOD_METRICS[name]
    known = np.repeat([1, 0], [len(inside), len(outside)])
    return float(roc_auc_score(known, np.concatenate([score(inside), score(outside)])))


def auroc_of(name: str, score: Score) -> float:
    """The same of a variant that was scored on both data sets, with all its logits."""
    return auroc(name, score.logits, score.outside.logits)


Pair = tuple[np.ndarray, np.ndarray]
"""A model's logits on images of the known and of another distribution."""


def compare_auroc(parent: Pair, evolved: Pair, confidence: float = 0.95) -> dict[str, dict[str, Any] | None]:
    """
    AUROC of two models on the same images, and the difference with its interval (DeLong et al. 1988, as in Sun and Xu 2014).

    Returns:
        `dict`: by name of the measure `parent`, `evolved`, `difference` and `interval`; `None` where a logit is not finite.
    """
    if not all(np.isfinite(logits).all() for logits in (*parent, *evolved)):
        return dict.fromkeys(OOD_METRICS)
    compared: dict[str, dict[str, Any] | None] = {}
    for name, score in OOD_METRICS.items():
        shares = [placements(score(inside), score(outside)) for inside, outside in (parent, evolved)]
        before, after = (auroc(name, *each) for each in (parent, evolved))
        # The variance of a mean over either set of images.
        variance = sum(np.var(b - a, ddof=1) / len(a) for a, b in zip(*shares) if len(a) > 1)
        reach = float(norm.ppf(0.5 + confidence / 2) * np.sqrt(variance))
        difference = after - before
        compared[name] = {
            "parent": before,
            "evolved": after,
            "difference": difference,
            "interval": [difference - reach, difference + reach],
        }
    return compared


def outside_lines(report: Mapping[str, Any] | None) -> list[str]:
    """What the terminal is told of images of another distribution: `images`, and what [`compare_auroc`] gives."""
    if report is None:
        return []
    lines = []
    for name in OOD_METRICS:
        if report[name] is not None:
            entry = report[name]
            low, high = entry["interval"]
            lines.append(
                f"{name} on {report['images']['test']:,} images of another distribution: {entry['parent']:.4f} before, "
                f"{entry['evolved']:.4f} after; difference {entry['difference']:+.4f} ({low:+.4f} to {high:+.4f})."
            )
    return lines


def placements(inside: np.ndarray, outside: np.ndarray) -> Pair:
    """For each image of one set, the share of the other set that is on the right side of it; the mean of either is the AUROC."""
    ranks = rankdata(np.concatenate([inside, outside]))
    among_inside, among_outside = rankdata(inside), rankdata(outside)
    return (
        (ranks[: len(inside)] - among_inside) / len(outside),
        1 - (ranks[len(inside) :] - among_outside) / len(inside),
    )


@dataclass(frozen=True)
class OutsideImages:
    """
    The second data set in three disjoint parts, for the same purposes as those of the first.

    Args:
        fitness, selection, test ([`ImageBatches`]): score children, choose among finished candidates, and are reported on.
            `selection` is `fitness` where the first data set has no selection split.
    """

    fitness: ImageBatches
    selection: ImageBatches
    test: ImageBatches

    @property
    def sizes(self) -> dict[str, int]:
        """How many images each part has; none for selection where the fitness images choose."""
        own = self.selection is not self.fitness
        return {
            "fitness": self.fitness.num_images,
            "selection": self.selection.num_images if own else 0,
            "test": self.test.num_images,
        }


def outside_images(
    dataset: Any, make_batches: Callable[[Any, np.ndarray, float], ImageBatches], selects: bool, seed: int
) -> OutsideImages:
    """
    Deals a data set out into parts of equal size, by a random order that the seed decides.

    Args:
        dataset: of images; map-style.
        make_batches (`Callable`): from data set, rows and share of the cache to batches.
        selects (`bool`): whether there is a selection part; else there are two.
        seed (`int`): decides which image goes where.

    Raises:
        `SMDError`: if there are too few images.
    """
    count = 3 if selects else 2
    if len(dataset) < count:
        raise SMDError(
            f"ood_dataset has {len(dataset)} images, but it is dealt out to {count} parts: for fitness, selection and test. Give "
            f"{count} at the least, and better some hundreds."
        )
    order = keyed_generator("out of distribution", seed).permutation(len(dataset))
    fitness, *selection, test = np.array_split(order, count)
    kept = make_batches(dataset, fitness, 1 / count)
    return OutsideImages(
        kept,
        make_batches(dataset, selection[0], 1 / count) if selection else kept,
        # As those of the first data set: read for the parent, and once more at the end.
        make_batches(dataset, test, 0.0),
    )


def outside_collator(collator: Callable, dataset: Any, image_column_name: str | None) -> tuple[Callable, str | None]:
    """
    What makes batches of a data set without labels, and its image column where it has images.

    Args:
        collator (`Callable`): of the first data set.
        dataset: the second one.
        image_column_name (`str`, *optional*): of the first data set; taken where the second has it.

    Raises:
        `SMDError`: if no column holds images.
    """
    if len(dataset) == 0:
        raise SMDError("ood_dataset is empty. Give images that are not of the model's classes.")
    if not isinstance(collator, ImageCollator):
        return Unlabelled(collator), None
    column = find_image_column(dataset, image_column_name)
    return Unlabelled(replace(collator, image_column=column, label_column=None)), column


@dataclass(frozen=True)
class Unlabelled:
    """
    Batches whose labels, 0 for all, are of no meaning.

    Args:
        collator (`Callable`): rows to the model's inputs.

    Raises:
        `SMDError`: if it makes no tensors of the rows.
    """

    collator: Callable

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        columns = {name: value for name, value in self.collator(rows).items() if name != "labels"}
        return columns | {"labels": torch.zeros(len(rows), dtype=torch.int64)}
