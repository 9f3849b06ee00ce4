"""Statistics against scipy, scikit-learn, statsmodels and plain loops on random data, and against simulated truth."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.metrics import accuracy_score, log_loss
from statsmodels.stats.contingency_tables import mcnemar

from smd_hf.errors import SMDError
from smd_hf.metrics.statistics import (
    Scores,
    _percentiles,
    _resampled_means,
    accuracy,
    calibration_error,
    compare,
    correct,
    log_softmax64,
    mcnemar_exact,
    nll,
    reliability,
)


def paired_interval(a, b, resamples=5000, confidence=0.95, seed=0):
    """The percentile bootstrap of `compare` alone, of the mean of b - a."""
    difference = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    return _percentiles(_resampled_means(difference[:, None], resamples=resamples, seed=seed)[:, 0], confidence)


def world(n, seed, noise=(0.6, 0.6), scale=(1.0, 1.0), classes=5):
    """Two models that see the true log-odds through noise of their own and scale them: labels follow the truth."""
    rng = np.random.default_rng(seed)
    truth = 2 * rng.normal(size=(n, classes))
    labels = (truth + rng.gumbel(size=truth.shape)).argmax(axis=1)
    logits = [s * (truth + e * rng.normal(size=truth.shape)) for e, s in zip(noise, scale)]
    return (*logits, labels)


@given(
    st.integers(1, 60),
    st.integers(2, 7),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.float16, np.float32, np.float64]),
)
@settings(max_examples=40, deadline=None)
def test_scores_agree_with_scikit_learn_and_a_plain_loop(n, classes, seed, dtype):
    rng = np.random.default_rng(seed)
    logits, labels = (3 * rng.normal(size=(n, classes))).astype(dtype), rng.integers(classes, size=n)
    probs = special.softmax(logits.astype(np.float64), axis=1)
    scores = Scores.from_logits(logits, labels)
    assert scores.n == n
    assert scores.accuracy == accuracy(logits, labels) == accuracy_score(labels, logits.argmax(axis=1))
    assert scores.nll == pytest.approx(log_loss(labels, probs, labels=range(classes)), abs=1e-12)
    assert nll(logits, labels).dtype == np.float64
    np.testing.assert_allclose(np.exp(log_softmax64(logits)), probs, atol=1e-14)

    expected = 0.0
    for b in range(15):
        inside = (probs.max(axis=1) > b / 15) & (probs.max(axis=1) <= (b + 1) / 15)
        if inside.any():
            right = (logits.argmax(axis=1) == labels)[inside].mean()
            expected += inside.mean() * abs(right - probs.max(axis=1)[inside].mean())
    assert scores.calibration_error == calibration_error(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_reliability_adds_up_to_the_calibration_error():
    logits, _, labels = world(700, seed=1, scale=(2, 1))
    for bins in (1, 10, 15):
        bars = reliability(logits, labels, bins)
        filled = bars.count > 0
        gaps = bars.count[filled] * np.abs(bars.accuracy[filled] - bars.confidence[filled])
        assert bars.count.sum() == 700
        assert np.isnan(bars.accuracy[~filled]).all()
        assert gaps.sum() / 700 == pytest.approx(calibration_error(logits, labels, bins))


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    bars = reliability(np.zeros((3, 2)), np.array([0, 1, 1]), bins=2)
    assert bars.count.tolist() == [3, 0] and bars.confidence[0] == 0.5


def test_long_inputs_are_scored_in_blocks_with_the_same_result(monkeypatch):
    logits, _, labels = world(500, seed=2)
    whole = nll(logits, labels), Scores.from_logits(logits, labels)
    intervals = compare(logits, 0.5 * logits, labels, resamples=200)
    monkeypatch.setattr("smd_hf.metrics.statistics._BLOCK_ELEMENTS", 64)
    np.testing.assert_array_equal(nll(logits, labels), whole[0])
    assert Scores.from_logits(logits, labels) == whole[1]
    in_blocks = compare(logits, 0.5 * logits, labels, resamples=200)
    assert in_blocks.nll.interval == pytest.approx(intervals.nll.interval, rel=1e-9)


def test_confident_and_broken_rows():
    logits = np.array([[1000.0, 0.0], [-np.inf, 0.0], [np.nan, 0.0], [0.0, 0.0]])
    labels = np.array([0, 1, 0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert correct(logits, labels).tolist() == [True, True, False, True]
        np.testing.assert_allclose(nll(logits, labels), [0, 0, np.nan, math.log(2)])
        assert nll(logits, np.array([1, 0, 0, 0]))[:2].tolist() == [1000.0, np.inf]


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((3, 2), [0, 1], "shape"),
        ((0, 2), [], "at least one image"),
        ((3,), [0, 1, 0], "shape"),
        ((2, 2), [0, 2], "from 0 to 1"),
        ((2, 2), [0, -1], "from 0 to 1"),
        ((2, 2), [0.0, 1.0], "integers"),
    ],
)
def test_impossible_labels_are_refused(shape, labels, message):
    with pytest.raises(SMDError, match=message):
        Scores.from_logits(np.zeros(shape), np.array(labels))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_mcnemar_agrees_with_statsmodels(both, only_a, only_b, neither):
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    order = np.random.default_rng(0).permutation(len(a))
    counted_a, counted_b, p_value = mcnemar_exact(a[order], b[order])
    assert (counted_a, counted_b) == (only_a, only_b)
    expected = mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue if only_a != only_b else 1.0
    assert p_value == pytest.approx(expected, rel=1e-9)


def test_pairs_of_different_length_are_refused():
    with pytest.raises(SMDError, match="same images"):
        mcnemar_exact(np.ones(3), np.ones(4))


def test_paired_interval_agrees_with_scipy():
    rng = np.random.default_rng(3)
    a = rng.exponential(size=400)
    b = a + 0.1 + 0.5 * rng.normal(size=400)
    mine = paired_interval(a, b, resamples=20_000)
    theirs = stats.bootstrap((b - a,), np.mean, n_resamples=20_000, method="percentile", rng=rng).confidence_interval
    assert mine == pytest.approx(tuple(theirs), abs=0.05 * (theirs.high - theirs.low))
    wider = paired_interval(a, b, confidence=0.99)
    assert wider[0] < mine[0] < 0.1 < mine[1] < wider[1]
    assert paired_interval(a, b, seed=5) == paired_interval(a, b, seed=5) != paired_interval(a, b, seed=6)
    low, high = paired_interval(b, a, resamples=20_000)
    assert (-high, -low) == pytest.approx(mine)


def test_pooled_units_give_the_interval_of_the_normal_theory():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=60_001), rng.normal(loc=3, size=60_001)
    low, high = paired_interval(a, b, resamples=400)
    half = 1.96 * np.std(b - a) / math.sqrt(60_001)
    assert low == pytest.approx(np.mean(b - a) - half, abs=0.3 * half)
    assert high == pytest.approx(np.mean(b - a) + half, abs=0.3 * half)


def test_degenerate_differences_give_no_warning():
    logits, _, labels = world(300, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert paired_interval(np.ones(7), np.ones(7)) == (0.0, 0.0)
        same = compare(logits, logits, labels)
        impossible = compare(logits, np.where(np.eye(5)[labels] == 1, -np.inf, 0.0), labels)
    for difference in (same.accuracy, same.nll, same.calibration_error):
        assert difference.estimate == 0 and difference.interval == (0.0, 0.0)
    assert same.p_value == 1 and not same.significant
    assert impossible.candidate.nll == impossible.nll.estimate == math.inf
    assert all(math.isnan(end) for end in impossible.nll.interval)
    assert all(math.isfinite(end) for end in (*impossible.accuracy.interval, *impossible.calibration_error.interval))


def test_compare_is_what_its_parts_say():
    a, b, labels = world(600, seed=6, noise=(1.5, 0.3))
    result = compare(a, b, labels, seed=3)
    assert result.baseline == Scores.from_logits(a, labels) and result.candidate == Scores.from_logits(b, labels)
    counts = (result.only_baseline_correct, result.only_candidate_correct, result.p_value)
    assert counts == mcnemar_exact(correct(a, labels), correct(b, labels))
    assert result.accuracy.estimate == pytest.approx(accuracy(b, labels) - accuracy(a, labels))
    assert result.nll.estimate == pytest.approx((nll(b, labels) - nll(a, labels)).mean())
    assert result.nll.interval[0] < result.nll.estimate < result.nll.interval[1]
    assert result == compare(a, b, labels, seed=3)
    for key, values in (("accuracy", correct), ("nll", nll)):
        alone = paired_interval(values(a, labels), values(b, labels), seed=3)
        assert getattr(result, key).interval == pytest.approx(alone)


@pytest.mark.parametrize(
    ("noise", "scale", "start", "words"),
    [
        ((2.0, 0.2), (1, 1), "significant gain: soup is more accurate than twin", "percentage points"),
        ((0.2, 2.0), (1, 1), "significant loss: keep twin", "McNemar p < 0.0001"),
        ((0.5, 0.5), (3, 1), "no significant gain: keep twin", "soup has the better likelihood, though (NLL -"),
        ((2.0, 0.5), (0.5, 6), "significant gain", "its likelihood is worse (NLL +"),
        ((0.5, 2.0), (8, 0.5), "significant loss", "its likelihood is better, though (NLL -"),
    ],
)
def test_verdicts(noise, scale, start, words):
    result = compare(*world(1500, 7, noise, scale), names=("twin", "soup"), resamples=300)
    assert result.verdict.startswith(start) and words in result.verdict and result.verdict.endswith(".")
    assert result.significant == start.startswith("significant gain")
    assert f"{100 * result.accuracy.estimate:+.2f} percentage points" in result.verdict
    assert "1,500 images" in result.verdict


def test_a_plain_null_says_only_keep_the_parent():
    a, _, labels = world(400, seed=8)
    verdict = compare(a, a, labels).verdict
    assert verdict.startswith("no significant gain: keep the parent (") and "NLL" not in verdict


def test_intervals_cover_the_truth():
    """The parent is overconfident and the evolved model is not: percentiles of the calibration error miss this truth."""
    setting = {"noise": (0.6, 0.5), "scale": (1.8, 1.0)}
    a, b, labels = world(400_000, seed=0, **setting)
    first, second = Scores.from_logits(a, labels), Scores.from_logits(b, labels)
    runs, covered = 200, np.zeros(3)
    for run in range(runs):
        result = compare(*world(500, 1000 + run, **setting), resamples=300)
        for column, key in enumerate(("accuracy", "nll", "calibration_error")):
            low, high = getattr(result, key).interval
            covered[column] += low <= getattr(second, key) - getattr(first, key) <= high
    assert (covered / runs >= 0.90).all(), covered / runs  # 0.95 less three standard errors of 200 runs
    assert (covered / runs <= 0.995).all(), covered / runs


def test_compare_finds_no_more_gains_between_equals_than_it_should():
    wins = sum(compare(*world(300, seed), resamples=20).significant for seed in range(400))
    assert 0 < wins / 400 <= 0.05
