"""The gain report of a task other than image classification: metrics of the task, and their intervals by resampling images."""

from typing import Any

from ..metrics.resampling import CONFIDENCE, differences, values, verdict
from ..scoring.scores import Score
from ..tasks.protocol import MeasuredTask, headline_of, notes_of
from .run_result import TestScores


def task_comparison(
    task: MeasuredTask, test: TestScores, fitness: str, seed: int, ensemble: Score | None = None
) -> dict[str, Any]:
    """
    Compares parent and evolved model on the test images.

    Args:
        fitness (`str`): the metric that children were chosen by. The verdict is about it, or about the most important metric of
            the task if children were chosen by the loss.

    Returns:
        `dict`: the entries `task`, `metrics` (how each is shown), `parent`, `evolved`, `difference`, `significant`, `verdict`,
        `confidence` and, if there are any, `notes` of a gain report; for an ensemble also `ensemble` and `ensemble_difference`.
    """
    count = test.parent_score.num_images
    parent, evolved = task.measured(test.parent_score), task.measured(test.evolved_score)
    headline = headline_of(task.metrics, fitness)
    difference = differences(parent, evolved, count, seed)
    significant, sentence = verdict(headline, difference[headline.key], count)
    found = {
        "task": task.kind.pipeline_tag,
        "metrics": [vars(metric) for metric in task.metrics],
        "parent": {"n_test": count, **values(parent, count)},
        "evolved": {"n_test": count, **values(evolved, count)},
        "difference": difference,
        "significant": significant,
        "verdict": sentence,
        "confidence": CONFIDENCE,
    }
    if notes := notes_of(task):
        found["notes"] = notes
    if ensemble is not None:
        measured = task.measured(ensemble)
        change = differences(parent, measured, count, seed)
        better, words = verdict(headline, change[headline.key], count, ("parent", "ensemble"))
        found["ensemble"] = {"n_test": count, **values(measured, count)}
        found["ensemble_difference"] = {**change, "significant": better, "verdict": words}
    return found
