"""What a pass over the features gives by itself: class prior, temperature and head, of which the selection images choose."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...scoring.scores import Cell, Score
from ..losses import Loss
from .fit import HeadFits
from .linear import LinearHead

PULLS = (1e-3, 1e-4, 1e-5, 1e-6)
"""Strengths of the pull to the old head to try, strong ones first: each fit begins where the last one ended."""

PARENT, HEAD = "parent", "head, pull "


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
        fitness (`Callable`): maps a score and labels to the fitness.
    """
    fits = HeadFits(start, *fitness_set, loss)

    def measured(name: str, head: LinearHead) -> Baseline:
        return Baseline(name, head, fitness(score(head, *selection_set), selection_set[1]))

    found = [measured(PARENT, start), measured("temperature", fits.temperature())]
    if start.bias is not None:
        found.append(measured("class prior", fits.class_prior()))
    return found + pulled(fits, measured, PULLS, found[-1].head if start.bias is not None else start)


def pulled(
    fits: HeadFits, measured: Callable[[str, LinearHead], Baseline], pulls: Sequence[float], first_guess: LinearHead
) -> list[Baseline]:
    """
    Fits of the whole head, until a weaker pull is worse.

    Args:
        pulls (sequence of `float`): strong ones first. Each fit begins where the last one ended.
    """
    found: list[Baseline] = []
    for pull in pulls:
        first_guess = fits.head(pull, first_guess)
        found.append(measured(f"{HEAD}{pull:g}", first_guess))
        # Weak pulls take the most steps, and overfit more and more.
        if len(found) > 1 and found[-1].fitness < found[-2].fitness:
            break
    return found


def best_of(found: list[Baseline], kind: str = "") -> Baseline:
    """The fittest of the baselines whose name begins with `kind`; the first one of equals."""
    return max((each for each in found if each.name.startswith(kind)), key=lambda each: each.fitness)
