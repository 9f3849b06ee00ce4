"""`compute_metrics` in its two roles: on the predictions of `evaluate`, and on the logits of a child, as fitness."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, Trainer
from transformers.trainer_pt_utils import nested_numpify
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..errors import SMDError
from ..metrics.classification import ComputeMetrics, merged, named_metrics
from ..metrics.ood import OOD_METRICS
from ..metrics.statistics import Scores
from ..remote_code.members_smd_ensemble import logits_of
from ..search.pareto.objectives import COORDINATE_OBJECTIVES, Objectives

logger = logging.get_logger(__name__)


def compute_classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, NLL and calibration error, from logits of shape `(n, num_labels)` and labels of shape `(n,)`."""
    logits, labels = prediction.predictions, prediction.label_ids
    scores = Scores.from_logits(logits[0] if isinstance(logits, tuple) else logits, np.asarray(labels))
    return {"accuracy": scores.accuracy, "nll": scores.nll, "calibration_error": scores.calibration_error}


def metrics_of(
    args: EvolutionArguments,
    compute_metrics: ComputeMetrics | None,
    preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], Any] | None = None,
) -> tuple[ComputeMetrics | None, ComputeMetrics | None]:
    """
    The metrics that children are scored by, and those that `evaluate` and `predict` report.

    Built-in metrics and those of scikit-learn and `metric_name_or_path` need logits. `preprocess_logits_for_metrics` may turn
    these into anything. With it, evaluation reports only what the user's `compute_metrics` returns.

    Args:
        preprocess_logits_for_metrics (`Callable`, *optional*): as in Trainer. For fitness, it receives all logits of a child at
            once, on the CPU.

    Raises:
        `SMDError`: for `include_for_metrics` if fitness comes from `compute_metrics`.
    """
    named = named_metrics(args, has_own=compute_metrics is not None)
    _check_inclusion(args, compute_metrics)
    as_fitness = _as_in_evaluation(compute_metrics, preprocess_logits_for_metrics, args.eval_do_concat_batches)
    in_scoring = merged(named, as_fitness)
    if preprocess_logits_for_metrics is not None:
        if named is not None or compute_metrics is None:
            logger.warning(
                "preprocess_logits_for_metrics changes what metrics are computed from, so evaluate() and predict() report those "
                "of your own compute_metrics alone; built-in ones are in the report."
            )
        return in_scoring, compute_metrics
    ours = merged(None if compute_metrics else compute_classification_metrics, named)
    return in_scoring, merged(None if ours is None else _on_all_batches(ours), compute_metrics)


def objectives_of(args: EvolutionArguments, metrics: ComputeMetrics | None, has_ood: bool) -> Objectives | None:
    """
    The objectives that the arguments name; `None` if there is one fitness.

    Args:
        metrics (`Callable`, *optional*): what children are scored by, from [`metrics_of`].
        has_ood (`bool`): whether there are out-of-distribution images.

    Raises:
        `SMDError`: if one needs out-of-distribution images, and there are none.
    """
    about = [name for name in args.objectives or [args.fitness] if name.removeprefix("eval_") in OOD_METRICS]
    if about and not has_ood:
        raise SMDError(
            f"{' and '.join(about)} of a model is measured on a second data set, of images that are of none of its classes, and "
            "there is none. Pass ood_dataset to EvolutionTrainer (on the command line: ood_dataset_name, ood_dir or ood_file)."
        )
    return None if args.objectives is None else Objectives(args.objectives, metrics)


def evaluate_with_labels(trainer: Trainer) -> None:
    """
    Makes evaluation measure models whose forward takes no labels (LeViT and DeiT with a teacher, PPLCNet).

    Otherwise Trainer drops the labels and reports nothing.
    """
    if trainer.label_names or trainer.args.label_names is not None:
        return
    trainer.label_names = ["labels"]
    if trainer.compute_loss_func is None:
        trainer.compute_loss_func = _cross_entropy


def _cross_entropy(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits_of(outputs), labels)


def _as_in_evaluation(
    compute_metrics: ComputeMetrics | None, preprocess: Callable | None, concatenated: bool
) -> ComputeMetrics | None:
    """The user's metrics, with predictions and labels in the same form as in `evaluate`."""
    if compute_metrics is None or (preprocess is None and concatenated):
        return compute_metrics

    def computed(prediction: EvalPrediction) -> dict[str, float]:
        predictions: Any = prediction.predictions
        labels: Any = prediction.label_ids
        if preprocess is not None:
            predictions = nested_numpify(preprocess(torch.from_numpy(predictions), torch.from_numpy(labels)))
        if not concatenated:
            predictions, labels = [predictions], [labels]
        result: Any = compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels))
        return result

    return computed


def _on_all_batches(compute_metrics: ComputeMetrics) -> ComputeMetrics:
    """Metrics of all images, also from the lists of batches that `eval_do_concat_batches=False` makes."""

    def joined(arrays: Any) -> Any:
        if not isinstance(arrays, list):
            return arrays
        return np.concatenate([each[0] if isinstance(each, tuple) else each for each in arrays])

    return lambda prediction: compute_metrics(
        EvalPrediction(predictions=joined(prediction.predictions), label_ids=joined(prediction.label_ids))
    )


def _check_inclusion(args: EvolutionArguments, compute_metrics: ComputeMetrics | None) -> None:
    names: Sequence[str] = args.objectives or [args.fitness]
    without = ("nll", "accuracy", *OOD_METRICS, *COORDINATE_OBJECTIVES)
    asking = [name for name in names if name.removeprefix("eval_") not in without]
    if args.include_for_metrics and compute_metrics is not None and asking:
        raise SMDError(
            f"include_for_metrics={args.include_for_metrics} reaches compute_metrics in evaluate() and predict(), but children are "
            f"scored from logits and labels alone, and {' and '.join(asking)} comes from compute_metrics. Leave "
            "include_for_metrics out, or choose fitness='nll' or 'accuracy', which need no compute_metrics."
        )
