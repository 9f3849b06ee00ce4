"""What a run's task means for its arguments: which fitness there is, and what does not apply."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from ..arguments.evolution_arguments import EvolutionArguments
from ..errors import SMDError
from ..metrics.classification import ComputeMetrics
from ..models.tasks import CLASSIFIER
from ..remote_code.configuration_smd_ensemble import COMBINATIONS
from ..search.fitness import Fitness, MeasuredFitness
from ..search.information import InformationFitness
from ..search.pareto.objectives import Objectives
from ..tasks.classification import ImageClassification
from ..tasks.common import leave_head_alone, refuse
from ..tasks.protocol import Task, metric_named, title_of
from ..tasks.registry import find_task, is_classification
from ..tasks.unlabeled import UnlabeledClassification
from .evaluation_metrics import compute_classification_metrics, metrics_of, objectives_of

TASK_ARGUMENTS = {
    "image-segmentation": ("do_reduce_labels",),
    "depth-estimation": ("depth_scale", "depth_alignment"),
}
"""Arguments of one task, which another one refuses."""


def task_of_run(args: EvolutionArguments, model: PreTrainedModel | Any) -> Task:
    """The task that the arguments name, or that of the model or checkpoint."""
    loading: Any = args.model_init_kwargs or {}
    task = find_task(args.task, model, loading)
    if args.unlabeled:
        if type(task) is not ImageClassification:
            raise SMDError(
                f"unlabeled is for image classification with one label an image, and the task is {title_of(task)}. Leave it out."
            )
        task = UnlabeledClassification()
    for tag, names in TASK_ARGUMENTS.items():
        if task.kind.pipeline_tag != tag:
            refuse({name: getattr(args, name) is not None for name in names}, tag, task)
    return task


def scoring_of(
    task: Task,
    args: EvolutionArguments,
    compute_metrics: ComputeMetrics | None = None,
    preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], Any] | None = None,
    has_ood: bool = False,
) -> tuple[Fitness, Objectives | None, ComputeMetrics | None]:
    """
    How children are scored: the fitness, the objectives if there are several, and the metrics of `evaluate`, if these come
    from logits.

    Raises:
        `SMDError`: for arguments that the task does not know.
    """
    combinations: tuple[Any, ...] = COMBINATIONS.get(task.kind.pipeline_tag, ())
    if combinations and args.ensemble_combination not in combinations:
        if args.was_chosen("ensemble_combination"):
            raise SMDError(
                f"ensemble_combination is '{args.ensemble_combination}'; expected one of {', '.join(combinations)} for {title_of(task)}."
            )
        args.ensemble_combination = combinations[0]
    if is_classification(task):
        if args.unlabeled:
            refuse({"ood_dataset": has_ood}, "runs with labels", task)
            return InformationFitness(), None, compute_metrics or compute_classification_metrics
        metrics, evaluation_metrics = metrics_of(args, compute_metrics, preprocess_logits_for_metrics)
        fitness = Fitness(args.fitness, metrics, args.fitness_greater_is_better)
        return fitness, objectives_of(args, metrics, has_ood), evaluation_metrics
    given = {
        "compute_metrics": compute_metrics is not None,
        "preprocess_logits_for_metrics": preprocess_logits_for_metrics is not None,
        "metric_name_or_path": args.metric_name_or_path is not None,
        "objectives": args.objectives is not None,
        "ood_dataset": has_ood,
        "label_map": args.label_map is not None,
        "head_init": args.head_init is not None,
        "class_weights": args.class_weights is not None,
        "cost_matrix": args.cost_matrix is not None,
        "loss": args.was_chosen("loss"),
        "fitness_sampling": args.was_chosen("fitness_sampling") and args.fitness_sampling == "importance",
        "ensemble_size": args.asks_for("ensemble_size") and not combinations,
        "save_children": bool(args.save_children),
    }
    refuse(given, "image classification" + (" with one label an image" if task.kind is CLASSIFIER else ""), task)
    args.fitness_sampling = "balanced"
    if not combinations:
        args.ensemble_size = 0  # the preset's
    if args.ensemble_size and args.ensemble_selection == "greedy":
        if args.was_chosen("ensemble_selection"):
            raise SMDError(
                f"ensemble_selection='greedy' needs the predictions of all children, which are not kept for {title_of(task)}. Choose "
                "'top_k', the fittest children, or 'all'."
            )
        args.ensemble_selection = "top_k"
    if not hasattr(task, "head_inputs"):
        leave_head_alone(args, task)
    measured: Any = task
    if metric_named(measured.metrics, args.fitness) is None and not args.was_chosen("fitness"):
        # The default is the loss, and this task has none.
        args.fitness = measured.metrics[0].key
    return MeasuredFitness(args.fitness, task), None, None  # pyright: ignore[reportArgumentType]
