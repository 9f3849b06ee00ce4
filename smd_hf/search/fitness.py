"""Which children survive: their order by fitness, with those that failed behind all others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import EvalPrediction

from ..errors import SMDError
from ..messages import did_you_mean
from ..metrics.classification import METRICS
from ..metrics.ood import OOD_METRICS, auroc
from ..metrics.sklearn_metrics import sklearn_scorers
from ..scoring.scores import Score
from .mutation import Child

LOWER_IS_BETTER_ENDINGS = ("nll", "loss", "error", "perplexity", "distance", "cost", "mse", "mae", "brier_score")


class Fitness:
    """
    The number that selection maximises, from what a variant got right.

    Args:
        name (`str`): `"nll"`, `"accuracy"`, one of `OOD_METRICS`, or a key that `compute_metrics` returns (that of
            [`~smd_hf.metrics.classification.named_metrics`] for all other names), with or without the prefix `eval_`.
        compute_metrics (`Callable`, *optional*): as in Trainer: from an `EvalPrediction` (logits, labels) to a dict.
        greater_is_better (`bool`, *optional*): by default, a key that ends as one of `LOWER_IS_BETTER_ENDINGS` does is better
            when lower, any other when greater, and so is `neg_...`.
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
        self.needs_outside = self.name in OOD_METRICS
        if self.needs_logits and not self.needs_outside and compute_metrics is None:
            builtin = ("nll", "accuracy", *METRICS, *OOD_METRICS)
            raise SMDError(
                f"fitness='{name}' is no built-in metric ({', '.join(builtin)}) and no classification scorer of scikit-learn (such as "
                f"f1_macro), and there is no compute_metrics to return it.{did_you_mean(self.name, (*builtin, *sklearn_scorers()))} "
                "Choose one of these (of top_k_accuracy with a number, such as top_5_accuracy), name a metric of `evaluate` by "
                "metric_name_or_path, or pass compute_metrics to the trainer."
            )
        if greater_is_better is None or not self.needs_logits or self.needs_outside:
            # scikit-learn's names of these beginnings are better when greater, such as neg_log_loss.
            turned = self.name.startswith(("neg_", "d2_"))
            greater_is_better = turned or not self.name.lower().endswith(LOWER_IS_BETTER_ENDINGS)
        self.greater_is_better = greater_is_better

    @property
    def label(self) -> str:
        """For the axis of a plot: the metric, and its sign where fitness is its negative."""
        return self.name if self.greater_is_better else f"negative {self.name}"

    @property
    def computes_metrics(self) -> bool:
        """Whether it is a key of `compute_metrics`."""
        return self.needs_logits and not self.needs_outside

    def value(self, score: Score, labels: np.ndarray, metrics: Mapping[str, float] | None = None) -> float:
        """
        The metric itself, in its own direction and units.

        Args:
            score ([`Score`]), labels (`numpy.ndarray`): of the same images.
            metrics (mapping, *optional*): what `compute_metrics` returns for them, where that is known.

        Raises:
            `SMDError`: if `compute_metrics` does not return the key as one number.
        """
        if self.name == "nll":
            return score.nll
        if self.name == "accuracy":
            return score.accuracy
        if self.needs_outside:
            return auroc_of(self.name, score)
        if metrics is None:
            metrics = self.compute_metrics(EvalPrediction(predictions=score.logits, label_ids=labels))
        for key in (self.name, f"eval_{self.name}"):
            if key in metrics:
                return as_number(key, metrics[key])
        raise SMDError(
            f"fitness='{self.name}' is not among what compute_metrics returns: {', '.join(map(str, metrics))}. Choose one of "
            "these, or 'nll' or 'accuracy'."
        )

    def __call__(self, score: Score, labels: np.ndarray, metrics: Mapping[str, float] | None = None) -> float:
        """Fitness, better when greater; minus infinity where a logit or the metric is not finite. Arguments as for `value`."""
        if not score.finite:
            return float("-inf")
        value = self.value(score, labels, metrics)
        if not np.isfinite(value):
            return float("-inf")
        return value if self.greater_is_better else -value

    def raw(self, fitness: float) -> float:
        """The metric in its own direction, from a fitness."""
        return fitness if self.greater_is_better else -fitness


def as_number(key: str, value: Any) -> float:
    """A metric as a float, or an error that names it."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise SMDError(
            f"compute_metrics returns {type(value).__name__} for '{key}', but fitness is one number a child. Return a float."
        ) from None


@dataclass(frozen=True)
class ScoredChild:
    """
    A child with what it got right on the fitness data.

    Args:
        child ([`Child`]), score ([`Score`]), fitness (`float`): the last two on the images that it has seen.
        eliminated (`bool`, *optional*, defaults to `False`): it lost a race before it had seen all.
    """

    child: Child
    score: Score
    fitness: float
    eliminated: bool = False


def ranked(children: Sequence[ScoredChild]) -> list[ScoredChild]:
    """Children from the fittest down, the earlier first where two are equal; without those that failed or lost a race."""
    alive = [scored for scored in children if np.isfinite(scored.fitness) and not scored.eliminated]
    return sorted(alive, key=lambda scored: (-scored.fitness, scored.child.index))


def auroc_of(name: str, score: Score) -> float:
    """The same of a variant that was scored on both data sets, with all its logits."""
    return auroc(name, score.logits, score.outside.logits)
