"""Compares two models on the same test images, for the entries of a report."""

from typing import Any

import numpy as np

from .resampling import Metric
from .statistics import Comparison, Difference, Scores, compare

CLASSIFICATION_METRICS = (
    Metric("accuracy", "accuracy (%)", 100, 2),
    Metric("nll", "NLL (nats)", 1, 4, greater_is_better=False),
    Metric("calibration_error", "calibration error (%)", 100, 2, greater_is_better=False),
)
"""What a report of single-label classification compares, in order."""


def measured(
    parent_logits: np.ndarray, logits: np.ndarray, labels: np.ndarray, name: str, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Compares a model with the parent on the test split.

    Args:
        parent_logits, logits (`np.ndarray` of shape `(n, classes)`), labels (`np.ndarray` of shape `(n,)`), seed (`int`): as
            for [`gain_report`].

    Returns:
        `tuple[dict, dict]`: the model's scores, and the paired difference with `significant` and `verdict`.
    """
    comparison = compare(parent_logits, logits, labels, names=("parent", name), seed=seed)
    difference = difference_entry(comparison)
    return scores_entry(comparison.candidate), difference | {
        "significant": comparison.significant,
        "verdict": comparison.verdict,
    }


def scores_entry(scores: Scores) -> dict[str, Any]:
    return {
        "n_test": scores.n,
        "accuracy": scores.accuracy,
        "nll": scores.nll,
        "calibration_error": scores.calibration_error,
    }


def difference_entry(comparison: Comparison) -> dict[str, Any]:
    def entry(difference: Difference) -> dict[str, Any]:
        return {"estimate": difference.estimate, "interval": list(difference.interval)}

    return {
        "accuracy": entry(comparison.accuracy),
        "nll": entry(comparison.nll),
        "calibration_error": entry(comparison.calibration_error),
        "mcnemar": {
            f"only_{comparison.names[0]}_correct": comparison.only_baseline_correct,
            f"only_{comparison.names[1]}_correct": comparison.only_candidate_correct,
            "p_value": comparison.p_value,
        },
    }
