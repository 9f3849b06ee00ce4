"""What each step of a run with `warm_start` brought: the baselines that one pass gives, evolution by itself, and the last head."""

from collections.abc import Mapping
from typing import Any

from ..metrics.comparison import difference_entry, measured, scores_entry
from ..metrics.statistics import compare
from ..run.warm_start import HeadStep
from ..search.fitness import Fitness
from ..search.head.baselines import PARENT
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
    for name, logits in found.test_logits.items():
        if name != PARENT:
            scores, difference = measured(test.parent, logits, test.labels, name, seed)
            ahead = compare(logits, test.evolved, test.labels, names=(name, "evolved"), seed=seed)
            baselines[name] |= {"test": scores, "difference": difference, "evolved_over_it": difference_entry(ahead)}
    before = test.parent if found.chosen == PARENT else found.test_logits[found.chosen]
    after = test.evolved if last is None or last.chosen == PARENT else last.test_logits[PARENT]
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


def steps_lines(entry: Mapping[str, Any] | None) -> list[str]:
    """The terminal's lines about the steps, from the entry `steps` of a gain report, if any."""
    if entry is None:
        return []
    lines = ["What each step brought, on the test images (accuracy, NLL):"]
    for name, baseline in entry["baselines"].items():
        if "test" in baseline:
            chosen = ", chosen by the selection images" if name == entry["warm_start"] else ""
            over = _points(baseline["evolved_over_it"])
            lines.append(f"  {name} alone: {_shown(baseline['test'])}{chosen}; the evolved model is at {over}")
    evolution = entry["evolution"]
    lines.append(
        f"  the generations, from {_shown(evolution['before'])}: {_points(evolution['difference'])}; "
        f"{'significant' if evolution['significant'] else 'not significant'}"
    )
    if "refit_head" in entry:
        last = entry["refit_head"]
        name = "no fitted head was better" if last["chosen"] == PARENT else last["chosen"]
        lines.append(f"  the head after them ({name}): {_shown(last['test'])}")
    return lines


def _points(difference: Mapping[str, Any]) -> str:
    accuracy = difference["accuracy"]
    change, low, high = (100 * value for value in (accuracy["estimate"], *accuracy["interval"]))
    return f"{change:+.2f} points ({low:+.2f} to {high:+.2f})"


def _shown(scores: Mapping[str, Any]) -> str:
    nll = scores["nll"]
    return f"{100 * scores['accuracy']:.2f} %, {'-' if nll is None else f'{nll:.4f}'}"
