"""Metrics that every child is measured by, without sorting or a softmax of everything: the same bits as by the long way."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from smd_hf.artifacts.choose_members import choose_members
from smd_hf.metrics.classification import top_k_accuracy
from smd_hf.metrics.ood import max_softmax, negative_energy
from smd_hf.metrics.statistics import BINS, Scores, correct, log_softmax64, nll, reliability
from smd_hf.scoring.scores import Cell, Score
from smd_hf.search.pareto.objectives import Objectives

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30]


@st.composite
def predictions(draw, least_classes=2):
    """Logits with many ties, in some of them values that are not finite, and labels."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, classes = draw(st.integers(1, 40)), draw(st.integers(least_classes, 9))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    logits = random.integers(-2, 3, (count, classes)).astype(dtype)
    if draw(st.booleans()):
        logits = (logits + random.normal(size=logits.shape)).astype(dtype)
    if draw(st.booleans()):
        odd = random.random(logits.shape) < 0.2
        with np.errstate(over="ignore"):
            logits[odd] = random.choice(np.array(SPECIAL), odd.sum()).astype(dtype)
    return logits, random.integers(0, classes, count)


@given(predictions(least_classes=3), st.data())
@settings(max_examples=300, deadline=None)
def test_counting_ranks_is_sorting(prediction, data):
    logits, labels = prediction
    k = data.draw(st.integers(1, logits.shape[1] - 1))
    if data.draw(st.booleans()):
        labels[0] = data.draw(st.sampled_from([-100, -1, logits.shape[1]]))  # of no class: never among the likeliest
    likeliest = np.argsort(logits, axis=1, kind="stable")[:, ::-1][:, :k]
    assert top_k_accuracy(logits, labels, k) == float((likeliest == labels[:, None]).any(1).mean())


@given(predictions())
@settings(max_examples=300, deadline=None)
def test_scores_are_those_of_all_log_probabilities(prediction):
    logits, labels = prediction
    log_probs = log_softmax64(logits)
    losses = -log_probs[np.arange(len(labels)), labels]
    confidence = np.exp(log_probs.max(axis=1))
    right = (logits.argmax(axis=1) == labels) & ~np.isnan(log_probs).any(axis=1)
    assert np.array_equal(nll(logits, labels), losses, equal_nan=True)
    assert np.array_equal(correct(logits, labels), right)

    place = np.clip(np.searchsorted(np.linspace(0, 1, BINS + 1), confidence, side="left") - 1, 0, BINS - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=BINS)
    expected = (right.mean(), losses.mean(), np.abs(gap).sum() / len(labels))
    scores = Scores.from_logits(logits, labels)
    assert np.array_equal((scores.accuracy, scores.nll, scores.calibration_error), expected, equal_nan=True)
    assert np.array_equal(reliability(logits, labels).count, np.bincount(place, minlength=BINS))


@given(predictions())
@settings(max_examples=100, deadline=None)
def test_scores_of_images_from_elsewhere_are_those_of_all_log_probabilities(prediction):
    logits, _ = prediction
    with np.errstate(all="ignore"):
        assert np.array_equal(max_softmax(logits), log_softmax64(logits).max(-1), equal_nan=True)
        assert np.array_equal(negative_energy(logits), logsumexp(logits.astype(np.float64), axis=-1), equal_nan=True)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(1, 30), st.integers(2, 40), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_members_are_chosen_by_the_labels_probabilities_as_by_all(seed, candidates, images, classes, size):
    random = np.random.default_rng(seed)
    logits = random.integers(-2, 3, (candidates, images, classes)).astype(np.float32)
    if seed % 2:
        logits += random.normal(size=logits.shape).astype(np.float32)
    labels = random.integers(0, classes, images)

    ballots = torch.from_numpy(logits).double().softmax(-1)
    total, picks = torch.zeros_like(ballots[0]), []
    for members in range(1, size + 1):
        means = [(total + ballot) / members for ballot in ballots]
        losses = [float(torch.nn.functional.nll_loss(mean.log(), torch.from_numpy(labels))) for mean in means]
        picks.append(int(np.argmin(losses)))
        total += ballots[picks[-1]]
    assert choose_members(logits, labels, size) == list(Counter(picks).items())


def test_several_objectives_compute_the_metrics_once():
    calls = []

    def metrics(prediction):
        calls.append(len(prediction.predictions))
        return {"sharpness": 0.5, "top_3": 0.75, "cost": 2.0}

    logits, labels = torch.randn(6, 4), torch.zeros(6, dtype=torch.int64)
    score = Score({0: Cell.from_logits(logits, labels, keep_logits=True)})
    objectives = Objectives(["sharpness", "top_3", "cost", "accuracy"], metrics)
    assert objectives(score, labels.numpy(), {}) == [0.5, 0.75, -2.0, score.accuracy]
    assert calls == [6]
    failed = Score({0: Cell.from_logits(logits * torch.nan, labels, keep_logits=True)})
    assert objectives(failed, labels.numpy(), {}) == [-np.inf] * 4 and calls == [6]


@pytest.mark.parametrize("classes, k", [(1000, 5), (7, 2)])
def test_ties_go_to_the_greater_class_number(classes, k):
    logits = np.zeros((classes, classes), dtype=np.float32)
    assert top_k_accuracy(logits, np.arange(classes), k) == k / classes
    assert top_k_accuracy(logits, np.full(classes, classes - k), k) == 1
    assert top_k_accuracy(logits, np.full(classes, classes - k - 1), k) == 0
