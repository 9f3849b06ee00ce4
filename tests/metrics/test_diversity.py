"""Diversity of members against plain loops over pairs on random data, and at its ends."""

import math
import warnings
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from smd_hf.metrics.diversity import disagreement, mean_pairwise_kl, output_correlation
from smd_hf.metrics.statistics import log_softmax64


@given(st.integers(2, 5), st.integers(1, 30), st.integers(2, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_diversity_agrees_with_loops_over_pairs(members, n, classes, seed):
    logits = 2 * np.random.default_rng(seed).normal(size=(members, n, classes))
    log_probs, predictions = log_softmax64(logits), logits.argmax(axis=2)
    probs = np.exp(log_probs)
    pairs = list(combinations(range(members), 2))
    assert disagreement(predictions) == pytest.approx(
        np.mean([np.mean(predictions[i] != predictions[j]) for i, j in pairs])
    )
    kl = [stats.entropy(probs[i], probs[j], axis=1).mean() for i, j in permutations(range(members), 2)]
    assert mean_pairwise_kl(log_probs) == pytest.approx(np.mean(kl), rel=1e-9) == mean_pairwise_kl(logits)
    correlation = [np.corrcoef(probs[i].ravel(), probs[j].ravel())[0, 1] for i, j in pairs]
    assert output_correlation(log_probs) == pytest.approx(np.mean(correlation), abs=1e-9)


def test_long_inputs_are_measured_in_blocks_with_the_same_result(monkeypatch):
    members = 2 * np.random.default_rng(2).normal(size=(3, 500, 5))
    whole = mean_pairwise_kl(members), output_correlation(members)
    monkeypatch.setattr("smd_hf.metrics.statistics._BLOCK_ELEMENTS", 64)
    assert (mean_pairwise_kl(members), output_correlation(members)) == pytest.approx(whole, rel=1e-12)


def test_diversity_at_its_ends():
    logits = 2 * np.random.default_rng(11).normal(size=(50, 5))
    equal = np.stack([logits] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert disagreement(equal.argmax(axis=2)) == 0
        assert mean_pairwise_kl(equal) == pytest.approx(0, abs=1e-15)
        assert output_correlation(equal) == pytest.approx(1)
        votes = np.log(
            np.array([[[1.0, 0.0]], [[0.5, 0.5]]]),
            where=[[[True, False]], [[True, True]]],
            out=np.full((2, 1, 2), -np.inf),
        )
        assert mean_pairwise_kl(votes) == math.inf
        assert mean_pairwise_kl(np.stack([votes[0], votes[0]])) == 0
        for measure in (mean_pairwise_kl, output_correlation):
            assert math.isnan(measure(equal[:1]))
        assert math.isnan(disagreement(np.zeros((1, 4))))
