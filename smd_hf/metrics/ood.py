"""
Out-of-distribution detection: how well a model's confidence separates in-distribution from out-of-distribution images.

The labels of the out-of-distribution images have no effect. An image's score is its largest probability (Hendrycks and
Gimpel 2017), or the log of the sum of the exponentials of its logits, its negative energy at temperature 1 (Liu et al.
2020). Both should be greater for in-distribution images. The metric is the area under the ROC curve (AUROC): the probability
that they are.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score

from .statistics import largest_log_prob, row_blocks


def max_softmax(logits: np.ndarray) -> np.ndarray:
    """The log of the largest probability, float64, of shape `(n,)`. Unlike the probability, it never rounds to 1."""
    return largest_log_prob(logits)


def negative_energy(logits: np.ndarray) -> np.ndarray:
    """The log of the sum of exponentials of logits of shape `(n, num_labels)`, float64, of shape `(n,)`."""
    parts = [logsumexp(logits[rows].astype(np.float64), axis=-1) for rows in row_blocks(*logits.shape)]
    return np.concatenate([np.empty(0), *parts])


OOD_METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ood_auroc": max_softmax,
    "ood_energy_auroc": negative_energy,
}
"""Names of the metrics (greater is better) and the score of an image that each uses."""


def auroc(name: str, known: np.ndarray, ood: np.ndarray) -> float:
    """
    The probability that an in-distribution image scores higher than an out-of-distribution image. Ties count half.

    Args:
        known, ood (`numpy.ndarray`): logits of shapes `(n, num_labels)` and `(m, num_labels)`, all finite.
    """
    score = OOD_METRICS[name]
    is_known = np.repeat([1, 0], [len(known), len(ood)])
    return float(roc_auc_score(is_known, np.concatenate([score(known), score(ood)])))


Pair = tuple[np.ndarray, np.ndarray]
"""A model's logits on in-distribution and on out-of-distribution images."""


def compare_auroc(parent: Pair, evolved: Pair, confidence: float = 0.95) -> dict[str, dict[str, Any] | None]:
    """
    AUROC of two models on the same images, and the difference with its interval (DeLong et al. 1988, as in Sun and Xu 2014).

    Returns:
        `dict`: for each metric by name, `parent`, `evolved`, `difference` and `interval`; `None` if a logit is not finite.
    """
    if not all(np.isfinite(logits).all() for logits in (*parent, *evolved)):
        return dict.fromkeys(OOD_METRICS)
    compared: dict[str, dict[str, Any] | None] = {}
    for name, score in OOD_METRICS.items():
        shares = [placements(score(known), score(ood)) for known, ood in (parent, evolved)]
        before, after = (auroc(name, *each) for each in (parent, evolved))
        # The sum of the variances of the means over the two sets of images.
        variance = sum(np.var(b - a, ddof=1) / len(a) for a, b in zip(*shares) if len(a) > 1)
        reach = float(norm.ppf(0.5 + confidence / 2) * np.sqrt(variance))
        difference = after - before
        compared[name] = {
            "parent": before,
            "evolved": after,
            "difference": difference,
            "interval": [difference - reach, difference + reach],
        }
    return compared


def ood_lines(report: Mapping[str, Any] | None) -> list[str]:
    """The terminal's lines about out-of-distribution images, from a report with `images` and [`compare_auroc`]'s result."""
    if report is None:
        return []
    lines = []
    for name in OOD_METRICS:
        if report[name] is not None:
            entry = report[name]
            low, high = entry["interval"]
            lines.append(
                f"{name} on {report['images']['test']:,} out-of-distribution images: {entry['parent']:.4f} before, "
                f"{entry['evolved']:.4f} after; difference {entry['difference']:+.4f} ({low:+.4f} to {high:+.4f})."
            )
    return lines


def placements(known: np.ndarray, ood: np.ndarray) -> Pair:
    """For each image, the share of the other set that it is ranked correctly against. The mean over either set is the AUROC."""
    ranks = rankdata(np.concatenate([known, ood]))
    among_known, among_ood = rankdata(known), rankdata(ood)
    return (
        (ranks[: len(known)] - among_known) / len(ood),
        1 - (ranks[len(known) :] - among_ood) / len(known),
    )
