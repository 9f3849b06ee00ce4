"""
The loss that detectors with queries are trained by: each object is matched to one query, and all others should find nothing.

It is the loss of DETR (Carion et al. 2020) for the last layer of the decoder and one image at a time. Models with a column for "no
object" have a softmax over classes; others have a sigmoid for each class and a focal loss, as Deformable DETR.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

FOCUS = 2.0
"""Exponent of the focal loss, gamma."""


@dataclass(frozen=True)
class SetLoss:
    """
    Weights of the loss, and of the cost by which objects are matched to queries. The defaults are DETR's.

    Args:
        classes (`int`): of the model, without "no object".
        label_weight, box_weight, giou_weight (`float`, *optional*): of the parts of the loss.
        label_cost, box_cost, giou_cost (`float`, *optional*): of the parts of the cost.
        no_object (`float`, *optional*, defaults to 0.1): with a softmax, the weight of queries that should find nothing.
        alpha (`float`, *optional*, defaults to 0.25): with a sigmoid, the weight of the focal loss where there is an object.
    """

    classes: int
    label_weight: float = 1.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    label_cost: float = 1.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    no_object: float = 0.1
    alpha: float = 0.25

    @classmethod
    def of(cls, config: Any) -> "SetLoss":
        """With the weights of a model's configuration, where it has any."""
        names = {
            "label_weight": ("cls_loss_coefficient", "class_loss_coefficient", "weight_loss_vfl"),
            "box_weight": ("bbox_loss_coefficient", "weight_loss_bbox"),
            "giou_weight": ("giou_loss_coefficient", "weight_loss_giou"),
            "label_cost": ("class_cost", "matcher_class_cost"),
            "box_cost": ("bbox_cost", "matcher_bbox_cost"),
            "giou_cost": ("giou_cost", "matcher_giou_cost"),
            "no_object": ("eos_coefficient",),
            "alpha": ("focal_alpha",),
        }
        found = {
            name: next(float(value) for each in keys if (value := getattr(config, each, None)) is not None)
            for name, keys in names.items()
            if any(getattr(config, each, None) is not None for each in keys)
        }
        return cls(config.num_labels, **found)

    def __call__(self, prediction: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
        """
        The loss of each image.

        Args:
            prediction (`torch.Tensor`): of shape `(batch, queries, columns + 4)`: logits, and boxes (center x, center y, width,
                height) as shares of the image. With `classes + 1` columns, the last is "no object".
            labels (`torch.Tensor`): of shape `(batch, most, 5)`: class and box; a negative class, after all objects, for none. Crowds
                have no part in the loss, as where transformers trains detectors.

        Returns:
            `numpy.ndarray`: float64, of shape `(batch,)`; NaN where a prediction is not finite.
        """
        prediction, labels = prediction.detach().cpu().double(), labels.detach().cpu().double()
        cost, distance, giou = self._costs(prediction, labels)
        losses = []
        for image, classes in enumerate(labels[..., 0].long()):
            count = int((classes >= 0).sum())
            if not torch.isfinite(prediction[image]).all():
                losses.append(float("nan"))
                continue
            queries, objects = map(torch.from_numpy, _assigned(cost[image], count))
            loss = self.label_weight * self._label_loss(prediction[image, :, :-4], queries, classes[objects], count)
            apart = distance[image, queries, objects].sum() * self.box_weight
            apart = apart + (1 - giou[image, queries, objects]).sum() * self.giou_weight
            losses.append(float(loss + apart / max(count, 1)))
        return np.array(losses)

    def wanted(self, prediction: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
        """
        The class of the object that each query is matched to, and `classes` for none. Predictions are finite.

        Returns:
            `numpy.ndarray`: int64, of shape `(batch, queries)`.
        """
        prediction, labels = prediction.detach().cpu().double(), labels.detach().cpu().double()
        found = np.full(prediction.shape[:2], self.classes)
        for image, cost in enumerate(self._costs(prediction, labels)[0]):
            classes = labels[image, :, 0].long().numpy()
            queries, objects = _assigned(cost, int((classes >= 0).sum()))
            found[image, queries] = classes[objects]
        return found

    def has_no_object(self, logits: torch.Tensor) -> bool:
        """Whether they have a column for "no object", and so a softmax."""
        return logits.shape[-1] == self.classes + 1

    @property
    def label_weights(self) -> list[float]:
        """With a softmax, the weight of each column."""
        return [1.0] * self.classes + [self.no_object]

    def confidence(self, prediction: torch.Tensor) -> torch.Tensor:
        """How sure each query is of an object, as a logit or a probability: of shape `(batch, queries)`."""
        logits = prediction[..., :-4]
        scores = logits.softmax(-1) if self.has_no_object(logits) else logits
        return scores[..., : self.classes].amax(-1)

    def _costs(
        self, prediction: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What it costs to match each query to each object, their distance, and their GIoU: `(batch, queries, most)`."""
        logits, boxes = prediction[..., :-4], prediction[..., -4:]
        giou = _pairwise_giou(boxes, labels[..., 1:])
        distance = torch.cdist(boxes, labels[..., 1:], p=1)
        wanted = labels[..., 0].long().clamp_min(0)
        likely = _label_cost(logits, self.has_no_object(logits))
        likely = likely.gather(2, wanted[:, None].expand(-1, logits.shape[1], -1))
        return self.box_cost * distance + self.label_cost * likely - self.giou_cost * giou, distance, giou

    def _label_loss(
        self, logits: torch.Tensor, queries: torch.Tensor, classes: torch.Tensor, count: int
    ) -> torch.Tensor:
        if self.has_no_object(logits):
            wanted = torch.full((len(logits),), self.classes)
            wanted[queries] = classes
            return F.cross_entropy(logits, wanted, logits.new_tensor(self.label_weights))
        target = torch.zeros_like(logits)
        target[queries, classes] = 1.0
        right = torch.where(target > 0, logits.sigmoid(), (-logits).sigmoid())
        weights = torch.where(target > 0, self.alpha, 1 - self.alpha) * (1 - right) ** FOCUS
        return (weights * F.binary_cross_entropy_with_logits(logits, target, reduction="none")).sum() / max(count, 1)


def _assigned(cost: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and the objects, of the first `count`, that they are matched to, at the lowest total cost."""
    return linear_sum_assignment(cost[:, :count].numpy())


def _label_cost(logits: torch.Tensor, softmax: bool) -> torch.Tensor:
    if softmax:
        return -logits.softmax(-1)
    # As in Deformable DETR, whose alpha is fixed here.
    chance = logits.sigmoid()
    there = 0.25 * (1 - chance) ** FOCUS * -(chance + 1e-8).log()
    return there - 0.75 * chance**FOCUS * -(1 - chance + 1e-8).log()


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """From center and size to left, top, right, bottom."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], -1)


def pairwise_iou(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Intersection over union, and the union, of corner boxes of shape `(..., n, 4)` and `(..., m, 4)`: `(..., n, m)`."""
    first, second = first[..., :, None, :], second[..., None, :, :]
    sides = (
        torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    ).clamp_min(0)
    common = sides.prod(-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (first, second)]
    union = areas[0] + areas[1] - common
    return torch.where(union > 0, common / union.clamp_min(torch.finfo(union.dtype).tiny), 0.0), union


def _pairwise_giou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    first, second = corners(first), corners(second)
    iou, union = pairwise_iou(first, second)
    first, second = first[..., :, None, :], second[..., None, :, :]
    hull = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    hull = hull.clamp_min(0).prod(-1)
    return torch.where(hull > 0, iou - (hull - union) / hull.clamp_min(torch.finfo(hull.dtype).tiny), iou - 1)
