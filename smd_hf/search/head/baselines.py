"""What a pass over the features gives by itself: class prior, temperature and head, of which the selection images choose."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ...scoring.scores import Cell, Score
from ..losses import Loss
from .fit import LinearHead, fit_bias, fit_head, fit_temperature

PULLS = (1e-3, 1e-4, 1e-5, 1e-6)
"""Strengths of the pull to the old head to try, strong ones first: each fit begins where the last one ended."""

PARENT = "parent"


@dataclass(frozen=True)
class Baseline:
    """
    A head, and how good it is on the selection images.

    Args:
        name (`str`): `"parent"`, `"class prior"`, `"temperature"` or `"head, pull ..."`.
        head ([`LinearHead`]): weight and bias.
        fitness (`float`): on the selection images; greater is better.
    """

    name: str
    head: LinearHead
    fitness: float


def heads(start: LinearHead, features: np.ndarray, labels: np.ndarray, loss: Loss) -> Iterator[tuple[str, LinearHead]]:
    """
    The heads to choose from, by name: the one that the model has, class prior, temperature, and fits of the whole head.

    Args:
        start ([`LinearHead`]): the head that the model has.
        features (`numpy.ndarray`): of the fitness images, of shape `(n, num_features)`.
        labels (`numpy.ndarray`): int64, of shape `(n,)`.
        loss ([`Loss`]): what the fits lower.
    """
    yield PARENT, start
    yield "temperature", start.scaled(fit_temperature(start, features, labels, loss))
    guess = start
    if start.bias is not None:
        guess = fit_bias(start, features, labels, loss)
        yield "class prior", guess
    for pull in PULLS:
        guess = fit_head(start, features, labels, loss, pull, guess)
        yield f"head, pull {pull:g}", guess


def score(head: LinearHead, features: np.ndarray, labels: np.ndarray) -> Score:
    """The score of a head on images, with all logits."""
    return Score({0: Cell.from_logits(torch.from_numpy(head.logits(features)), torch.from_numpy(labels), True)})


def baselines(
    start: LinearHead,
    fitness_set: tuple[np.ndarray, np.ndarray],
    selection_set: tuple[np.ndarray, np.ndarray],
    loss: Loss,
    fitness: Callable[[Score, np.ndarray], float],
) -> list[Baseline]:
    """
    Fits all heads on the fitness images and measures each on the selection images.

    Args:
        start ([`LinearHead`]): the head that the model has. It comes first in the list.
        fitness_set, selection_set (`tuple` of two `numpy.ndarray`): features `(n, num_features)` and labels `(n,)`.
        loss ([`Loss`]): what the fits lower.
        fitness (`Callable`): maps a score and labels to the fitness.
    """
    return [
        Baseline(name, head, fitness(score(head, *selection_set), selection_set[1]))
        for name, head in heads(start, *fitness_set, loss)
    ]


def best_of(found: list[Baseline], kind: str = "") -> Baseline:
    """The fittest of the baselines whose name begins with `kind`; the first one of equals."""
    return max((each for each in found if each.name.startswith(kind)), key=lambda each: each.fitness)
