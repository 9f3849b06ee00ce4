"""
Classification metrics by name, which `--fitness` accepts besides `nll` and `accuracy`: built-in metrics, and metrics of
scikit-learn (see `sklearn_metrics.py`) and `evaluate`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import EvalPrediction
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..errors import SMDError
from ..messages import one_line
from .sklearn_metrics import check_number_of_classes, sklearn_metric
from .statistics import calibration_error, log_softmax64, row_blocks

logger = logging.get_logger(__name__)

Metric = Callable[[np.ndarray, np.ndarray], float]
"""Maps logits `(n, num_labels)` and labels `(n,)` to a number."""

ComputeMetrics = Callable[[EvalPrediction], Mapping[str, float]]

METRICS = ("macro_f1", "balanced_accuracy", "top_k_accuracy", "calibration_error", "expected_cost", "error")
"""Names of the built-in metrics. `top_k_accuracy` takes a number for `k`: `top_5_accuracy`."""


def error(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of images that are misclassified."""
    return float(np.mean(logits.argmax(-1) != labels))


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """
    The share of images whose label is among the `k` most likely classes.

    Args:
        logits (`numpy.ndarray`): of shape `(n, num_labels)`.
        labels (`numpy.ndarray`): of shape `(n,)`.
    """
    if k >= logits.shape[1]:
        raise SMDError(
            f"top_{k}_accuracy of a model with {logits.shape[1]} labels is always 1. Choose a smaller number, or accuracy."
        )
    hits = np.zeros(len(labels), dtype=bool)
    known = np.flatnonzero((labels >= 0) & (labels < logits.shape[1]))
    for rows in row_blocks(len(known), logits.shape[1]):
        hits[known[rows]] = ranks(logits[known[rows]], labels[known[rows]]) < k
    return float(hits.mean())


def ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    The number of classes that are more likely than the label, int64, of shape `(n,)`, without sorting.

    Among equal logits, the class with the greater index counts as more likely. NaN counts as greater than any number.

    Args:
        logits (`numpy.ndarray`): of shape `(n, num_labels)`.
        labels (`numpy.ndarray`): of shape `(n,)`, from 0 to `num_labels - 1`.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    # Count the logits that are not greater, so that NaN counts as greater.
    greater = logits.shape[1] - np.count_nonzero(logits <= own, axis=1)
    equal = logits == own
    # Both comparisons are false for NaN. Ties are rare, so they are resolved row by row.
    for row in np.flatnonzero((np.count_nonzero(equal, axis=1) > 1) | np.isnan(own[:, 0])):
        label = labels[row]
        if np.isnan(own[row, 0]):
            greater[row] = np.count_nonzero(np.isnan(logits[row, label + 1 :]))
        else:
            greater[row] += np.count_nonzero(equal[row, label + 1 :])
    return greater


def expected_cost(logits: np.ndarray, labels: np.ndarray, cost_matrix: Sequence[Sequence[float]]) -> float:
    """
    The mean cost of the predicted classes.

    Args:
        logits (`numpy.ndarray`): of shape `(n, num_labels)`.
        labels (`numpy.ndarray`): of shape `(n,)`.
        cost_matrix (array of shape `(num_labels, num_labels)`): entry [i, j] is the cost of predicting class j for an image of
            class i.
    """
    costs = np.asarray(cost_matrix, dtype=np.float64)
    if costs.shape != (logits.shape[1],) * 2:
        raise SMDError(
            f"cost_matrix has shape {costs.shape}, but the model has {logits.shape[1]} labels: expected one row and one column "
            "per label."
        )
    return float(costs[labels, logits.argmax(-1)].mean())


def builtin_metric(name: str, cost_matrix: str | None = None) -> Metric | None:
    """Returns the built-in metric with this name, or `None` if there is none."""
    if top := re.fullmatch(r"top_([1-9]\d*)_accuracy", name):
        return lambda logits, labels: top_k_accuracy(logits, labels, int(top[1]))
    if name == "expected_cost":
        if cost_matrix is None:
            raise SMDError(
                "fitness='expected_cost' needs a cost_matrix: a JSON list of rows, for example [[0, 1], [5, 0]]. Entry [i, j] "
                "is the cost of predicting class j for an image of class i."
            )
        costs = parse_cost_matrix(cost_matrix)
        return lambda logits, labels: expected_cost(logits, labels, costs)
    if name in ("macro_f1", "balanced_accuracy"):
        return sklearn_metric(name.replace("macro_f1", "f1_macro"))
    return {"error": error, "calibration_error": calibration_error}.get(name)


