"""The baselines of a head that classifies the queries of a detector."""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from ...metrics.set_loss import SetLoss
from ...scoring.reading import Reading
from ...scoring.scores import Score
from ..losses import CrossEntropy, Loss
from .baselines import Baseline, baselines
from .fit import HeadFits
from .linear import LinearHead

IMAGES = 16
"""How many are matched at once."""


def query_baselines(
    start: LinearHead,
    fitness_set: tuple[np.ndarray, np.ndarray],
    selection_set: tuple[np.ndarray, np.ndarray],
    reading: Reading,
    set_loss: SetLoss,
    fitness: Callable[[Score, np.ndarray], float],
) -> list[Baseline]:
    """
    Fits all heads on queries of the fitness images and measures each on the selection images.

    The head changes no box. So each object is matched to one query once, as the model without a fit would be trained, and the other
    queries should find nothing.

    Args:
        fitness_set, selection_set (`tuple` of two `numpy.ndarray`): features, what is added to the logits, and boxes, of shape
            `(n, queries, num_features + 5)`, and objects `(n, most, 5)` as [`~smd_hf.data.boxes.BoxCollator`] has them.
        set_loss ([`~smd_hf.metrics.set_loss.SetLoss`]): matches objects and queries.
    """

    def predictions(head: LinearHead, queries: np.ndarray) -> torch.Tensor:
        features = queries[..., :-5]
        logits = head.logits(features.reshape(-1, features.shape[-1])).reshape(*features.shape[:2], -1)
        return torch.from_numpy(np.concatenate([logits + queries[..., -5:-4], queries[..., -4:]], axis=-1))

    def measured(head: LinearHead) -> float:
        cell = reading.cell(predictions(head, selection_set[0]), torch.from_numpy(selection_set[1]), True)
        return fitness(Score({0: cell}), selection_set[1])

    queries, objects = fitness_set[0], torch.from_numpy(fitness_set[1])
    wanted, loss = targets(predictions(start, queries), objects, set_loss)
    flat = queries.reshape(-1, queries.shape[-1])
    fits = HeadFits(start, np.ascontiguousarray(flat[:, :-5]), wanted, loss, added=flat[:, -5:-4])
    # A class without an object here may have one elsewhere: no class is ruled out.
    return baselines(fits, measured, named=np.arange(len(start.weight)))


def targets(prediction: torch.Tensor, objects: torch.Tensor, set_loss: SetLoss) -> tuple[np.ndarray, Loss]:
    """
    What each query should say, and the loss that asks for it.

    Returns:
        `tuple`: for a softmax with "no object" classes of shape `(n * queries,)`, and for a sigmoid 0 and 1 of shape
        `(n * queries, columns)`; and the loss.
    """
    parts = zip(prediction.split(IMAGES), objects.split(IMAGES))
    wanted = np.concatenate([set_loss.wanted(*part) for part in parts]).ravel()
    logits = prediction[..., :-4]
    if set_loss.has_no_object(logits):
        return wanted, CrossEntropy(class_weights=set_loss.label_weights)
    return (wanted[:, None] == np.arange(logits.shape[-1])).astype(np.int64), _binary_cross_entropy


def _binary_cross_entropy(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype), reduction="sum")
