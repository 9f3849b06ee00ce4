"""`smd-hf evaluate` for tasks other than image classification."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifacts.loading import load_with_processor
from ..data.image_checks import check_images
from ..metrics.resampling import differences, values, verdict
from ..models.load import load_image_processor, load_model_for_new_head
from ..models.members import models_of
from ..models.tasks import BACKBONE, check_kind
from ..reports.gain_report import format_metrics
from ..scoring.scores import Score
from ..tasks.protocol import GivenData, MeasuredTask, notes_of
from .scoring import score_images


def evaluate_task(
    task: MeasuredTask, models: Sequence[str], images: Any, args: Any, loading: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """
    Scores one model, or compares it with a second one.

    Args:
        models (sequence of `str`): the model, and the one to compare it with, if any.
        loading (mapping): how models are loaded; the revision is the first one's.

    Returns:
        `tuple[str, dict]`: a table for the terminal, and the numbers.
    """
    options = [loading, {**loading, "revision": None}]
    scores = [_scored(task, name, images, args, each) for name, each in zip(models, options)]
    count = scores[0].num_images
    measured = [task.measured(score) for score in scores]
    found = [{"n_test": count, **values(each, count)} for each in measured]
    if len(models) == 1:
        lines = [f"{models[0]} on {count:,} images"]
        width = max(len(metric.label) for metric in task.metrics)
        lines += [
            f"{metric.label:{width}}  {metric.factor * found[0][metric.key]:10.{metric.decimals}f}"
            for metric in task.metrics
        ]
        lines += notes_of(task)
        return "\n".join(lines), {"model": models[0], "task": task.kind.pipeline_tag, **found[0]}
    difference = differences(measured[1], measured[0], count, args.seed)
    names = Path(models[1]).name, Path(models[0]).name
    names = names if names[0] != names[1] else (models[1], models[0])
    _, sentence = verdict(task.metrics[0], difference[task.metrics[0].key], count, names)
    table = format_metrics(names, found[1], found[0], difference, task.metrics)
    result = {"model": models[0], "against": models[1], "task": task.kind.pipeline_tag}
    return "\n\n".join([table, *notes_of(task), sentence]), {
        **result, "scores": found[0], "scores_against": found[1], "difference": difference, "verdict": sentence,
    }  # fmt: skip


def _scored(task: MeasuredTask, name: str, images: Any, args: Any, loading: Mapping[str, Any]) -> Score:
    missing: list[str] = []
    if task.kind is BACKBONE:
        # By its name alone, a backbone would be loaded as a classifier.
        model, missing = load_model_for_new_head(name, kind=task.kind, **loading)
        processor = load_image_processor(name, model=model, **loading)
    else:
        model, processor = load_with_processor(name, **loading)
    check_kind(model, task.kind)
    member = models_of(model)[0]  # of an ensemble: its configuration says what predictions mean
    task.configure(member, args)
    data = task.prepare(member, args, GivenData(processor, eval_dataset=images, missing_head=missing))
    if data.image_column is not None:
        shown = not args.disable_tqdm
        check_images(images, data.image_column, what="validation", progress=shown, check_row=data.check_row)
    return score_images(name, model, processor, images, data.collator, args, task)
