"""Which images score children: the fitness and selection splits, and fresh samples for each generation."""

import numpy as np

from ..errors import SMDError
from ..keyed_random import keyed_generator
from .labels import stratified_order, stratified_split


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
        """The rows of one generation, int64, of shape `(size,)`, in an order whose every prefix is balanced."""
        lap, place = divmod(generation, len(self.all) // self.size)
        key = int(keyed_generator("fitness samples", self.seed, lap).integers(2**63))
        order = stratified_order(self.labels, key)
        return self.all[order[place * self.size : (place + 1) * self.size]]
