"""What a pass over the features gives by itself: class prior, temperature and head, of which the selection images choose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...scoring.reading import Reading
from ...scoring.scores import Score
from .fit import HeadFits
from .linear import LinearHead

NOT_NAMED = 10.0
"""By how much the bias of a class that the data set does not name is lowered: it becomes exp(10) times less likely."""

PRIOR_PULLS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Strengths of the pull of the bias, strong ones first. With few images of each class, a strong one keeps more of the old bias."""

PULLS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Strengths of the pull to the old head to try, strong ones first: each fit begins where the last one ended."""

PARENT, HEAD = "parent", "head, pull "


@dataclass(frozen=True)
class Baseline:
    """
    A head, and how good it is on the selection images.

    Args:
        name (`str`): `"parent"`, `"temperature"`, `"class prior"`, `"class prior and temperature"` or `"head, pull ..."`.
        head ([`LinearHead`]): weight and bias.
        fitness (`float`): on the selection images; greater is better.
    """

    name: str
    head: LinearHead
    fitness: float


def score(head: LinearHead, features: np.ndarray, labels: np.ndarray, reading: Reading) -> Score:
    """The score of a head on images, with all logits."""
    return Score({0: reading.cell(torch.from_numpy(head.logits(features)), torch.from_numpy(labels), True)})


def measured_on(
    selection_set: tuple[np.ndarray, np.ndarray], reading: Reading, fitness: Callable[[Score, np.ndarray], float]
) -> Callable[[LinearHead], float]:
    """
    Measures heads on images.

    Args:
        selection_set (`tuple` of two `numpy.ndarray`): features `(n, num_features)` and labels `(n,)`.
        fitness (`Callable`): maps a score and labels to the fitness.
    """
    return lambda head: fitness(score(head, *selection_set, reading), selection_set[1])


def baselines(
    fits: HeadFits,
    fitness: Callable[[LinearHead], float],
    named: np.ndarray | None = None,
) -> list[Baseline]:
    """
    Fits all heads on the fitness images and measures each on the selection images.

    Args:
        fits ([`HeadFits`]): of the fitness images, begun from the head that the model has. That one comes first in the list.
        fitness (`Callable`): maps a head to its fitness on the selection images.
        named (`numpy.ndarray`, *optional*, defaults to those that have a fitness image): the classes that the data set names, int64.
    """
    start = fits.start

    def measured(name: str, head: LinearHead) -> Baseline:
        return Baseline(name, head, fitness(head))

    found = [measured(PARENT, start), measured("temperature", start.scaled(fits.temperature()))]
    if start.bias is not None:
        others = ~np.isin(np.arange(len(start.bias)), fits.classes if named is None else named)
        bias = start.bias - NOT_NAMED * others
        priors = until_worse(
            lambda pull, _: measured("class prior", fits.beside(bias, pull).class_prior()), PRIOR_PULLS, start
        )
        pull, prior = max(zip(PRIOR_PULLS, priors), key=lambda each: each[1].fitness)
        assert prior.head.bias is not None
        # The head is fitted from there: a pull that keeps the bias of classes with few images keeps it here, too.
        pulled = fits.beside(prior.head.bias, pull)
        factor = pulled.temperature()
        found += [prior, measured("class prior and temperature", prior.head.scaled(factor))]
        fits = pulled.scaled(factor) if found[-1].fitness > prior.fitness else pulled
    return found + until_worse(
        lambda pull, last: measured(f"{HEAD}{pull:g}", fits.head(pull, last)), PULLS, fits.start
    )


def until_worse(
    fitted: Callable[[float, LinearHead], Baseline],
    pulls: Sequence[float],
    first_guess: LinearHead,
) -> list[Baseline]:
    """
    Fits with weaker and weaker pulls, until one is worse.

    Args:
        fitted (`Callable`): maps a pull and the head to begin with, which is the last one found, to a baseline.
        pulls (sequence of `float`): strong ones first. Weak ones take the most steps, and overfit the most.
    """
    found: list[Baseline] = []
    for pull in pulls:
        found.append(fitted(pull, found[-1].head if found else first_guess))
        if len(found) > 1 and found[-1].fitness < found[-2].fitness:
            break
    return found


def best_of(found: list[Baseline], kind: str = "") -> Baseline:
    """The fittest of the baselines of a kind, which is the name up to a comma, or of all; the first one of equals."""
    of_kind = (each for each in found if kind in ("", each.name.partition(",")[0]))
    return max(of_kind, key=lambda each: each.fitness)