def parse_cost_matrix(text: str) -> list[list[float]]:
    """Reads a cost matrix from JSON. Raises [`SMDError`] if it is not a square matrix of finite numbers."""
    try:
        costs = json.loads(text)
        square = np.asarray(costs, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SMDError(
            f"cost_matrix is not a matrix in JSON ({error}). Give a list of rows, for example [[0, 1], [5, 0]]."
        ) from error
    if square.ndim != 2 or square.shape[0] != square.shape[1] or not np.isfinite(square).all():
        raise SMDError(
            f"cost_matrix has shape {square.shape} or entries that are not finite. Give a square matrix of finite numbers, for "
            "example [[0, 1], [5, 0]]."
        )
    return costs


class EvaluateMetric:
    """
    A metric of `evaluate`, usable as `compute_metrics`.

    The metric gets the inputs that it declares: predicted classes as `predictions`, or probabilities as `prediction_scores`.

    Args:
        options (mapping, *optional*): passed to the metric's `compute`, for example `{"average": "macro"}`. The entry
            `config_name` is passed to `evaluate.load`.

    Raises:
        `SMDError`: if the metric cannot be loaded, or needs `trust_remote_code`.
    """

    def __init__(self, name_or_path: str, options: Mapping[str, Any] | None = None, trust_remote_code: bool = False):
        import evaluate

        self.name = name_or_path
        self.options = dict(options or {})
        local = Path(name_or_path).expanduser()
        if not local.exists() and not trust_remote_code:
            raise SMDError(
                f"metric_name_or_path='{name_or_path}' is not a local file or folder, and a metric of the Hub is a Python file "
                "that would run here. Turn on trust_remote_code if you trust it, give the path of a copy of its script, or "
                f"choose a built-in fitness: {', '.join(METRICS)} (top_k_accuracy needs a number: top_5_accuracy)."
            )
        try:
            self.metric = evaluate.load(
                str(local) if local.exists() else name_or_path,
                self.options.pop("config_name", None),
                keep_in_memory=True,
            )
        # A download, or the script while it is imported, may raise anything.
        except Exception as error:
            raise SMDError(
                f"metric_name_or_path='{name_or_path}' cannot be loaded ({type(error).__name__}: {one_line(str(error))}). "
                "`evaluate` downloads the script of a metric from the Hub: check the name and the connection, copy the script "
                "here and give its path, install the packages that it imports, or choose a built-in fitness: "
                f"{', '.join(METRICS)} (top_k_accuracy needs a number: top_5_accuracy)."
            ) from error

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        logits = _logits(prediction)
        names = self.metric.features[0] if isinstance(self.metric.features, list) else self.metric.features
        if "prediction_scores" in names:
            inputs = {"prediction_scores": np.exp(log_softmax64(logits))}
        else:
            inputs = {"predictions": logits.argmax(-1)}
        try:
            return self.metric.compute(**inputs, references=prediction.label_ids, **self.options) or {}
        except (TypeError, ValueError) as error:
            raise SMDError(
                f"The metric '{self.name}' rejects its inputs ({one_line(str(error))}). Pass the metric's options in "
                'metric_kwargs, for example \'{"average": "macro"}\' for f1 with more than two classes.'
            ) from error

    def first_key(self) -> str:
        """The first key that the metric returns for four images of two classes."""
        labels = np.array([0, 1, 0, 1])
        return next(iter(self(EvalPrediction(predictions=np.eye(2)[[0, 1, 1, 0]], label_ids=labels))))


def named_metrics(args: EvolutionArguments, has_own: bool = False) -> ComputeMetrics | None:
    """
    Makes a `compute_metrics` of the metrics that the arguments name: a metric of `evaluate`, and the fitness or objectives.

    If `metric_name_or_path` is given and no fitness is chosen, the metric's first key becomes `args.fitness`.

    Args:
        has_own (`bool`, *optional*, defaults to `False`): whether the user passes a `compute_metrics`. Names then refer to its
            keys, not to scikit-learn's metrics.

    Returns:
        `Callable` or `None`: `None` if the arguments name no metric.

    Raises:
        `SMDError`: if a metric cannot be loaded, or the cost matrix is missing.
    """
    parts: list[ComputeMetrics] = []
    if args.metric_name_or_path is not None:
        loading = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
        options = args.metric_kwargs if isinstance(args.metric_kwargs, dict) else None
        metric = EvaluateMetric(args.metric_name_or_path, options, bool(loading.get("trust_remote_code", False)))
        if not args.was_chosen("fitness"):
            args.fitness = metric.first_key()
            logger.info(f"Fitness is '{args.fitness}', the first key of the metric '{args.metric_name_or_path}'.")
        parts.append(metric)
        has_own = True
    found: dict[str, Metric] = {}
    for name in (name.removeprefix("eval_") for name in args.objectives or [args.fitness]):
        metric = builtin_metric(name, args.cost_matrix) or (None if has_own else sklearn_metric(name))
        if metric is not None:
            found[name] = metric
    if found:
        parts.append(
            lambda prediction: {
                name: metric(_logits(prediction), np.asarray(prediction.label_ids)) for name, metric in found.items()
            }
        )
    return merged(*parts)


def check_scorers(args: EvolutionArguments, num_labels: int, has_own: bool = False) -> None:
    """
    Refuses a fitness or objective of scikit-learn that does not fit the number of classes, before anything is scored.

    Args:
        has_own (`bool`, *optional*, defaults to `False`): as for [`named_metrics`].
    """
    if has_own or args.metric_name_or_path is not None:
        return
    for name in (name.removeprefix("eval_") for name in args.objectives or [args.fitness]):
        if builtin_metric(name, args.cost_matrix) is None:
            check_number_of_classes(name, num_labels)


def merged(*parts: ComputeMetrics | None) -> ComputeMetrics | None:
    """Merges the results of several `compute_metrics` into one dict. If several return a key, the last one wins."""
    given = [part for part in parts if part is not None]
    if not given:
        return None

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        return {key: value for part in given for key, value in part(prediction).items()}

    return compute_metrics


def _logits(prediction: EvalPrediction) -> Any:
    return prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
