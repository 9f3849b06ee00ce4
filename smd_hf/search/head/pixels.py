"""The baselines of a head whose logits are those of pixels."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from ...scoring.reading import Reading
from ...scoring.scores import Score
from ..losses import CrossEntropy
from .baselines import PARENT, Baseline, baselines
from .fit import HeadFits
from .linear import LinearHead


def pixel_baselines(
    start: LinearHead,
    fitness_set: tuple[np.ndarray, np.ndarray],
    selection_set: tuple[np.ndarray, np.ndarray],
    reading: Reading,
    fitness: Callable[[Score, np.ndarray], float],
    balances: Sequence[float],
    label_smoothing: float = 0.0,
) -> list[Baseline]:
    """
    Fits all heads on pixels of the fitness images and measures each on pixels of the selection images.

    A metric such as mIoU counts each class the same, cross-entropy each pixel. So heads are also fitted to cross-entropy with class
    weights, which are shares of the pixels to the power of `-balance`.

    Args:
        fitness_set, selection_set (`tuple` of two `numpy.ndarray`): features `(n, pixels, num_features)` and labels `(n, pixels)`.
            Labels that are no class are left out.
        balances (sequence of `float`): 0 for no weights, 1 for classes that count the same.
    """
    num_labels, num_features = start.weight.shape
    features, labels = fitness_set[0].reshape(-1, num_features), fitness_set[1].ravel()
    known = (labels >= 0) & (labels < num_labels)
    features, labels = features[known], labels[known]
    others, truth = selection_set[0].reshape(-1, num_features), torch.from_numpy(selection_set[1])

    def measured(head: LinearHead) -> float:
        logits = torch.from_numpy(head.logits(others)).reshape(*truth.shape, num_labels)
        cell = reading.cell(logits.permute(0, 2, 1)[:, :, None], truth[:, None], False)
        return fitness(Score({0: cell}), selection_set[1])

    fits = HeadFits(start, features, labels, CrossEntropy(label_smoothing))
    found: list[Baseline] = []
    for balance in balances:
        weights = balanced_weights(labels, num_labels, balance) if balance else None
        # A class that has no pixel here may have one elsewhere: no class is ruled out.
        fitted = baselines(
            fits.lowering(CrossEntropy(label_smoothing, weights)), measured, named=np.arange(num_labels)
        )
        if balance:
            fitted = [
                replace(each, name=f"{each.name}, balance {balance:g}") for each in fitted if each.name != PARENT
            ]
        found += fitted
    return found


def balanced_weights(labels: np.ndarray, num_labels: int, balance: float) -> list[float]:
    """Class weights that are shares of the labels to the power of `-balance`, scaled so that their mean over the labels is 1."""
    shares = np.bincount(labels, minlength=num_labels) / len(labels)
    weights = np.where(shares > 0, np.where(shares > 0, shares, 1.0) ** -balance, 0.0)
    return (weights / (weights @ shares)).tolist()
