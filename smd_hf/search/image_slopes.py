"""How steep the loss of each image is: what `fitness_sampling="importance"` draws images by."""

import numpy as np
import torch

from ..data.batches import ImageBatches
from ..scoring.work import Work
from .evolution import Evolution
from .gauss_newton import GaussNewton
from .head.fit import loss_and_slope
from .head.linear import chunks
from .losses import Loss


def image_slopes(evolution: Evolution, batches: ImageBatches, shown: Work | None = None) -> np.ndarray:
    """The slopes of all images with the model as it is. Takes one pass, which is not counted; `shown` is told how far it has come."""
    with evolution.evaluator.aside():
        evolution.evaluator.work = shown
        return slopes_of_logits(evolution, evolution.evaluator.logits(batches), batches.labels)


def slopes_of_logits(evolution: Evolution, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[`slope_norms`] by the loss that steps lower, on all processes."""
    processes, recombination = evolution.evaluator.processes, evolution.recombination
    assert isinstance(recombination, GaussNewton)
    # One machine finds them: another one may come to other last bits, and draw other images.
    [slopes, *_] = processes.gather(
        lambda: None if processes.process_index else slope_norms(recombination.loss, logits, labels)
    )
    assert slopes is not None
    return slopes


def slope_norms(loss: Loss, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    The Euclidean norm of the gradient of each image's loss with respect to its logits.

    Args:
        loss ([`Loss`]): a sum over images.
        logits (`numpy.ndarray`): of shape `(n, num_labels)`.
        labels (`numpy.ndarray`): of shape `(n,)`.

    Returns:
        `numpy.ndarray`: float64, of shape `(n,)`.
    """
    found = [
        loss_and_slope(loss, torch.from_numpy(logits[rows]).double(), torch.from_numpy(labels[rows]))[1].norm(dim=1)
        for rows in chunks(*logits.shape)
    ]
    return torch.cat(found).numpy()
