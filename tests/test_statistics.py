"""Statistics against scipy, scikit-learn, statsmodels and plain loops on random data, and against simulated truth."""

import math
import warnings
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.metrics import accuracy_score, log_loss
from statsmodels.stats.contingency_tables import mcnemar

from smd_hf.errors import SMDError
from smd_hf.statistics import (
    Scores,
    accuracy,
    calibration_error,
    compare,
    correct,
    disagreement,
    expected_maximum,
    expected_optimism,
    log_softmax64,
    mcnemar_exact,
    mean_pairwise_kl,
    nll,
    output_correlation,
    paired_interval,
    reliability,
)


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
    members = np.stack([logits, 0.5 * logits, -logits])
    whole = nll(logits, labels), Scores.from_logits(logits, labels)
    whole_diversity = mean_pairwise_kl(members), output_correlation(members)
    intervals = compare(logits, 0.5 * logits, labels, resamples=200)
    monkeypatch.setattr("smd_hf.statistics._BLOCK_ELEMENTS", 64)
    np.testing.assert_array_equal(nll(logits, labels), whole[0])
    assert Scores.from_logits(logits, labels) == whole[1]
    assert (mean_pairwise_kl(members), output_correlation(members)) == pytest.approx(whole_diversity, rel=1e-12)
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
    with pytest.raises(SMDError, match="one value per image"):
        paired_interval(np.ones(3), np.ones(4))


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
        ((0.2, 2.0), (1, 1), "significant loss: keep the twin", "McNemar p < 0.0001"),
        ((0.5, 0.5), (3, 1), "no significant gain: keep the twin", "soup has the better likelihood, though (NLL -"),
        ((2.0, 0.5), (0.5, 6), "significant gain", "its likelihood is worse (NLL +"),
        ((0.5, 2.0), (8, 0.5), "significant loss", "its likelihood is better all the same (NLL -"),
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


def null_answers(rng, images, children, base=0.8, flip=0.03):
    """A parent and children that are no better: each differs from the parent's answers on 3 % of images, in balance."""
    parent = rng.random(images) < base
    easy = rng.random((children, images)) < np.where(parent, flip / 2 / base, flip / 2 / (1 - base))
    return parent, parent ^ easy


def test_the_best_of_null_children_wins_at_most_5_percent_of_test_splits():
    rng = np.random.default_rng(9)
    wins, runs, apparent = 0, 400, []
    for _ in range(runs):
        parent, children = null_answers(rng, 600, 32)
        gains = children.mean(axis=1) - parent.mean()
        apparent.append(gains.max())
        parent, children = null_answers(rng, 1000, 1)  # the chosen child, on a test split that was not looked at
        only_parent, only_child, p_value = mcnemar_exact(parent, children[0])
        wins += p_value < 0.05 and only_child > only_parent
    assert wins / runs <= 0.05
    assert np.mean(apparent) > 0.01  # where it was chosen, the same child seems a percentage point better
    predicted = expected_optimism(32, 600, 0.8, discordance=0.03)
    assert np.mean(apparent) <= predicted * 1.02  # an upper bound,
    assert np.mean(apparent) >= predicted * 0.8  # and a close one


def test_compare_finds_no_more_gains_between_equals_than_it_should():
    wins = sum(compare(*world(300, seed), resamples=20).significant for seed in range(400))
    assert 0 < wins / 400 <= 0.05


@pytest.mark.parametrize("k", [1, 2, 5, 64])
def test_expected_maximum_agrees_with_simulation(k):
    draws = np.random.default_rng(10).normal(size=(40_000, k)).max(axis=1)
    assert expected_maximum(k) == pytest.approx(draws.mean(), abs=4 * draws.std() / 200)
    floored = np.maximum(draws, 0)
    assert expected_maximum(k, floor=True) == pytest.approx(floored.mean(), abs=4 * floored.std() / 200)


def test_expected_maximum_agrees_with_closed_forms():
    assert expected_maximum(1) == pytest.approx(0, abs=1e-9)
    assert expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi))
    assert expected_maximum(3) == pytest.approx(1.5 / math.sqrt(math.pi))
    assert expected_maximum(1, floor=True) == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert expected_maximum(10**6) == pytest.approx(4.863, abs=0.001)


def test_expected_optimism():
    assert expected_optimism(64, 2000, 0.8, discordance=0.03) == pytest.approx(0.009, abs=3e-4)
    assert expected_optimism(64, 2000, 0.8) == expected_optimism(64, 2000, 0.8, discordance=0.32)
    assert expected_optimism(64, 8000, 0.8) == pytest.approx(expected_optimism(64, 2000, 0.8) / 2)
    assert (
        expected_optimism(1, 100, 0.5, keeps_parent=True)
        > expected_optimism(1, 100, 0.5)
        == pytest.approx(0, abs=1e-9)
    )
    for bad in ((0, 10, 0.5), (2, 0, 0.5), (2, 10, 1.5)):
        with pytest.raises(SMDError):
            expected_optimism(*bad)
    with pytest.raises(SMDError, match="discordance"):
        expected_optimism(2, 10, 0.5, discordance=-0.1)


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


def test_diversity_at_its_ends():
    logits, _, _ = world(50, seed=11)
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
