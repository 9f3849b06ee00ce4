"""
Metrics of multi-label classification: every label of an image is there or not.

A label is predicted where its logit is above 0, a probability above one half.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from .resampling import Metric

METRICS = (
    Metric("mean_average_precision", "mean average precision (%)", 100, 2),
    Metric("f1_macro", "F1, mean over labels (%)", 100, 2, hub_name="f1"),
    Metric("f1_micro", "F1, all labels together (%)", 100, 2, hub_name="f1"),
    Metric("loss", "binary cross-entropy (nats)", 1, 4, greater_is_better=False),
)
_BLOCK_NUMBERS = 2**24
"""Weights of sorted images that are held at once."""


def label_sums(logits: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """
    What the metrics need of a batch, besides the logits.

    Args:
        logits (`torch.Tensor`): of shape `(batch, labels)`.
        targets (`torch.Tensor`): of the same shape, 1 for a label that is there and 0 for one that is not.

    Returns:
        `numpy.ndarray`: float64, of shape `(batch, 1 + 3 * labels)`: the binary cross-entropy of an image, as the mean over labels;
        then for each label whether it is predicted and there, whether it is predicted, and whether it is there.
    """
    logits, targets = logits.cpu().double(), targets.cpu().double()
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1, keepdim=True)
    predicted = (logits > 0).double()
    return torch.cat([loss, predicted * targets, predicted, targets], dim=-1).numpy()


@dataclass(eq=False)
class MultiLabelMeasure:
    """
    The metrics of one model: see [`~smd_hf.metrics.resampling.Measured`].

    A label that none of the images has, and that none is predicted to have, does not count in `f1_macro`, and a label that none
    has does not count in `mean_average_precision`.

    Args:
        sums (`numpy.ndarray`): from [`label_sums`], of all images.
        logits (`numpy.ndarray`, *optional*): of the same images, of shape `(n, labels)`. Average precision needs them.
    """

    sums: np.ndarray
    logits: np.ndarray | None = None

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        totals = weights @ self.sums
        hits, predicted, present = totals[:, 1:].reshape(len(weights), 3, -1).transpose(1, 0, 2)
        found = {}
        if self.logits is not None:
            targets = self.sums[:, 1:].reshape(len(self.sums), 3, -1)[:, 2]
            each = average_precisions(self.logits, targets, weights)
            found["mean_average_precision"] = _mean_of(each, present > 0)
        return found | {
            "f1_macro": _mean_of(_ratio(2 * hits, predicted + present), predicted + present > 0),
            "f1_micro": _ratio(2 * hits.sum(-1), (predicted + present).sum(-1)),
            "loss": totals[:, 0] / weights.sum(-1),
        }


def average_precisions(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    The average precision of each label, as scikit-learn's `average_precision_score` computes it, under weights of images.

    Args:
        scores (`numpy.ndarray`): greater for images that more likely have the label, of shape `(n, labels)`.
        targets (`numpy.ndarray`): 1 where an image has the label, else 0, of the same shape.
        weights (`numpy.ndarray`): of the images, of shape `(resamples, n)`.

    Returns:
        `numpy.ndarray`: of shape `(resamples, labels)`; 0 for a label that no image of positive weight has.
    """
    found = np.zeros((len(weights), scores.shape[1]))
    block = max(1, _BLOCK_NUMBERS // len(scores))
    for label in range(scores.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")
        ranked, positive = scores[order, label], targets[order, label]
        # Images of one score are retrieved together.
        ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        for start in range(0, len(weights), block):
            drawn = weights[start : start + block, order]
            retrieved = np.cumsum(drawn, axis=1)[:, ends]
            right = np.cumsum(drawn * positive, axis=1)[:, ends]
            gained = np.diff(right, axis=1, prepend=0.0)
            area = (gained * _ratio(right, retrieved)).sum(-1)
            found[start : start + block, label] = _ratio(area, right[:, -1])
    return found


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Above / below, and 0 where there is nothing below."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _mean_of(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return _ratio(np.where(counted, values, 0.0).sum(-1), counted.sum(-1).astype(np.float64))
