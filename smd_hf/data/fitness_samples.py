"""Which images score children: the fitness and selection splits, and fresh samples for each generation."""

import numpy as np

from ..errors import SMDError
from ..keyed_random import keyed_generator
from .labels import stratified_order, stratified_split

FLAT_SHARE = 0.1
"""What is added to each image's slope before images are drawn by it, in units of the mean slope."""


def split_indices(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Splits images into fitness and selection, disjoint and stratified; every prefix of the fitness images is balanced.

    Args:
        labels (`numpy.ndarray`): of shape `(n,)`.
        fraction (`float`): share of the images for selection, in [0, 1).

    Returns:
        `tuple[numpy.ndarray, numpy.ndarray]`: rows for fitness and for selection, int64; none of the latter where `fraction`
        is 0.
    """
    fitness, selection = stratified_split(labels, fraction, seed)
    if not len(fitness) or (fraction > 0 and not len(selection)):
        raise SMDError(
            f"selection_fraction={fraction} of {len(labels)} training images leaves {len(fitness)} for fitness and "
            f"{len(selection)} for selection. Both need at least one: give more images, or set it to 0."
        )
    return fitness[stratified_order(labels[fitness], seed)], selection


class FreshSamples:
    """
    A sample of the fitness images for each generation; no image comes again before all have been used.

    Samples are taken in turn from a random order that is balanced over the classes;
    the remainder is left for the next order. A generation's sample depends only on seed and generation.

    Args:
        indices (`numpy.ndarray`): the rows of all fitness images, of shape `(n,)`.
        labels (`numpy.ndarray`): their labels, of shape `(n,)`.
        size (`int`): images a generation; all of them where there are fewer.
    """

    def __init__(self, indices: np.ndarray, labels: np.ndarray, size: int, seed: int):
        self.all = indices
        self.labels = labels
        self.size = min(size, len(indices))
        self.seed = seed

    def indices(self, generation: int) -> np.ndarray:
        """The rows of one generation, int64, of shape `(size,)`."""
        return self.sample(generation)[0]

    def sample(self, generation: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The rows, in an order whose every prefix is balanced, and how much each image counts; `None` if all count the same."""
        lap, place = divmod(generation, len(self.all) // self.size)
        key = int(keyed_generator("fitness samples", self.seed, lap).integers(2**63))
        order = stratified_order(self.labels, key)
        return self.all[order[place * self.size : (place + 1) * self.size]], None

    def by_importance(self, slopes: np.ndarray) -> "ImportanceSamples":
        """Samples of the same images and size, drawn by importance."""
        return ImportanceSamples(self.all, self.labels, self.size, self.seed, slopes)


class ImportanceSamples(FreshSamples):
    """
    Samples that hold an image the more often, the steeper its loss is.

    Gradient and curvature of the loss are sums over images, and an image that the parent is sure and right about adds next to nothing
    to either. Drawn with probability pi_i and weighted by 1 / pi_i (Horvitz and Thompson 1952), a sample gives the same sums
    on average; they vary least if pi_i follows the size of the image's own part. The gradient with respect to the logits stands for
    that (Katharopoulos and Fleuret 2018, arXiv 1803.00942). Images are drawn by systematic sampling in an order by class, without
    replacement within a generation.

    Args:
        slopes (`numpy.ndarray`): the norm of each image's gradient with respect to the logits, of shape `(n,)`.
    """

    def __init__(self, indices: np.ndarray, labels: np.ndarray, size: int, seed: int, slopes: np.ndarray):
        super().__init__(indices, labels, size, seed)
        self.chances = inclusion_chances(slopes, self.size)

    def sample(self, generation: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows, and how much each image counts: n / (N pi_i), whose mean over samples is one; float64, of shape `(size,)`."""
        generator = keyed_generator("important samples", self.seed, generation)
        by_class = np.lexsort((generator.random(len(self.all)), self.labels))
        ends = np.cumsum(self.chances[by_class])
        ends *= self.size / ends[-1]
        # An image that is taken for certain is met by exactly one point; rounding may make that two.
        places = np.searchsorted(ends, generator.random() + np.arange(self.size), side="right")
        drawn = by_class[np.unique(np.minimum(places, len(ends) - 1))]
        drawn = drawn[np.argsort(generator.random(len(drawn)), kind="stable")]
        return self.all[drawn], self.size / (len(self.all) * self.chances[drawn])


def inclusion_chances(slopes: np.ndarray, size: int) -> np.ndarray:
    """
    The probabilities with which images are drawn, in proportion to their slopes as far as none exceeds one.

    `FLAT_SHARE` of the mean slope is added to each: an image that has next to no slope now may have one later.

    Args:
        slopes (`numpy.ndarray`): 0 or more, of shape `(n,)`.
        size (`int`): how many images are drawn, at most n. The probabilities add up to it.

    Returns:
        `numpy.ndarray`: float64, in (0, 1], of shape `(n,)`.
    """
    mean = slopes.mean()
    sought = slopes / mean + FLAT_SHARE if mean > 0 and np.isfinite(mean) else np.ones(len(slopes))
    certain = np.zeros(len(slopes), dtype=bool)
    while True:
        # Those above one are taken for certain, and the others share what is left.
        chances = np.where(certain, 1.0, 0.0)
        if not certain.all():
            chances[~certain] = sought[~certain] * ((size - certain.sum()) / sought[~certain].sum())
        above = chances > 1
        if not above.any():
            return chances
        certain |= above
