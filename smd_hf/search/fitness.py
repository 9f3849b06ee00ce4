"""Computes the fitness of variants and ranks children by it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import EvalPrediction

from ..errors import SMDError
from ..messages import did_you_mean
from ..metrics.classification import METRICS
from ..metrics.ood import OOD_METRICS, auroc
from ..metrics.resampling import values
from ..metrics.sklearn_metrics import sklearn_scorers
from ..scoring.scores import Score
from ..tasks.protocol import MeasuredTask, metric_named, title_of
from .mutation import Child

LOWER_IS_BETTER_ENDINGS = ("nll", "loss", "error", "perplexity", "distance", "cost", "mse", "mae", "brier_score")


class Fitness:
    """
    The number that selection maximises, computed from a variant's score.

    Args:
        name (`str`): `"nll"`, `"accuracy"`, one of `OOD_METRICS`, or a key that `compute_metrics` returns, with or without the
            prefix `eval_`. [`~smd_hf.metrics.classification.named_metrics`] computes all other named metrics.
        compute_metrics (`Callable`, *optional*): as in Trainer. Maps an `EvalPrediction` (logits, labels) to a dict.
        greater_is_better (`bool`, *optional*): defaults to `False` for a name with one of the endings
            `LOWER_IS_BETTER_ENDINGS`, and to `True` for any other and for scikit-learn's names `neg_...` and `d2_...`.

    Raises:
        `SMDError`: if the name needs `compute_metrics` and there is none.
    """

    def __init__(
        self,
        name: str,
        compute_metrics: Callable[[EvalPrediction], Mapping[str, float]] | None = None,
        greater_is_better: bool | None = None,
    ):
        self.name = name.removeprefix("eval_")
        self.compute_metrics = compute_metrics
        self.needs_logits = self.name not in ("nll", "accuracy")
        self.needs_ood = self.name in OOD_METRICS
        if self.needs_logits and not self.needs_ood and compute_metrics is None:
            builtin = ("nll", "accuracy", *METRICS, *OOD_METRICS)
            raise SMDError(
                f"fitness='{name}' is not a built-in metric ({', '.join(builtin)}) or a classification scorer of scikit-learn "
                f"(f1_macro, for example), and there is no compute_metrics to return it."
                f"{did_you_mean(self.name, (*builtin, *sklearn_scorers()))} "
                "Choose one of these (top_k_accuracy needs a number: top_5_accuracy), name a metric of `evaluate` with "
                "metric_name_or_path, or pass compute_metrics to the trainer."
            )
        if greater_is_better is None or not self.needs_logits or self.needs_ood:
            # scikit-learn's metrics with these prefixes are better when greater: neg_log_loss, for example.
            turned = self.name.startswith(("neg_", "d2_"))
            greater_is_better = turned or not self.name.lower().endswith(LOWER_IS_BETTER_ENDINGS)
        self.greater_is_better = greater_is_better

    @property
    def label(self) -> str:
        """The label of a plot's axis: the metric's name, after "negative" if fitness is the negative metric."""
        return self.name if self.greater_is_better else f"negative {self.name}"

    @property
    def computes_metrics(self) -> bool:
        """Whether `compute_metrics` returns it."""
        return self.compute_metrics is not None and self.needs_logits and not self.needs_ood

    def value(self, score: Score, labels: np.ndarray, metrics: Mapping[str, float] | None = None) -> float:
        """
        The metric, in its own direction and units.

        Args:
            labels (`numpy.ndarray`): of the same images, of shape `(n,)`.
            metrics (mapping, *optional*): the result of `compute_metrics` on these images, if it is already known.

        Raises:
            `SMDError`: if `compute_metrics` does not return the key as one number.
        """
        if self.name == "nll":
            return score.nll
        if self.name == "accuracy":
            return score.accuracy
        if self.needs_ood:
            return auroc_of(self.name, score)
        if metrics is None:
            assert self.compute_metrics is not None  # checked in __init__
            metrics = self.compute_metrics(EvalPrediction(predictions=score.logits, label_ids=labels))
        for key in (self.name, f"eval_{self.name}"):
            if key in metrics:
                return as_number(key, metrics[key])
        raise SMDError(
            f"compute_metrics does not return fitness='{self.name}'. It returns: {', '.join(map(str, metrics))}. Choose one of "
            "these, 'nll' or 'accuracy'."
        )

    def __call__(self, score: Score, labels: np.ndarray, metrics: Mapping[str, float] | None = None) -> float:
        """
        The fitness: greater is better, and minus infinity if a logit or the metric is not finite.

        Takes the arguments of [`Fitness.value`].
        """
        if not score.finite:
            return float("-inf")
        value = self.value(score, labels, metrics)
        if not np.isfinite(value):
            return float("-inf")
        return value if self.greater_is_better else -value

    def raw(self, fitness: float) -> float:
        """Converts a fitness to the metric in its own direction."""
        return fitness if self.greater_is_better else -fitness


class MeasuredFitness(Fitness):
    """
    The fitness of a task other than image classification: one of its metrics.

    Args:
        name (`str`): a metric of the task, with or without the prefix `eval_`; `"nll"` is its loss.

    Raises:
        `SMDError`: if the task has no such metric.
    """

    def __init__(self, name: str, task: MeasuredTask):
        metric = metric_named(task.metrics, name)
        if metric is None:
            there = [each.key for each in task.metrics]
            raise SMDError(
                f"fitness='{name}' is no metric of {title_of(task)}. Choose one of {', '.join(there)}.{did_you_mean(name, there)}"
            )
        self.task = task
        self.name = metric.key
        self.greater_is_better = metric.greater_is_better
        self.compute_metrics = None
        self.needs_ood = False
        self.needs_logits = task.keeps_predictions and self.name != "loss"

    def value(self, score: Score, labels: np.ndarray, metrics: Mapping[str, float] | None = None) -> float:
        """The metric, in its own direction and units. `labels` have no effect: the score holds what the metric needs."""
        if self.name == "loss":
            return score.nll
        return values(self.task.measured(score), score.num_images)[self.name]


def as_number(key: str, value: Any) -> float:
    """Converts a metric to a float. Raises [`SMDError`] with the metric's name if it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise SMDError(
            f"compute_metrics returns {type(value).__name__} for '{key}', but fitness is one number per child. Return a float."
        ) from None


@dataclass(frozen=True)
class ScoredChild:
    """
    A child and its result on the fitness data.

    Args:
        score ([`Score`]), fitness (`float`): on the images that the child was scored on.
        eliminated (`bool`, *optional*, defaults to `False`): the child lost a race before it was scored on all images.
    """

    child: Child
    score: Score
    fitness: float
    eliminated: bool = False


def ranked(children: Sequence[ScoredChild]) -> list[ScoredChild]:
    """Sorts children by fitness, the fittest first and ties by index. Drops children that failed or lost a race."""
    alive = [scored for scored in children if np.isfinite(scored.fitness) and not scored.eliminated]
    return sorted(alive, key=lambda scored: (-scored.fitness, scored.child.index))


def auroc_of(name: str, score: Score) -> float:
    """The AUROC of a variant's score. The score must have all logits, also of the out-of-distribution images."""
    assert score.ood is not None
    return auroc(name, score.logits, score.ood.logits)
