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
"""Names of scikit-learn that are built in here; `top_k_accuracy` with a number for `k`."""


class _Predictions(ClassifierMixin, BaseEstimator):
    """Logits as a classifier of scikit-learn, of which a scorer asks for classes or for probabilities."""

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
    The scorers for classification, by name; all are better when greater.

    They are those of `sklearn.metrics.get_scorer_names()` that are not about regression, clusters or several labels an image,
    and Cohen's kappa, which has no name there.
    """
    named = {name: get_scorer(name) for name in get_scorer_names() if name not in ELSEWHERE}
    kinds = {name: scorer._score_func.__module__.rpartition(".")[2] for name, scorer in named.items()}
    scorers = {name: named[name] for name, kind in kinds.items() if kind in ("_classification", "_ranking")}
    scorers = {name: scorer for name, scorer in scorers.items() if not name.endswith("_samples")}
    return scorers | {"cohen_kappa_score": make_scorer(cohen_kappa_score)}


def sklearn_metric(name: str) -> Callable[[np.ndarray, np.ndarray], float] | None:
    """
    A metric of scikit-learn, from logits `(n, num_labels)` and labels `(n,)` to a number that is better when greater.

    Args:
        name (`str`): one of [`sklearn_scorers`].

    Returns:
        `Callable` or `None`: `None` if there is no such scorer. It raises [`SMDError`] where scikit-learn refuses the
        labels, such as a binary metric those of more classes.
    """
    scorer = sklearn_scorers().get(name)
    if scorer is None:
        return None

    def metric(logits: np.ndarray, labels: np.ndarray) -> float:
        try:
            with warnings.catch_warnings():
                # scikit-learn says of every child where a class is never predicted.
                warnings.simplefilter("ignore")
                return float(scorer(_Predictions(logits.shape[1]), logits, labels))
        except ValueError as error:
            raise SMDError(
                f"The metric '{name}' of scikit-learn refuses these images and a model of {logits.shape[1]} labels "
                f"({one_line(str(error))}). Choose one for any number of classes, such as f1_macro, roc_auc_ovr or "
                "matthews_corrcoef; metrics of probabilities need an image of each class."
            ) from error

    return metric
