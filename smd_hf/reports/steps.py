"""What each step of a run with `warm_start` brought: statistics and heads by themselves, evolution by itself, and the last head."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..metrics.comparison import difference_entry, scores_entry
from ..metrics.resampling import Metric, differences, values, verdict
from ..metrics.statistics import compare
from ..run.found_step import FoundStep
from ..run.statistics_step import NAME as STATISTICS
from ..scoring.scores import Score
from ..search.fitness import Fitness
from ..search.head.baselines import KINDS, PARENT
from ..tasks.protocol import MeasuredTask, headline_of
from .gain_report import metrics_of_report
from .run_result import TestScores

Compare = Callable[[Score, Score, tuple[str, str]], dict[str, Any]]
"""Of two models' scores on the test images and their names: the entries `before`, `after`, `difference`, `significant`, `verdict`."""


def describe_steps(
    statistics: FoundStep | None,
    head: FoundStep | None,
    last: FoundStep | None,
    test: TestScores,
    fitness: Fitness,
    compared: Compare,
) -> dict[str, Any]:
    """
    The entry `steps` of a gain report.

    Args:
        statistics, head ([`FoundStep`], *optional*): what came before the first generation, in this order.
        last ([`FoundStep`], *optional*): the head after the last one.
        compared (`Callable`): [`compare_classes`] or [`compare_by_task`].

    Returns:
        `dict`: `statistics` and `warm_start` are the names of what was chosen of each (`"parent"` if nothing was better; not there if
        there was no such step), `images_forwarded` what they cost, `cross_validated` whether cross-validation on the fitness images
        chose the head, and not the selection images. `baselines` has, by name, each baseline's `selection` (the fitness
        metric on the selection images) and, for the best of each kind, its scores on the
        `test` images, its `difference` to the parent, and how far the evolved model is over it (`evolved_over_it`). Heads come on
        top of the chosen statistics. `evolution` compares the model after the generations with the one before them: what they
        brought by themselves. `refit_head` has the head that was `chosen` after them (`"parent"` if none was better), its scores on
        the `test` images and its `difference` to the model before.
    """
    parent, evolved = test.parent_score, test.evolved_score
    crossed = head is not None and bool(head.crossed)
    entry: dict[str, Any] = {"images_forwarded": 0, "baselines": {}, "cross_validated": crossed}
    before = parent
    for key, found in (("statistics", statistics), ("warm_start", head)):
        if found is None:
            continue
        entry[key] = found.chosen
        entry["images_forwarded"] += found.images
        baselines = {name: {"selection": fitness.raw(value)} for name, value in found.fitness.items()}
        for name, alone in found.test.items():
            if name != PARENT:
                ahead = compared(alone, evolved, (name, "evolved"))
                baselines[name] |= _step(compared(parent, alone, ("parent", name)))
                baselines[name] |= {"evolved_over_it": ahead["difference"]}
        # The parent's entry is that of the first step.
        entry["baselines"] |= {name: each for name, each in baselines.items() if name not in entry["baselines"]}
        if found.chosen != PARENT:
            before = found.test[found.chosen]
    after = evolved if last is None or last.chosen == PARENT else last.test[PARENT]
    entry["evolution"] = compared(before, after, ("warm_start", "evolved"))
    if last is not None:
        entry["refit_head"] = {"chosen": last.chosen, **_step(compared(after, evolved, ("parent", "evolved")))}
    return entry


def chosen_steps(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the baselines that were put into the model before the first generation."""
    return tuple(entry[key] for key in ("statistics", "warm_start") if entry.get(key, PARENT) != PARENT)


def step_title(name: str, entry: Mapping[str, Any]) -> str:
    """What a baseline is called in tables and lines: heads come on top of the chosen statistics."""
    on_statistics = entry.get("statistics", PARENT) != PARENT and not name.startswith(STATISTICS)
    return f"{STATISTICS}, then {name}" if on_statistics else f"{name} alone"


def measured_baselines(entry: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Names and entries of the baselines that were measured on the test images: statistics first, then simple heads before large ones."""
    kinds = (STATISTICS, *KINDS)

    def place(name: str) -> tuple[int, str]:
        kind = name.partition(",")[0]
        return kinds.index(kind) if kind in kinds else len(kinds), name

    return [
        (name, entry["baselines"][name])
        for name in sorted(entry["baselines"], key=place)
        if "test" in entry["baselines"][name]
    ]


def begins_with_parent(entry: Mapping[str, Any] | None) -> bool:
    """Whether the generations of this entry `steps`, if there is one, begin with the parent as it was."""
    return entry is None or not chosen_steps(entry)


def _step(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """A model's scores, and its difference to the one before."""
    judged = {key: comparison[key] for key in ("significant", "verdict")}
    return {"test": comparison["after"], "difference": comparison["difference"] | judged}


def compare_classes(labels: np.ndarray, seed: int) -> Compare:
    """How steps of image classification are compared."""

    def compared(first: Score, second: Score, names: tuple[str, str]) -> dict[str, Any]:
        comparison = compare(first.logits, second.logits, labels, names=names, seed=seed)
        return {
            "before": scores_entry(comparison.baseline),
            "after": scores_entry(comparison.candidate),
            "difference": difference_entry(comparison),
            "significant": comparison.significant,
            "verdict": comparison.verdict,
        }

    return compared


def compare_by_task(task: MeasuredTask, fitness: Fitness, seed: int) -> Compare:
    """How steps of another task are compared: by its metrics."""
    headline = headline_of(task.metrics, fitness.name)

    def compared(first: Score, second: Score, names: tuple[str, str]) -> dict[str, Any]:
        count, models = first.num_images, (task.measured(first), task.measured(second))
        before, after = ({"n_test": count, **values(model, count)} for model in models)
        difference = differences(*models, count, seed)
        significant, sentence = verdict(headline, difference[headline.key], count, names)
        return {
            "before": before,
            "after": after,
            "difference": difference,
            "significant": significant,
            "verdict": sentence,
        }

    return compared


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
    for name, baseline in measured_baselines(entry):
        chosen = ", chosen" if name in chosen_steps(entry) else ""
        over = points(baseline["evolved_over_it"])
        lines.append(f"  {step_title(name, entry)}: {shown(baseline['test'])}{chosen}; the evolved model is at {over}")
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
