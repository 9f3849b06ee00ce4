"""
What a pass over the features gives by itself: class prior, temperature and head, of which images choose that the fit has not seen.

These are the selection images. Where there are few of them, chance would choose, and cross-validation on the fitness images does.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

import numpy as np
import torch

from ...scoring.reading import Reading
from ...scoring.scores import Score
from ..losses import Loss
from .fit import HeadFits
from .linear import LinearHead

T = TypeVar("T")

NOT_NAMED = 10.0
"""By how much the bias of a class that the data set does not name is lowered: it becomes exp(10) times less likely."""

PRIOR_PULLS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Strengths of the pull of the bias, strong ones first. With few images of each class, a strong one keeps more of the old bias."""

PULLS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Strengths of the pull to the old head to try, strong ones first: each fit begins where the last one ended."""

NUM_FOLDS = 5
"""Parts of the images in cross-validation."""

PARENT, HEAD = "parent", "head, pull "

KINDS = ("temperature", "class prior", "class prior and temperature", "head")
"""What baselines are called, up to a comma, simple heads first."""

Part = tuple[np.ndarray, np.ndarray]
"""Features `(n, num_features)` and labels `(n,)` of some images."""


@dataclass(frozen=True)
class Baseline:
    """
    A head, and how good it is.

    Args:
        name (`str`): `"parent"`, `"temperature"`, `"class prior"`, `"class prior and temperature"` or `"head, pull ..."`.
        head ([`LinearHead`]): weight and bias.
        fitness (`float`): on the selection images; greater is better. Without such images, that of cross-validation.
        crossed (`float`, *optional*): the fitness in cross-validation.
    """

    name: str
    head: LinearHead
    fitness: float
    crossed: float | None = None

    @property
    def chooses(self) -> float:
        """The fitness that chooses: that of cross-validation, if there was one."""
        return self.fitness if self.crossed is None else self.crossed


@dataclass(frozen=True)
class Folds:
    """
    Fits without a part of the images each, which measures them.

    Args:
        fits (sequence of [`HeadFits`]): without the first part, without the second, ...
        fitness (`Callable`): maps a head of each of these fits to the fitness of their logits, each on the part that it has not seen.
    """

    fits: Sequence[HeadFits]
    fitness: Callable[[Sequence[LinearHead]], float]

    @classmethod
    def of(
        cls,
        start: LinearHead,
        learn: Part,
        loss: Loss,
        reading: Reading,
        fitness: Callable[[Score, np.ndarray], float],
    ) -> "Folds":
        """
        The folds of these images, at least [`NUM_FOLDS`], in an order whose every part is balanced.

        Args:
            start ([`LinearHead`]), loss ([`Loss`]): as of [`HeadFits`].
            fitness (`Callable`): maps a score and labels to the fitness.
        """
        features, labels = learn
        numbers = np.arange(len(labels)) % NUM_FOLDS
        masks = [numbers == number for number in range(NUM_FOLDS)]
        fits = [HeadFits(start, features[~mask], labels[~mask], loss) for mask in masks]
        return cls(fits, measured_apart([(features[mask], labels[mask]) for mask in masks], reading, fitness))


def measured_apart(
    parts: Sequence[Part], reading: Reading, fitness: Callable[[Score, np.ndarray], float]
) -> Callable[[Sequence[LinearHead]], float]:
    """
    Measures heads, each on images of its own, by one fitness of all their logits.

    Args:
        parts (sequence of `tuple` of two `numpy.ndarray`): the images of each head.
        fitness (`Callable`): maps a score and labels to the fitness.
    """
    labels = np.concatenate([each for _, each in parts])

    def measured(heads: Sequence[LinearHead]) -> float:
        logits = np.concatenate([head.logits(features) for head, (features, _) in zip(heads, parts)])
        return fitness(Score({0: reading.cell(torch.from_numpy(logits), torch.from_numpy(labels), True)}), labels)

    return measured


def measured_on(
    part: Part, reading: Reading, fitness: Callable[[Score, np.ndarray], float]
) -> Callable[[LinearHead], float]:
    """Measures heads on the same images, as [`measured_apart`]."""
    measured = measured_apart([part], reading, fitness)
    return lambda head: measured([head])


def baselines(
    fits: HeadFits,
    fitness: Callable[[LinearHead], float] | None,
    named: np.ndarray | None = None,
    folds: Folds | None = None,
    whole: bool = True,
) -> list[Baseline]:
    """
    Fits all heads on the fitness images and measures each on images that it has not seen.

    Args:
        fits ([`HeadFits`]): of the fitness images, begun from the head that the model has. That one comes first in the list.
        fitness (`Callable`, *optional*): maps a head to its fitness on the selection images. With folds, it can be left out.
        named (`numpy.ndarray`, *optional*, defaults to those that have a fitness image): the classes that the data set names, int64.
        folds ([`Folds`], *optional*): of the same images. Their fitness then chooses pulls and temperatures.
        whole (`bool`, *optional*, defaults to `True`): also fits the whole head, which takes most of the time.
    """
    start, everywhere = fits.start, [fits, *(folds.fits if folds else ())]

    def measured(name: str, heads: Sequence[LinearHead]) -> Baseline:
        first, *others = heads
        crossed = folds.fitness(others) if folds else None
        found = crossed if fitness is None else fitness(first)
        assert found is not None
        return Baseline(name, first, found, crossed)

    found = [
        measured(PARENT, [start] * len(everywhere)),
        measured("temperature", [start.scaled(each.temperature()) for each in everywhere]),
    ]
    if start.bias is not None:
        others = ~np.isin(np.arange(len(start.bias)), fits.classes if named is None else named)
        bias = start.bias - NOT_NAMED * others
        heads = {}

        def prior_of(pull: float) -> Baseline:
            heads[pull] = [each.beside(bias, pull).class_prior() for each in everywhere]
            return measured("class prior", heads[pull])

        # Strong pulls first. Weak ones take the most steps, and overfit the most.
        priors = until_worse(map(prior_of, PRIOR_PULLS), attrgetter("chooses"))
        pull, prior = max(zip(PRIOR_PULLS, priors), key=lambda each: each[1].chooses)
        # The head is fitted from there: a pull that keeps the bias of classes with few images keeps it here, too.
        everywhere = [each.beside(head.bias, pull) for each, head in zip(everywhere, heads[pull])]
        factors = [each.temperature() for each in everywhere]
        scaled = [head.scaled(factor) for head, factor in zip(heads[pull], factors)]
        found += [prior, measured("class prior and temperature", scaled)]
        if found[-1].chooses > prior.chooses:
            everywhere = [each.scaled(factor) for each, factor in zip(everywhere, factors)]
    if not whole:
        return found
    last = [each.start for each in everywhere]

    def head_of(pull: float) -> Baseline:
        last[:] = [each.head(pull, guess) for each, guess in zip(everywhere, last)]
        return measured(f"{HEAD}{pull:g}", last)

    return found + until_worse(map(head_of, PULLS), attrgetter("chooses"))


def until_worse(found: Iterable[T], fitness: Callable[[T], float]) -> list[T]:
    """
    What is found, one after the other, up to the first that is worse than the one before it.

    Args:
        found (iterable): makes each when it is asked for.
        fitness (`Callable`): of one of them; greater is better.
    """
    kept: list[T] = []
    for each in found:
        kept.append(each)
        if len(kept) > 1 and fitness(each) < fitness(kept[-2]):
            break
    return kept


def best_of(found: list[Baseline], kind: str = "") -> Baseline:
    """The fittest of the baselines of a kind, which is the name up to a comma, or of all; the first one of equals."""
    of_kind = (each for each in found if kind in ("", each.name.partition(",")[0]))
    return max(of_kind, key=lambda each: each.chooses)
