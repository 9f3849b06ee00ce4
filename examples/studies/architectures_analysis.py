"""
What the measurements of `architectures.py` show over all architectures together.

All architectures meet the same test images, so their gains are not independent: the interval of a mean gain comes from drawing
architectures and images anew, both with replacement. p-values of single architectures are adjusted by Holm.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from common import holm, interval, unpack, verdict
from scipy import stats

ROLES = ("best_child", "ensemble", "ensemble_of_all", "gauss_newton")
RESAMPLES = 5000

LOSS = 0.02
"""Accuracy that the mean child loses where sparse and dense children are compared, if both kinds reach it."""


def summarise(generations: Mapping[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    """
    Claim (c), and the same for each of `ROLES`.

    Args:
        generations (mapping): what `one_generation` found, by architecture.
        seed (`int`): of the bootstrap.
    """
    rows = list(generations.values())
    found = {role: of_role(rows, role, seed) for role in ROLES}
    gains, bounds = mean_gain(rows, "ensemble", "best_child", seed)
    found["ensemble"]["over_best_child"] = {"mean": float(gains.mean()), "interval": bounds}
    return found


def of_role(generations: Sequence[dict[str, Any]], role: str, seed: int) -> dict[str, Any]:
    """Mean gain of accuracy with its interval, how many gained, sign test, tests of each, and the other two scores."""
    gains, bounds = mean_gain(generations, role, "parent", seed)
    better, worse = int((gains.sum(axis=1) > 0).sum()), int((gains.sum(axis=1) < 0).sum())
    p_values = [each[role]["difference"]["mcnemar"]["p_value"] for each in generations]
    return {
        "mean_gain": float(gains.mean()),
        "interval": bounds,
        "better": better,
        "worse": worse,
        "sign_test_p": float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0,
        "holm_p": holm(p_values),
        "significant_after_holm": int(
            sum(p < 0.05 and gain > 0 for p, gain in zip(holm(p_values), gains.sum(axis=1)))
        ),
        **{
            f"mean_{key}_difference": over_architectures(generations, role, key)
            for key in ("nll", "calibration_error")
        },
        "verdict": verdict(float(gains.mean()), bounds),
    }


def mean_gain(
    generations: Sequence[dict[str, Any]], role: str, baseline: str, seed: int
) -> tuple[np.ndarray, list[float] | None]:
    """-1, 0 or 1 for each architecture and image, of shape `(architectures, n)`, and the interval of their mean."""
    n, count = generations[0]["n_test"], len(generations)
    answers = [[unpack(each[name]["correct"], n).astype(int) for name in (role, baseline)] for each in generations]
    gains = np.array([ours - theirs for ours, theirs in answers])
    rng = np.random.default_rng(seed)
    images = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
    return gains, interval(np.einsum("ab,ba->b", gains @ images.T, drawn))


def over_architectures(generations: Sequence[dict[str, Any]], role: str, key: str) -> dict[str, Any]:
    """The mean of a paired difference to the parent, with Student's interval over architectures."""
    return student([each[role]["difference"][key]["estimate"] for each in generations])


def student(values: Sequence[float]) -> dict[str, Any]:
    """The mean of independent values, with Student's 95 % interval; `None` in its place where they do not vary."""
    if len(values) < 2 or np.ptp(values) <= 1e-9 * np.max(np.abs(values)):  # equal but for rounding
        return {"mean": float(np.mean(values)) if len(values) else None, "interval": None}
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    return {"mean": float(np.mean(values)), "interval": [float(low), float(high)]}


def compare_diversity(points: Mapping[str, Mapping[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """
    Claim (d): are sparse children more diverse than dense ones that lose as much accuracy?

    They are compared where both lose `LOSS`, or the greatest loss that both reach, linear between the sigmas that were
    measured. An architecture of which one kind loses nothing at any sigma has no such place.

    Args:
        points (mapping): what `diversity` found, by architecture and kind.
    """
    found = {}
    for name, kinds in points.items():
        loss = min(LOSS, *(max(point["loss"] for point in kinds[kind]) for kind in ("partition", "dense")))
        if loss > 0:
            found[name] = {"loss": loss} | {
                kind: disagreement_at(loss, kinds[kind]) for kind in ("partition", "dense")
            }
    logs = [float(np.log2(each["partition"] / each["dense"])) for each in found.values()]
    ratio = student(logs)
    calibrated = [point for kinds in points.values() for point in kinds["partition"] if point["factor"] == 1]
    return {
        "at_equal_loss": found,
        "log2_ratio": ratio,
        "more_diverse": sum(log > 0 for log in logs),
        "less_diverse": sum(log < 0 for log in logs),
        "signed_rank_p": float(stats.wilcoxon(logs).pvalue) if any(logs) else 1.0,
        "verdict": verdict(ratio["mean"], ratio["interval"]),
        "sparse_at_calibrated_sigma": {
            key: student([each[key] for each in calibrated]) for key in ("loss", "disagreement")
        },
    }


def disagreement_at(loss: float, points: Sequence[dict[str, float]]) -> float:
    """
    The disagreement of children where the mean child first loses so much, linear between points and from none at sigma 0.

    Args:
        loss (`float`): above 0, and reached.
        points (sequence of `dict`): with `loss` and `disagreement`, by increasing sigma.
    """
    before = {"loss": 0.0, "disagreement": 0.0}
    for point in points:
        if point["loss"] >= loss:
            share = (loss - before["loss"]) / (point["loss"] - before["loss"])
            return before["disagreement"] + share * (point["disagreement"] - before["disagreement"])
        before = point
    raise ValueError(f"No child loses {loss}.")
