"""
Metrics of semantic segmentation, from numbers of pixels.

Of each image, three numbers a class are kept: pixels of the class that are predicted as such, pixels predicted as the class,
and pixels of the class. Their sums over images give mIoU and accuracies exactly, whatever images are drawn.
"""

import numpy as np
import torch
from torch.nn import functional as F

from .resampling import Metric

METRICS = (
    Metric("mean_iou", "mean IoU (%)", 100, 2, hub_name="mean_iou"),
    Metric("mean_accuracy", "mean class accuracy (%)", 100, 2),
    Metric("overall_accuracy", "pixel accuracy (%)", 100, 2, hub_name="accuracy"),
    Metric("loss", "pixel cross-entropy (nats)", 1, 4, greater_is_better=False),
)


def pixel_sums(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> np.ndarray:
    """
    What the metrics need of a batch.

    Args:
        logits (`torch.Tensor`): of shape `(batch, classes, height, width)`. They are resized to the labels, bilinearly.
        labels (`torch.Tensor`): of shape `(batch, height, width)`, int64; `ignore_index` for pixels that do not count.

    Returns:
        `numpy.ndarray`: float64, of shape `(batch, 1 + 3 * classes)`: the mean cross-entropy of an image's pixels, then for each
        class the number of its pixels that are predicted as such, of pixels predicted as the class, and of its pixels.
    """
    classes = logits.shape[1]
    rows = []
    for single, label in zip(logits, labels.to(logits.device)):
        # One image at a time: in full resolution, a batch may take gigabytes.
        single = F.interpolate(single[None].float(), label.shape, mode="bilinear", align_corners=False)[0]
        known = label != ignore_index
        right, single = label[known], single[:, known]
        own = single.gather(0, right[None])[0]
        loss = (single.logsumexp(0) - own).cpu().double().mean().item() if len(right) else 0.0
        predicted = single.argmax(0)
        counts = [torch.bincount(each, minlength=classes) for each in (right[predicted == right], predicted, right)]
        rows.append(np.concatenate([[loss], torch.cat(counts).cpu().numpy()]))
    return np.stack(rows).astype(np.float64)


class SegmentationMeasure:
    """The metrics of one model: see [`~smd_hf.metrics.resampling.Measured`]. `sums` are from [`pixel_sums`], of all images."""

    def __init__(self, sums: np.ndarray):
        self.sums = sums

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        totals = weights @ self.sums
        hits, predicted, present = totals[:, 1:].reshape(len(weights), 3, -1).transpose(1, 0, 2)
        union = predicted + present - hits
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "mean_iou": _mean_of(hits / union, union > 0),
                "mean_accuracy": _mean_of(hits / present, present > 0),
                "overall_accuracy": hits.sum(-1) / present.sum(-1),
                "loss": totals[:, 0] / weights.sum(-1),
            }


def _mean_of(ratios: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return np.where(counted, ratios, 0.0).sum(-1) / counted.sum(-1)
