"""Heads of queries are fitted to the objects that the queries are matched to, and chosen by the metric of the detections."""

import numpy as np
import pytest
import torch

from smd_hf.metrics.set_loss import SetLoss
from smd_hf.search.fitness import MeasuredFitness
from smd_hf.search.head import queries
from smd_hf.search.head.baselines import best_of
from smd_hf.search.head.linear import LinearHead
from smd_hf.search.head.queries import query_baselines, targets
from smd_hf.tasks.detection import ObjectDetection

CLASSES, FEATURES, QUERIES = 3, 6, 12


def problem(seed, softmax, images=40):
    """
    Queries of which some lie on objects, and features that tell of which class.

    The head knows the classes in another light, and takes much for an object that is none.
    """
    rng = np.random.default_rng(seed)
    columns = CLASSES + softmax
    centers = 2.5 * rng.normal(size=(CLASSES + 1, FEATURES))
    objects = np.full((images, 3, 5), -1.0)
    found = np.zeros((images, QUERIES, FEATURES + 5))
    found[..., -4:] = rng.uniform(0.1, 0.9, size=(images, QUERIES, 4))
    for image in range(images):
        classes = np.full(QUERIES, CLASSES)
        for place, query in enumerate(rng.permutation(QUERIES)[: rng.integers(0, 4)]):
            classes[query] = rng.integers(CLASSES)
            objects[image, place] = [classes[query], *found[image, query, -4:]]
        found[image, :, -5] = 0.3 * rng.normal(size=QUERIES)
        found[image, :, :-5] = centers[classes] + rng.normal(size=(QUERIES, FEATURES))
    weight = centers[:columns] + 1.5 * rng.normal(size=(columns, FEATURES))
    return LinearHead(weight, np.zeros(columns)), found.astype(np.float32), objects


def found_by(fitness, softmax, seed=0):
    head, inputs, objects = problem(seed, softmax)
    task = ObjectDetection()
    task.set_loss = SetLoss(CLASSES)
    parts = (inputs[:24], objects[:24]), (inputs[24:], objects[24:])
    return head, parts, query_baselines(head, *parts, task, task.set_loss, MeasuredFitness(fitness, task))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("fitness", ["map", "nll"])
def test_a_fit_finds_the_objects_that_the_head_does_not(fitness, softmax):
    _, (_, (inputs, objects)), found = found_by(fitness, softmax)
    best = best_of(found)
    assert found[0].name == "parent" and best.name.startswith("head")
    improvement = best.fitness - found[0].fitness
    assert improvement > 0.2
    # It is measured as the model with this head would be.
    logits = (
        best.head.logits(inputs[..., :-5].reshape(-1, FEATURES)).reshape(*inputs.shape[:2], -1) + inputs[..., -5:-4]
    )
    prediction = torch.from_numpy(np.concatenate([logits, inputs[..., -4:]], axis=-1))
    losses = SetLoss(CLASSES)(prediction, torch.from_numpy(objects))
    if fitness == "nll":
        assert best.fitness == pytest.approx(-losses.mean())


@pytest.mark.parametrize("softmax", [False, True])
def test_each_object_is_wanted_of_the_query_on_it(softmax, monkeypatch):
    monkeypatch.setattr(queries, "IMAGES", 7)
    head, inputs, objects = problem(1, softmax)
    logits = head.logits(inputs[..., :-5].reshape(-1, FEATURES)).reshape(*inputs.shape[:2], -1)
    prediction = torch.from_numpy(np.concatenate([0 * logits, inputs[..., -4:]], axis=-1))
    wanted, loss = targets(prediction, torch.from_numpy(objects), SetLoss(CLASSES))
    expected = np.full(inputs.shape[:2], CLASSES)
    for image in range(len(inputs)):
        for label, *box in objects[image][objects[image, :, 0] >= 0]:
            [query] = np.flatnonzero((inputs[image, :, -4:] == np.float32(box)).all(-1))
            expected[image, query] = label
    if softmax:
        np.testing.assert_array_equal(wanted, expected.ravel())
        # As DETR weighs queries that should find nothing.
        nothing = float(loss(torch.zeros(1, CLASSES + 1), torch.tensor([CLASSES])))
        assert nothing == pytest.approx(0.1 * float(loss(torch.zeros(1, CLASSES + 1), torch.tensor([0]))))
    else:
        np.testing.assert_array_equal(wanted, np.eye(CLASSES + 1, dtype=int)[expected.ravel()][:, :CLASSES])
