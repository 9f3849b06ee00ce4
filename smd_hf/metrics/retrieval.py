"""
Metrics of image features: whether an image's neighbours have its label.

Each image is looked up among the other images of the same split, by cosine similarity. Intervals come from drawing the images that
are looked up; those among which they are looked up stay the same.
"""

import numpy as np
import torch
from torch.nn import functional as F

from .resampling import Metric

NEIGHBOURS = 10
"""Images that vote on an image's label. As in DINO, a vote counts exp(similarity / TEMPERATURE)."""
TEMPERATURE = 0.07
BLOCK = 1024

METRICS = (
    Metric("recall_at_1", "recall@1 (%)", 100, 2),
    Metric("recall_at_5", "recall@5 (%)", 100, 2),
    Metric("recall_at_10", "recall@10 (%)", 100, 2),
    Metric("knn_accuracy", "nearest-neighbour accuracy (%)", 100, 2, hub_name="accuracy"),
)


class RetrievalMeasure:
    """
    The metrics of one model: see [`~smd_hf.metrics.resampling.Measured`]. An image whose label no other image has does not count.

    Args:
        features (`numpy.ndarray`): float32, of shape `(images, width)`.
        labels (`numpy.ndarray`): of shape `(images,)`.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray):
        _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
        self.counted = counts[numbers] > 1
        self.right = neighbours_right(features, numbers) if len(labels) > 1 else np.zeros((len(labels), len(METRICS)))

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        weights = weights * self.counted
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = weights @ self.right / weights.sum(-1, keepdims=True)
        return dict(zip((metric.key for metric in METRICS), shares.T))


def neighbours_right(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Of each image, 1 where its neighbours say its label, by metric of [`METRICS`].

    Args:
        labels (`numpy.ndarray`): 0 to classes - 1, of shape `(images,)`.

    Returns:
        `numpy.ndarray`: float64, of shape `(images, metrics)`.
    """
    unit = F.normalize(torch.from_numpy(features).double().flatten(1), dim=-1)
    known = torch.from_numpy(labels.astype(np.int64))
    rows = []
    for start in range(0, len(unit), BLOCK):
        own = torch.arange(start, min(start + BLOCK, len(unit)))
        similar = unit[own] @ unit.T
        similar[torch.arange(len(own)), own] = -torch.inf
        # A stable sort: equal similarities go by place, on any machine.
        found, places = similar.sort(dim=-1, descending=True, stable=True)
        width = min(NEIGHBOURS, len(unit) - 1)
        found, near = found[:, :width], known[places[:, :width]]
        hits = near == known[own, None]
        votes = torch.zeros(len(own), int(known.max()) + 1, dtype=torch.float64)
        votes.scatter_add_(1, near, (found / TEMPERATURE).exp())
        columns = [hits[:, :k].any(-1) for k in (1, 5, 10)] + [votes.argmax(-1) == known[own]]
        rows.append(torch.stack(columns, -1).double())
    return torch.cat(rows).numpy()
