"""Mean average precision and the set loss of detectors, against torchmetrics and transformers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchmetrics.detection import MeanAveragePrecision
from transformers import DeformableDetrConfig, DetrConfig
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from smd_hf.metrics.detection import (
    DETECTIONS,
    RECALLS,
    DetectionMeasure,
    best_detections,
    kept_detections,
    object_counts,
)
from smd_hf.metrics.resampling import differences, values
from smd_hf.metrics.set_loss import SetLoss, corners

CLASSES = 3


def made_up(images, queries, seed, columns=CLASSES + 1, none_in=()):
    """Predictions near the objects, so that some are right and some are not, and the objects."""
    generator = torch.Generator().manual_seed(seed)
    most = 5
    labels = torch.zeros(images, most, 5, dtype=torch.float64)
    labels[..., 0] = torch.randint(0, CLASSES, (images, most), generator=generator)
    labels[..., 1:3] = 0.3 + 0.4 * torch.rand(images, most, 2, generator=generator)
    labels[..., 3:] = 0.1 + 0.3 * torch.rand(images, most, 2, generator=generator)
    for image in range(images):
        kept = 0 if image in none_in else 1 + image % most
        labels[image, kept:] = torch.tensor([-1.0, 0, 0, 0, 0])
    near = labels[:, torch.arange(queries) % most, 1:].float()
    near = torch.where(near.sum(-1, keepdim=True) > 0, near, torch.rand(near.shape, generator=generator) * 0.4 + 0.2)
    boxes = (near + 0.03 * torch.randn(near.shape, generator=generator)).clamp(0.02, 0.98)
    logits = torch.randn(images, queries, columns, generator=generator)
    right = labels[:, torch.arange(queries) % most, 0].long().clamp_min(0)
    logits.scatter_add_(2, right[..., None], torch.full_like(right[..., None], 1.5, dtype=torch.float))
    # Some scores are equal.
    logits[1] = logits[0]
    return torch.cat([logits, boxes], -1), labels


def measure_of(prediction, labels):
    loss = SetLoss(CLASSES)(prediction, labels)
    sums = np.concatenate([loss[:, None], object_counts(labels, CLASSES)], 1)
    return DetectionMeasure(kept_detections(prediction, labels, CLASSES), sums)


def by_torchmetrics(prediction, labels, images):
    metric = MeanAveragePrecision(rec_thresholds=RECALLS.tolist())
    scores, classes, boxes = best_detections(prediction, CLASSES)
    for image in images:
        own = labels[image][labels[image, :, 0] != -1]
        crowds = own[:, 0] < 0
        found = {"boxes": corners(boxes[image]).double(), "scores": scores[image], "labels": classes[image]}
        objects = torch.where(crowds, -2 - own[:, 0], own[:, 0]).long()
        metric.update([found], [{"boxes": corners(own[:, 1:]), "labels": objects, "iscrowd": crowds.long()}])
    return metric.compute()


@pytest.mark.parametrize("columns", [CLASSES + 1, CLASSES], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("seed", range(3))
def test_mean_average_precision_is_that_of_torchmetrics(seed, columns):
    prediction, labels = made_up(12, 15, seed, columns, none_in=(3, 7))
    found = values(measure_of(prediction, labels), 12)
    expected = by_torchmetrics(prediction, labels, range(12))
    for name in ("map", "map_50", "map_75", "mar_100"):
        assert found[name] == pytest.approx(float(expected[name]), abs=1e-6), name
    assert 0.05 < found["map"] < found["map_50"] < 1


@pytest.mark.parametrize("seed", range(2))
def test_crowds_are_ignored_as_torchmetrics_ignores_them(seed):
    prediction, labels = made_up(12, 15, seed)
    marked = labels.clone()
    for image in range(2, 12, 2):
        last = int((labels[image, :, 0] >= 0).sum()) - 1
        marked[image, last, 0] = -2 - labels[image, last, 0]
        marked[image, last, 3:] *= 1.5
    found = values(measure_of(prediction, marked), 12)
    expected = by_torchmetrics(prediction, marked, range(12))
    for name in ("map", "map_50", "map_75", "mar_100"):
        assert found[name] == pytest.approx(float(expected[name]), abs=1e-6), name
    dropped = torch.where(marked[..., :1] < 0, torch.tensor([-1.0, 0, 0, 0, 0]), marked)
    assert found["map"] > values(measure_of(prediction, dropped), 12)["map"]
    assert found["loss"] == values(measure_of(prediction, dropped), 12)["loss"]


def test_images_count_as_often_as_they_are_drawn():
    prediction, labels = made_up(10, 15, 5)
    measure = measure_of(prediction, labels)
    weights = np.random.default_rng(0).multinomial(10, np.full(10, 0.1), size=4).astype(float)
    # Classes may be missing in what is drawn.
    weights[3] = 0
    weights[3, 0] = 10
    found = measure(weights)
    for row, drawn in enumerate(weights):
        expected = by_torchmetrics(prediction, labels, np.repeat(np.arange(10), drawn.astype(int)))
        for name in ("map", "map_50", "map_75", "mar_100"):
            assert found[name][row] == pytest.approx(float(expected[name]), abs=1e-6), (row, name)


def test_a_better_model_is_better_with_certainty():
    prediction, labels = made_up(40, 15, 6)
    worse = prediction.clone()
    worse[..., -4:] = (worse[..., -4:] + 0.05 * torch.randn(worse[..., -4:].shape)).clamp(0.02, 0.98)
    found = differences(measure_of(worse, labels), measure_of(prediction, labels), 40, resamples=300)["map"]
    assert 0 < found["interval"][0] < found["estimate"] < found["interval"][1]


def test_the_hundred_best_detections_are_kept():
    prediction, labels = made_up(2, 150, 0, CLASSES)
    kept = kept_detections(prediction, labels, CLASSES).reshape(2, DETECTIONS, 3)
    chances = prediction[..., :-4].sigmoid().flatten(1)
    assert np.array_equal(kept[..., 0], chances.sort(descending=True).values[:, :DETECTIONS].numpy())
    few = kept_detections(prediction[:, :10, :], labels, CLASSES - 1).reshape(2, DETECTIONS, 3)
    assert (few[:, 10:, 1] == -1).all() and (few[:, :10, 1] >= 0).all()


@pytest.mark.parametrize("kind", ["detr", "deformable_detr"])
def test_the_set_loss_is_that_of_transformers(kind):
    softmax = kind == "detr"
    config = (DetrConfig if softmax else DeformableDetrConfig)(num_labels=CLASSES, auxiliary_loss=False)
    loss = ForObjectDetectionLoss if softmax else DeformableDetrForObjectDetectionLoss
    prediction, labels = made_up(6, 9, 1, CLASSES + softmax, none_in=(2,))
    found = SetLoss.of(config)(prediction, labels)
    for image in range(6):
        own = labels[image][labels[image, :, 0] >= 0]
        target = {"class_labels": own[:, 0].long(), "boxes": own[:, 1:].float()}
        logits, boxes = prediction[image : image + 1, :, :-4], prediction[image : image + 1, :, -4:]
        expected, *_ = loss(logits, [target], torch.device("cpu"), boxes, config)
        assert found[image] == pytest.approx(float(expected), rel=1e-5), image


def test_weights_of_the_loss_come_from_the_configuration():
    rt_detr = SimpleNamespace(num_labels=2, weight_loss_bbox=7.0, matcher_giou_cost=3.0, eos_coefficient=1e-4)
    found = SetLoss.of(rt_detr)
    assert (found.box_weight, found.giou_cost, found.no_object, found.label_weight) == (7.0, 3.0, 1e-4, 1.0)


def test_a_prediction_that_is_not_finite_has_no_loss():
    prediction, labels = made_up(3, 9, 1)
    prediction[1, 0, 0] = torch.nan
    assert np.isnan(SetLoss(CLASSES)(prediction, labels)).tolist() == [False, True, False]
