"""
Mean average precision as COCO defines it, for any weights of the images.

Whether a detection finds an object depends on its image alone, so it is decided once, at the ten thresholds of COCO. What is kept
of an image are its best detections, each with its score, its class and the thresholds at which it is right. Precision and recall
follow from these for whatever images are drawn, and the metric is the one of pycocotools and torchmetrics.
"""

from collections.abc import Iterator

import numpy as np
import torch

from .resampling import Metric
from .set_loss import corners, pairwise_iou

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
DETECTIONS = 100
"""The best detections of an image that count."""

METRICS = (
    Metric("map", "mAP (%)", 100, 2, hub_name="mAP"),
    Metric("map_50", "mAP at IoU 0.5 (%)", 100, 2),
    Metric("map_75", "mAP at IoU 0.75 (%)", 100, 2),
    Metric("mar_100", "mean average recall (%)", 100, 2),
    Metric("loss", "set loss", 1, 4, greater_is_better=False),
)

_NUMBERS = 2**22
"""Weights of detections that are held at once."""


def best_detections(prediction: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    The detections of each image, the most confident first, as transformers' image processors read them.

    Args:
        prediction (`torch.Tensor`): of shape `(batch, queries, columns + 4)`: logits, and boxes (center x, center y, width,
            height). With `classes + 1` columns, a query has one class by softmax and the last column is "no object"; otherwise any
            class of any query is a detection, by sigmoid.

    Returns:
        `tuple`: scores and classes of shape `(batch, n)`, and boxes of shape `(batch, n, 4)`; n is at most `DETECTIONS`.
    """
    logits, boxes = prediction[..., :-4], prediction[..., -4:]
    if logits.shape[-1] == classes + 1:
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        queries = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    else:
        columns = logits.shape[-1]
        scores = logits.sigmoid().flatten(1)
        places = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        labels, queries = places % columns, places // columns
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :DETECTIONS], order[:, :DETECTIONS]
    queries = queries.gather(1, order)
    return scores, labels.gather(1, order), boxes.gather(1, queries[..., None].expand(-1, -1, 4))


def matched(labels: np.ndarray, boxes: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """
    Whether each detection finds an object of its class that no better one has found: bool, of shape `(batch, n, 10)`.

    Args:
        labels (`numpy.ndarray`), boxes (`torch.Tensor`): of the detections, the most confident first, of shape `(batch, n)` and
            `(batch, n, 4)`.
        targets (`torch.Tensor`): of shape `(batch, most, 5)`: class, -1 for no object or -2 - class for a crowd, and box.
    """
    iou = pairwise_iou(corners(boxes.double()), corners(targets[..., 1:].double()))[0].numpy()
    iou = np.where(labels[..., None] == targets[:, None, :, 0].numpy(), iou, -1.0)
    batch, count, most = iou.shape
    found = np.zeros((batch, count, len(IOU_THRESHOLDS)), dtype=bool)
    free = np.ones((batch, len(IOU_THRESHOLDS), most), dtype=bool)
    for rank in np.flatnonzero((iou >= IOU_THRESHOLDS[0]).any((0, 2))):
        left = np.where(free, iou[:, rank, None, :], -1.0)
        best = most - 1 - left[..., ::-1].argmax(-1)  # of equals the last, as COCO
        hit = np.take_along_axis(left, best[..., None], -1)[..., 0] >= IOU_THRESHOLDS
        found[:, rank] = hit
        images, thresholds = np.nonzero(hit)
        free[images, thresholds, best[images, thresholds]] = False
    return found


def in_crowds(labels: np.ndarray, boxes: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """
    Whether each detection lies in a crowd of its class, as COCO defines it: by the share of the detection that the crowd covers.

    Takes the arguments of [`matched`], and returns the same shape.
    """
    first, second = corners(boxes.double())[:, :, None], corners(targets[..., 1:].double())[:, None]
    sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    area = (first[..., 2:] - first[..., :2]).prod(-1).clamp_min(torch.finfo(torch.float64).tiny)
    share = (sides.clamp_min(0).prod(-1) / area).numpy()
    share = np.where(labels[..., None] == -2 - targets[:, None, :, 0].numpy(), share, -1.0)
    return share.max(-1)[..., None] >= IOU_THRESHOLDS


def kept_detections(prediction: torch.Tensor, targets: torch.Tensor, classes: int) -> np.ndarray:
    """
    What the metrics need of a batch's detections. Takes the arguments of [`best_detections`] and [`matched`].

    Returns:
        `numpy.ndarray`: float32, of shape `(batch, 3 * DETECTIONS)`: for each detection its score, its class, and as bits the
        thresholds at which it is right, and then those at which it does not count, as it lies in a crowd. Detections that
        there are not have the class -1.
    """
    scores, labels, boxes = (each.cpu() for each in best_detections(prediction.float(), classes))
    targets, numbers = targets.cpu(), labels.numpy()
    found = matched(numbers, boxes, targets)
    if (targets[..., 0] < -1).any():
        found = np.concatenate([found, in_crowds(numbers, boxes, targets) & ~found], axis=-1)
    kept = np.zeros((len(scores), DETECTIONS, 3), dtype=np.float32)
    kept[..., 1] = -1
    count = scores.shape[1]
    kept[:, :count, 0], kept[:, :count, 1] = scores.numpy(), labels.numpy()
    kept[:, :count, 2] = found @ (2.0 ** np.arange(found.shape[-1]))
    return kept.reshape(len(kept), -1)


def object_counts(targets: torch.Tensor, classes: int) -> np.ndarray:
    """How many objects of each class there are: float64, of shape `(batch, classes)`."""
    labels = targets[..., 0].cpu().long().numpy()
    return (labels[..., None] == np.arange(classes)).sum(1).astype(np.float64)


class DetectionMeasure:
    """
    The metrics of one model: see [`~smd_hf.metrics.resampling.Measured`].

    Args:
        kept (`numpy.ndarray`): from [`kept_detections`], of all images.
        sums (`numpy.ndarray`): of shape `(n, 1 + classes)`: each image's loss, and its number of objects of each class.
    """

    def __init__(self, kept: np.ndarray, sums: np.ndarray):
        self.sums = sums
        detections = kept.reshape(len(kept), DETECTIONS, 3)
        image, rank = np.nonzero(detections[..., 1] >= 0)
        score, label, bits = detections[image, rank].T
        # Across images, the first of equals goes first, as in COCO.
        order = np.argsort(-score, kind="stable")
        self._image, self._label, self._bits = image[order], label[order], bits[order].astype(np.int64)

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        rows = max(1, _NUMBERS // max(1, len(self._image)))
        parts = [self._block(weights[start : start + rows]) for start in range(0, len(weights), rows)]
        found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return found | {"loss": weights @ self.sums[:, 0] / weights.sum(-1)}

    def _block(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        present = weights @ self.sums[:, 1:]
        shape = (len(IOU_THRESHOLDS), *present.shape)
        precisions, recalls = np.zeros(shape), np.zeros(shape)
        for label in np.flatnonzero(present.any(0)):
            for place, (precision, recall) in enumerate(self._curves(int(label), weights, present[:, label])):
                precisions[place, :, label], recalls[place, :, label] = precision, recall
        # A class without objects among the images that were drawn does not count.
        counted = present > 0
        with np.errstate(invalid="ignore"):
            by_threshold = np.where(counted, precisions, 0.0).sum(-1) / counted.sum(-1)
            recall = np.where(counted, recalls, 0.0).sum(-1) / counted.sum(-1)
        return {
            "map": by_threshold.mean(0),
            "map_50": by_threshold[0],
            "map_75": by_threshold[5],
            "mar_100": recall.mean(0),
        }

    def _curves(self, label: int, weights: np.ndarray, present: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Average precision and recall of a class at each threshold, each of shape `(resamples,)`."""
        own = self._label == label
        drawn, bits = weights[:, self._image[own]], self._bits[own]
        total, crowded = drawn.cumsum(1), (bits >> len(IOU_THRESHOLDS)).any()
        for threshold in range(len(IOU_THRESHOLDS)):
            # Interpolated precision is that of a right detection: the others only count in the total.
            right = np.flatnonzero(bits >> threshold & 1)
            if crowded:
                total = (drawn * (1 - (bits >> threshold + len(IOU_THRESHOLDS) & 1))).cumsum(1)
            if not len(right):
                yield np.zeros(len(weights)), np.zeros(len(weights))
                continue
            hits = drawn[:, right].cumsum(1)
            with np.errstate(invalid="ignore", divide="ignore"):
                precision = np.where(hits > 0, hits / total[:, right], 0.0)
                recall = np.where(present[:, None] > 0, hits / present[:, None], 0.0)
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = np.where(hits > 0, np.searchsorted(RECALLS, recall, side="right"), 0)
            steps = np.diff(reached, axis=1, prepend=0)
            yield (best * steps).sum(1) / len(RECALLS), recall[:, -1]
