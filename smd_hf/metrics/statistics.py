"""
Scores of models and paired comparisons of two models, computed from their logits.

Two models are compared image by image. The difficulty of the images cancels, so a gain much smaller than the error bar of
either accuracy can be told from chance. Everything uses numpy and scipy. Sums are in float64, randomness is seeded, and rows
are processed in blocks, which bounds the memory for up to a million images.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from ..errors import SMDError

BINS = 15
RESAMPLES = 5000
_BLOCK_ELEMENTS = 2**21  # numbers held at once, in logits or in resampling weights: 16 MiB of float64
_MAX_UNITS = 20_000  # images are pooled into at most this many units before resampling


@dataclass(frozen=True)
class Reliability:
    """
    Confidence and accuracy in equal-width bins of the confidence. Made by `reliability`.

    Args:
        confidence (`np.ndarray` of shape `(bins,)`): mean of the largest probability; NaN for an empty bin.
        accuracy (`np.ndarray` of shape `(bins,)`): share of right predictions; NaN for an empty bin.
        count (`np.ndarray` of shape `(bins,)`): number of images.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class Scores:
    """
    Scores of one model on one set of images.

    Args:
        n (`int`): number of images.
        accuracy (`float`): share of right predictions, 0 to 1.
        nll (`float`): mean negative log-likelihood of the labels, in nats.
        calibration_error (`float`): expected calibration error, 0 to 1; see `calibration_error`.
    """

    n: int
    accuracy: float
    nll: float
    calibration_error: float

    @classmethod
    def from_logits(cls, logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> "Scores":
        return _Outcomes.of(logits, labels, bins).scores()


@dataclass(frozen=True)
class Difference:
    """
    Second model minus first.

    Args:
        estimate (`float`): the difference as measured.
        interval (`tuple[float, float]`): its confidence interval; NaN if the difference is not finite.
    """

    estimate: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """
    Comparison of two models on the same images. Made by `compare`. Every difference is candidate minus baseline.

    Args:
        names (`tuple[str, str]`): names of baseline and candidate in the verdict.
        baseline, candidate (`Scores`): scores of each model.
        accuracy, nll, calibration_error (`Difference`): the paired differences.
        only_baseline_correct, only_candidate_correct (`int`): number of images that only one of the two got right.
        p_value (`float`): McNemar's exact test of these two counts.
        confidence (`float`): level of the intervals, `1 - alpha`.
        significant (`bool`): the candidate is more accurate and `p_value < alpha`.
        verdict (`str`): one sentence, begins with "significant gain", "no significant gain" or "significant loss".
    """

    names: tuple[str, str]
    baseline: Scores
    candidate: Scores
    accuracy: Difference
    nll: Difference
    calibration_error: Difference
    only_baseline_correct: int
    only_candidate_correct: int
    p_value: float
    confidence: float
    significant: bool
    verdict: str


# ---------------------------------------------------------------------------------------------------- one model


def log_softmax64(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, in float64. Log-probabilities as input are unchanged, and -inf stays -inf."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        return special.log_softmax(np.asarray(logits, dtype=np.float64), axis=-1)


def _two_log_probs(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The label's value of [`log_softmax64`] and the largest, equal to the bit: float64, each of shape `(n,)`."""
    logits = np.asarray(logits, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        largest = logits.max(axis=1)
        shift = np.where(np.isfinite(largest), largest, 0.0)
        own = logits[np.arange(len(labels)), labels.astype(np.int64)] - shift
        terms = np.subtract(logits, shift[:, None])
        log_sum = np.log(np.exp(terms, out=terms).sum(axis=1))
        return own - log_sum, (largest - shift) - log_sum


def largest_log_prob(logits: np.ndarray) -> np.ndarray:
    """The largest value of [`log_softmax64`], equal to the bit: float64, of shape `(n,)`; NaN for a row with NaN."""
    first = np.zeros(len(logits), dtype=np.int64)
    parts = [_two_log_probs(logits[rows], first[rows])[1] for rows in row_blocks(*logits.shape)]
    return np.concatenate([np.empty(0), *parts])


def nll(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Negative log-likelihood of each label, `-log softmax(logits)[label]`, in nats.

    Args:
        logits (`np.ndarray` of shape `(n, classes)`): logits or log-probabilities, any float dtype.
        labels (`np.ndarray` of shape `(n,)`): integers from 0 to classes - 1.

    Returns:
        `np.ndarray` of shape `(n,)`, float64.

    Raises:
        `SMDError`: if shapes do not match, there is no image, or a label is not one of the classes.
    """
    return _Outcomes.of(logits, labels).nll


def correct(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the largest logit (the first in a tie) is the label's: bool of shape `(n,)`. A row with NaN is wrong."""
    return _Outcomes.of(logits, labels).correct


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of right predictions, 0 to 1."""
    return float(correct(logits, labels).mean())


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Reliability:
    """Mean confidence, accuracy and number of images in `bins` equal-width bins of the largest probability."""
    outcomes = _Outcomes.of(logits, labels, bins)
    count = np.bincount(outcomes.bin, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(outcomes.bin, weights=outcomes.confidence, minlength=bins) / count
        right = np.bincount(outcomes.bin, weights=outcomes.correct, minlength=bins) / count
    return Reliability(confidence=confidence, accuracy=right, count=count)


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """
    Expected calibration error: `sum_b (n_b / n) |accuracy_b - confidence_b|` over equal-width bins `(lo, hi]` of the
    largest probability (Guo et al. 2017, arXiv 1706.04599, equation 3). 0 is perfect, 1 the worst.
    """
    return _Outcomes.of(logits, labels, bins).scores().calibration_error


@dataclass(frozen=True)
class _Outcomes:
    """For each image: the label's NLL, the largest probability and its bin, and whether the prediction is right."""

    nll: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray
    bin: np.ndarray
    bins: int

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> "_Outcomes":
        logits, labels = np.asarray(logits), np.asarray(labels)
        if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.size == 0:
            raise SMDError(
                f"Cannot score logits of shape {logits.shape} against labels of shape {labels.shape}: expected "
                "(images, classes) and (images,), with at least one image and one class."
            )
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise SMDError(
                f"Labels must be integers from 0 to {logits.shape[1] - 1}, one of the model's {logits.shape[1]} classes, "
                f"but they are {labels.dtype} from {labels.min()} to {labels.max()}. Map them to the model's label2id."
            )
        loss, confidence, right = np.empty(len(labels)), np.empty(len(labels)), np.empty(len(labels), dtype=bool)
        for rows in row_blocks(*logits.shape):
            own, largest = _two_log_probs(logits[rows], labels[rows])
            loss[rows], confidence[rows] = -own, np.exp(largest)
            right[rows] = (logits[rows].argmax(axis=1) == labels[rows]) & ~np.isnan(largest)
        # (lo, hi] as in the paper. A NaN confidence sorts behind the last edge and goes into the last bin.
        index = np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1
        return cls(loss, confidence, right, np.clip(index, 0, bins - 1), bins)

    def scores(self) -> Scores:
        gap = np.bincount(self.bin, weights=self.correct - self.confidence, minlength=self.bins)
        return Scores(
            n=len(self.nll),
            accuracy=float(self.correct.mean()),
            nll=float(self.nll.mean()),
            calibration_error=float(np.abs(gap).sum() / len(self.nll)),
        )


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices that cover `rows` rows in order. Each slice is small enough to hold its rows of `columns` float64 at once."""
    step = max(1, _BLOCK_ELEMENTS // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


# --------------------------------------------------------------------------------------------------- two models


def mcnemar_exact(correct_a: np.ndarray, correct_b: np.ndarray) -> tuple[int, int, float]:
    """
    McNemar's exact test: are two models right equally often on the same images?

    Only images that exactly one model got right count. If neither model is better, each such image is a fair coin. The
    p-value is that of the two-sided binomial test (McNemar 1947, Psychometrika 12; exact form). It is 1 for a tie.

    Args:
        correct_a, correct_b (`np.ndarray` of shape `(n,)`): bool, in the same order of images.

    Returns:
        `tuple[int, int, float]`: number of images that only a got right, number that only b got right, and the p-value.
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.shape != b.shape:
        raise SMDError(
            f"A paired test needs the same images for both models, but got {a.shape} and {b.shape} predictions."
        )
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    if only_a == only_b:
        return only_a, only_b, 1.0
    return only_a, only_b, float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


def compare(
    logits_baseline: np.ndarray,
    logits_candidate: np.ndarray,
    labels: np.ndarray,
    *,
    names: tuple[str, str] = ("parent", "evolved"),
    alpha: float = 0.05,
    bins: int = BINS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """
    Compares two models on the same images: scores, paired differences with intervals, McNemar's test and a verdict.

    McNemar's exact p-value alone decides whether the gain is significant. Accuracy and NLL have percentile bootstrap
    intervals. The calibration error is biased upwards on few images, because it is a sum of absolute values, and each
    resampling adds that bias again. Its interval is therefore the basic one, `2 estimate - percentiles`, which removes the
    bias. In simulated experiments, in which an overconfident parent becomes calibrated, percentile intervals covered the
    truth in 58 to 68 % of cases and basic intervals in 92 to 96 %.

    Args:
        logits_baseline, logits_candidate (`np.ndarray` of shape `(n, classes)`): logits or log-probabilities.
        labels (`np.ndarray` of shape `(n,)`): integers from 0 to classes - 1.
        names (`tuple[str, str]`, *optional*, defaults to `("parent", "evolved")`): names in the verdict.
        alpha (`float`, *optional*, defaults to 0.05): level of the test; the intervals have level `1 - alpha`.
        bins (`int`, *optional*, defaults to 15): bins of the calibration error.
        resamples (`int`, *optional*, defaults to 5000): number of bootstrap samples.
        seed (`int`, *optional*, defaults to 0): seed of the bootstrap.

    Raises:
        `SMDError`: if shapes do not match, or a label is not one of the classes.
    """
    a, b = (_Outcomes.of(logits, labels, bins) for logits in (logits_baseline, logits_candidate))
    baseline, candidate = a.scores(), b.scores()
    only_a, only_b, p_value = mcnemar_exact(a.correct, b.correct)
    gain = only_b - only_a

    with np.errstate(invalid="ignore"):
        columns = np.stack([b.correct.astype(np.float64) - a.correct, b.nll - a.nll], axis=1)
        means = _resampled_means(columns, gaps=(a, b), resamples=resamples, seed=seed)
        errors = np.abs(means[:, 2 + bins :]).sum(axis=1) - np.abs(means[:, 2 : 2 + bins]).sum(axis=1)
        error = candidate.calibration_error - baseline.calibration_error
        # Rounded so that equal models differ by exactly zero: a matrix product may sum equal columns in different orders.
        low, high = _percentiles(np.round(errors, 12), 1 - alpha)
        accuracy_difference = Difference(gain / baseline.n, _percentiles(means[:, 0], 1 - alpha))
        nll_difference = Difference(candidate.nll - baseline.nll, _percentiles(means[:, 1], 1 - alpha))
        calibration_difference = Difference(error, (2 * error - high, 2 * error - low))

    return Comparison(
        names=names,
        baseline=baseline,
        candidate=candidate,
        accuracy=accuracy_difference,
        nll=nll_difference,
        calibration_error=calibration_difference,
        only_baseline_correct=only_a,
        only_candidate_correct=only_b,
        p_value=p_value,
        confidence=1 - alpha,
        significant=p_value < alpha and gain > 0,
        verdict=_verdict(names, gain, baseline.n, accuracy_difference, nll_difference, p_value, alpha),
    )


def _resampled_means(
    columns: np.ndarray, *, gaps: tuple[_Outcomes, ...] = (), resamples: int, seed: int
) -> np.ndarray:
    """
    Bootstrap means (Efron and Tibshirani 1993, chapter 13) of `columns` of shape `(n, k)`, and of `bins` further columns for
    each model in `gaps`.

    These hold correct - confidence in the image's bin and zero in the others. The result has the shape
    `(resamples, k + bins of all gaps)`. Everything is a mean over images, so one product of resampling counts and per-unit
    sums computes all statistics at once. Above 20,000 images, random groups of images are drawn instead of images. Their
    means have the same variance, and cost and memory stay bounded.
    """
    rng = np.random.default_rng(seed)
    n = len(columns)
    units = min(n, _MAX_UNITS)
    unit = np.arange(n) if n == units else rng.permutation(n) % units
    sums = [np.bincount(unit, minlength=units)[:, None]]
    sums += [np.bincount(unit, weights=column, minlength=units)[:, None] for column in columns.T]
    for model in gaps:
        cell = unit * model.bins + model.bin
        gap = np.bincount(cell, weights=model.correct - model.confidence, minlength=units * model.bins)
        sums.append(gap.reshape(units, model.bins))
    sums = np.concatenate(sums, axis=1)

    means = np.empty((resamples, sums.shape[1] - 1))
    for rows in row_blocks(resamples, units):
        count = len(range(*rows.indices(resamples)))
        drawn = rng.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units)
        with np.errstate(invalid="ignore"):
            totals = weights.astype(np.float64) @ sums
        means[rows] = totals[:, 1:] / totals[:, :1]  # pooled units may differ by one image in size
    return means


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    if not np.isfinite(values).all():
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _verdict(
    names: tuple[str, str], gain: int, n: int, accuracy: Difference, nll: Difference, p_value: float, alpha: float
) -> str:
    level = f"{100 * (1 - alpha):g} % interval"
    kept = "the parent" if names[0] == "parent" else names[0]
    low, high = accuracy.interval
    numbers = (
        f"accuracy {100 * accuracy.estimate:+.2f} percentage points, {level} {100 * low:+.2f} to {100 * high:+.2f}, "
        f"exact McNemar {format_p(p_value)}, {n:,} images"
    )
    low, high = nll.interval
    likelihood = f"NLL {nll.estimate:+.4f}, {level} {low:+.4f} to {high:+.4f}"
    if p_value < alpha and gain > 0:
        note = f"; its likelihood is worse ({likelihood})" if low > 0 else ""
        return f"significant gain: {names[1]} is more accurate than {names[0]} ({numbers}){note}."
    if p_value < alpha:
        note = f"; its likelihood is better, though ({likelihood})" if high < 0 else ""
        return f"significant loss: keep {kept} ({numbers} for {names[1]}){note}."
    note = f"; {names[1]} has the better likelihood, though ({likelihood})" if high < 0 else ""
    return f"no significant gain: keep {kept} ({numbers} for {names[1]}){note}."


def format_p(p_value: float) -> str:
    """`p = 0.031`, or `p < 0.0001`."""
    return "p < 0.0001" if p_value < 1e-4 else f"p = {p_value:.2g}"
