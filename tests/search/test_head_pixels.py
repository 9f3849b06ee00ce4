"""Heads of pixels are fitted with class weights, and chosen by the metric of the pixels of the selection images."""

import numpy as np
import pytest

from smd_hf.search.fitness import MeasuredFitness
from smd_hf.search.head.baselines import best_of
from smd_hf.search.head.linear import LinearHead
from smd_hf.search.head.pixels import balanced_weights, pixel_baselines
from smd_hf.tasks.segmentation import SemanticSegmentation


def problem(seed, images=12, pixels=150, features=5, shares=(0.8, 0.17, 0.03)):
    """Features of pixels of classes of very different size, and a head that knows them in another light."""
    rng = np.random.default_rng(seed)
    centers = 1.2 * rng.normal(size=(3, features))
    labels = rng.choice(3, size=(images, pixels), p=shares)
    inputs = (centers[labels] + rng.normal(size=(images, pixels, features))).astype(np.float32)
    labels[:, 0] = 255
    return LinearHead(centers + 0.7 * rng.normal(size=centers.shape), np.zeros(3)), inputs, labels.astype(np.int64)


def found_by(name, balances, seed=0):
    head, inputs, labels = problem(seed)
    task = SemanticSegmentation()
    task.classes = 3
    parts = (inputs[:6], labels[:6]), (inputs[6:], labels[6:])
    return head, parts, pixel_baselines(head, *parts, task, MeasuredFitness(name, task), balances)


def test_heads_are_measured_by_the_metric_of_the_selection_pixels():
    _, (_, (inputs, labels)), found = found_by("mean_iou", (0.0, 0.5))
    assert found[0].name == "parent" and sum(each.name == "parent" for each in found) == 1
    assert {name.rpartition(", ")[2] for name in (each.name for each in found) if "balance" in name} == {"balance 0.5"}
    best = best_of(found)
    assert best.fitness > found[0].fitness + 0.1
    for each in (found[0], best):
        predicted = each.head.logits(inputs.reshape(-1, 5)).argmax(1).reshape(labels.shape)
        known = labels != 255
        ious = [
            ((predicted == k) & (labels == k)).sum() / (((predicted == k) | (labels == k)) & known).sum()
            for k in range(3)
        ]
        assert each.fitness == pytest.approx(np.mean(ious))


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_classes_find_more_of_a_small_class(seed):
    *_, found = found_by("mean_accuracy", (0.0, 1.0), seed)

    def accuracy(names):
        return max(each.fitness for each in found if each.name.startswith("head") and names(each.name))

    assert accuracy(lambda name: "balance" in name) > accuracy(lambda name: "balance" not in name)


def test_weights_are_powers_of_the_shares():
    labels = np.repeat([0, 1, 3], [16, 4, 1])
    weights = np.array(balanced_weights(labels, 5, 0.5))
    np.testing.assert_allclose(weights[[1, 3]] / weights[0], [2.0, 4.0])
    assert weights[2] == weights[4] == 0 and weights[labels].mean() == pytest.approx(1)
