"""What each step of a run with `warm_start` brought: the baselines that one pass gives, evolution by itself, and the last head."""

from collections.abc import Mapping
from typing import Any

from ..metrics.comparison import difference_entry, measured, scores_entry
from ..metrics.resampling import Metric, differences, values, verdict
from ..metrics.statistics import compare
from ..run.warm_start import HeadStep
from ..search.fitness import Fitness
from ..search.head.baselines import PARENT
from ..tasks.protocol import MeasuredTask, headline_of
from .gain_report import metrics_of_report
from .run_result import TestScores


def describe_steps(
    found: HeadStep, last: HeadStep | None, test: TestScores, fitness: Fitness, seed: int
) -> dict[str, Any]:
    """
    The entry `steps` of a gain report.

    Args:
        found ([`HeadStep`]): what came before the first generation.
        last ([`HeadStep`], *optional*): what came after the last one.

    Returns:
        `dict`: `warm_start` is the name of the chosen baseline (`"parent"` if none was better), `images_forwarded`
        its cost. `baselines` has, by name, each baseline's `selection` (the fitness metric on the selection images) and, for
        the best of each kind, its scores on the `test` images, its `difference` to the parent, and how far the evolved model
        is over it (`evolved_over_it`). `evolution` compares the model after the generations with the chosen baseline: what they brought by themselves. `refit_head` has the head that was
        `chosen` after them (`"parent"` if none was better), its scores on the `test` images and its `difference` to the model before.
    """
    baselines: dict[str, dict[str, Any]] = {
        name: {"selection": fitness.raw(value)} for name, value in found.fitness.items()
    }
    for name, tested in found.test.items():
        if name != PARENT:
            logits = tested.logits
            scores, difference = measured(test.parent, logits, test.labels, name, seed)
            ahead = compare(logits, test.evolved, test.labels, names=(name, "evolved"), seed=seed)
            baselines[name] |= {"test": scores, "difference": difference, "evolved_over_it": difference_entry(ahead)}
    before = test.parent if found.chosen == PARENT else found.test[found.chosen].logits
    after = test.evolved if last is None or last.chosen == PARENT else last.test[PARENT].logits
    comparison = compare(before, after, test.labels, names=("warm_start", "evolved"), seed=seed)
    entry = {
        "warm_start": found.chosen,
        "images_forwarded": found.images,
        "baselines": baselines,
        "evolution": {
            "before": scores_entry(comparison.baseline),
            "after": scores_entry(comparison.candidate),
            "difference": difference_entry(comparison),
            "significant": comparison.significant,
            "verdict": comparison.verdict,
        },
    }
    if last is not None:
        scores, difference = measured(after, test.evolved, test.labels, "evolved", seed)
        entry["refit_head"] = {"chosen": last.chosen, "test": scores, "difference": difference}
    return entry


def describe_task_steps(
    task: MeasuredTask, found: HeadStep, last: HeadStep | None, test: TestScores, fitness: Fitness, seed: int
) -> dict[str, Any]:
    """The entry `steps` for a task other than image classification: as of [`describe_steps`], with the metrics of the task."""
    count = test.parent_score.num_images
    parent, evolved = task.measured(test.parent_score), task.measured(test.evolved_score)
    baselines: dict[str, dict[str, Any]] = {
        name: {"selection": fitness.raw(value)} for name, value in found.fitness.items()
    }
    for name, score in found.test.items():
        if name != PARENT:
            alone = task.measured(score)
            baselines[name] |= {
                "test": {"n_test": count, **values(alone, count)},
                "difference": differences(parent, alone, count, seed),
                "evolved_over_it": differences(alone, evolved, count, seed),
            }
    before = parent if found.chosen == PARENT else task.measured(found.test[found.chosen])
    after = evolved if last is None or last.chosen == PARENT else task.measured(last.test[PARENT])
    difference = differences(before, after, count, seed)
    headline = headline_of(task.metrics, fitness.name)
    significant, sentence = verdict(headline, difference[headline.key], count, ("warm_start", "evolved"))
    entry = {
        "warm_start": found.chosen,
        "images_forwarded": found.images,
        "baselines": baselines,
        "evolution": {
            "before": {"n_test": count, **values(before, count)},
            "after": {"n_test": count, **values(after, count)},
            "difference": difference,
            "significant": significant,
            "verdict": sentence,
        },
    }
    if last is not None:
        scores = {"n_test": count, **values(evolved, count)}
        entry["refit_head"] = {
            "chosen": last.chosen,
            "test": scores,
            "difference": differences(after, evolved, count, seed),
        }
    return entry


def steps_lines(report: Mapping[str, Any]) -> list[str]:
    """The terminal's lines about the steps of a gain report, if it has any."""
    entry = report.get("steps")
    if entry is None:
        return []
    first, loss = shown_metrics(report)

    def shown(scores: Mapping[str, Any]) -> str:
        return f"{first.shown(scores[first.key])}, {loss.shown(scores[loss.key])}"

    def points(change: Mapping[str, Any]) -> str:
        change = change[first.key]
        estimate, low, high = (first.shown(each, "+") for each in (change["estimate"], *change["interval"]))
        return f"{estimate}{' points' if first.factor == 100 else ''} ({low} to {high})"

    lines = [f"What each step brought, on the test images ({first.label}, {loss.label}):"]
    for name, baseline in entry["baselines"].items():
        if "test" in baseline:
            chosen = ", chosen by the selection images" if name == entry["warm_start"] else ""
            over = points(baseline["evolved_over_it"])
            lines.append(f"  {name} alone: {shown(baseline['test'])}{chosen}; the evolved model is at {over}")
    evolution = entry["evolution"]
    lines.append(
        f"  the generations, from {shown(evolution['before'])}: {points(evolution['difference'])}; "
        f"{'significant' if evolution['significant'] else 'not significant'}"
    )
    if "refit_head" in entry:
        last = entry["refit_head"]
        name = "no fitted head was better" if last["chosen"] == PARENT else last["chosen"]
        lines.append(f"  the head after them ({name}): {shown(last['test'])}")
    return lines


def shown_metrics(report: Mapping[str, Any]) -> tuple[Metric, Metric]:
    """The two metrics of a report that steps are shown by: the one that the verdict is about, and the loss."""
    metrics = metrics_of_report(report)
    loss = next(metric for metric in metrics if metric.key in ("nll", "loss"))
    return headline_of(metrics, report["all_arguments"]["fitness"]), loss
