"""Metrics of scikit-learn by name, computed from logits."""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import cohen_kappa_score, get_scorer, get_scorer_names, make_scorer

from ..errors import SMDError
from ..messages import one_line
from .statistics import log_softmax64

ELSEWHERE = ("accuracy", "top_k_accuracy")
"""scikit-learn's names of metrics that smd_hf has built in (`top_k_accuracy` with a number for `k`)."""


class _Predictions(ClassifierMixin, BaseEstimator):
    """Wraps logits as a scikit-learn classifier, so that a scorer can get classes or probabilities."""

    def __init__(self, num_labels: int):
        self.num_labels = num_labels
        self.classes_ = np.arange(num_labels)

    def predict(self, logits: np.ndarray) -> np.ndarray:
        return logits.argmax(-1)

    def predict_proba(self, logits: np.ndarray) -> np.ndarray:
        return np.exp(log_softmax64(logits))


@cache
def sklearn_scorers() -> dict[str, Any]:
    """
    scikit-learn's classification scorers by name. For all of them, greater is better.

    They include the scorers in `sklearn.metrics.get_scorer_names()`, except scorers for regression, clusters or several labels
    per image, and Cohen's kappa, which has no name there.
    """
    named = {name: get_scorer(name) for name in get_scorer_names() if name not in ELSEWHERE}
    kinds = {name: scorer._score_func.__module__.rpartition(".")[2] for name, scorer in named.items()}
    scorers = {name: named[name] for name, kind in kinds.items() if kind in ("_classification", "_ranking")}
    scorers = {name: scorer for name, scorer in scorers.items() if not name.endswith("_samples")}
    return scorers | {"cohen_kappa_score": make_scorer(cohen_kappa_score)}


def sklearn_metric(name: str) -> Callable[[np.ndarray, np.ndarray], float] | None:
    """
    A metric of scikit-learn. It maps logits `(n, num_labels)` and labels `(n,)` to a number. Greater is better.

    Returns:
        `Callable` or `None`: `None` if there is no such scorer. The metric raises [`SMDError`] if scikit-learn rejects the
        labels: a binary metric rejects more than two classes, for example.
    """
    scorer = sklearn_scorers().get(name)
    if scorer is None:
        return None

    def metric(logits: np.ndarray, labels: np.ndarray) -> float:
        try:
            with warnings.catch_warnings():
                # scikit-learn warns for every child that never predicts some class.
                warnings.simplefilter("ignore")
                return float(scorer(_Predictions(logits.shape[1]), logits, labels))
        except ValueError as error:
            raise SMDError(
                f"The metric '{name}' of scikit-learn does not fit these images and a model with {logits.shape[1]} labels "
                f"({one_line(str(error))}). Choose one for any number of classes, for example f1_macro, roc_auc_ovr or "
                "matthews_corrcoef. Metrics of probabilities need an image of each class."
            ) from error

    return metric


def check_number_of_classes(name: str, num_labels: int) -> None:
    """
    Refuses a metric of scikit-learn that does not fit the number of classes: `f1` and `roc_auc` are binary, for example.

    Raises:
        `SMDError`: as the metric itself would, but before anything is scored. It is tried on two right predictions of each class.
    """
    metric = sklearn_metric(name)
    if metric is not None:
        labels = np.repeat(np.arange(num_labels), 2)
        metric(np.eye(num_labels)[labels], labels)
