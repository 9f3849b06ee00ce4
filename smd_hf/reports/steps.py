"""What each step of a run with `warm_start` brought: the baselines that one pass gives, and then evolution by itself."""

from collections.abc import Mapping
from typing import Any

from ..metrics.comparison import difference_entry, measured, scores_entry
from ..metrics.statistics import compare
from ..run.warm_start import WarmStart
from ..search.fitness import Fitness
from ..search.head.baselines import PARENT
from .run_result import TestScores


def describe_steps(found: WarmStart, test: TestScores, fitness: Fitness, seed: int) -> dict[str, Any]:
    """
    The entry `steps` of a gain report.

    Returns:
        `dict`: `warm_start` is the name of the chosen baseline (`"parent"` if none was better), `images_forwarded`
        its cost. `baselines` has, by name, each baseline's `selection` (the fitness metric on the selection images) and, for
        the best of each kind, its scores on the `test` images and its `difference` to the parent. `evolution` compares the
        evolved model with the chosen baseline: what the generations brought by themselves.
    """
    baselines: dict[str, dict[str, Any]] = {
        name: {"selection": fitness.raw(value)} for name, value in found.fitness.items()
    }
    for name, logits in found.test_logits.items():
        scores, difference = measured(test.parent, logits, test.labels, name, seed)
        baselines[name] |= {"test": scores, "difference": difference}
    before = test.parent if found.chosen == PARENT else found.test_logits[found.chosen]
    comparison = compare(before, test.evolved, test.labels, names=("warm_start", "evolved"), seed=seed)
    return {
        "warm_start": found.chosen,
        "images_forwarded": found.images,
        "baselines": baselines,
        "evolution": {
            "before": scores_entry(comparison.baseline),
            "difference": difference_entry(comparison),
            "significant": comparison.significant,
            "verdict": comparison.verdict,
        },
    }


def steps_lines(entry: Mapping[str, Any] | None) -> list[str]:
    """The terminal's lines about the steps, from the entry `steps` of a gain report, if any."""
    if entry is None:
        return []
    lines = ["What each step brought, on the test images (accuracy, NLL):"]
    for name, baseline in entry["baselines"].items():
        if "test" in baseline:
            chosen = ", chosen by the selection images" if name == entry["warm_start"] else ""
            lines.append(f"  {name} alone: {_shown(baseline['test'])}{chosen}")
    evolution = entry["evolution"]
    accuracy = evolution["difference"]["accuracy"]
    change, low, high = (100 * value for value in (accuracy["estimate"], *accuracy["interval"]))
    lines.append(
        f"  the generations, from {_shown(evolution['before'])}: {change:+.2f} points ({low:+.2f} to {high:+.2f}); "
        f"{'significant' if evolution['significant'] else 'not significant'}"
    )
    return lines


def _shown(scores: Mapping[str, Any]) -> str:
    nll = scores["nll"]
    return f"{100 * scores['accuracy']:.2f} %, {'-' if nll is None else f'{nll:.4f}'}"
