"""
Compares two models by metrics that are no mean over images: mIoU, mean average precision, and others.

Images are drawn anew with replacement, the same for both models, and the metrics are computed again from what each image
adds (Efron and Tibshirani 1993, chapter 13). The percentiles of the differences are the interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
_BLOCK_NUMBERS = 2**21
"""Weights of images that are held at once."""

Measured = Callable[[np.ndarray], dict[str, np.ndarray]]
"""The metrics of one model: from weights of the images, of shape `(resamples, n)`, to arrays of shape `(resamples,)` by name."""


@dataclass(frozen=True)
class Metric:
    """
    A metric of a task.

    Args:
        key (`str`): its name in reports, and as a fitness.
        label (`str`): in tables, with the unit.
        factor (`float`, *optional*, defaults to 1): what tables multiply it by: 100 for a share that is shown in percent.
        decimals (`int`, *optional*, defaults to 4): how many are shown.
        greater_is_better (`bool`, *optional*, defaults to `True`).
        hub_name (`str`, *optional*): its type in the metadata of a card; `key` by default.
    """

    key: str
    label: str
    factor: float = 1.0
    decimals: int = 4
    greater_is_better: bool = True
    hub_name: str | None = None

    @property
    def name(self) -> str:
        """The label without its unit."""
        return self.label.partition(" (")[0]

    def shown(self, value: float | None, sign: str = "") -> str:
        """A value as tables show it, `-` for none; with `sign="+"`, a difference."""
        if value is None or not np.isfinite(value):
            return "-"
        return f"{self.factor * value:{sign}.{self.decimals}f}"

    def better(self, difference: float) -> bool:
        return difference > 0 if self.greater_is_better else difference < 0


def values(measured: Measured, num_images: int) -> dict[str, float]:
    """The metrics on all images, each counted once."""
    return {key: float(array[0]) for key, array in measured(np.ones((1, num_images))).items()}


def differences(
    first: Measured, second: Measured, num_images: int, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """
    The paired differences of two models' metrics, second minus first.

    Returns:
        dict of `str` to `dict`: by metric, its `estimate` and its `interval` of the level `CONFIDENCE`.
    """
    before, after = values(first, num_images), values(second, num_images)
    drawn: dict[str, list[np.ndarray]] = {key: [] for key in before}
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_NUMBERS // num_images)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        weights = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=size).astype(np.float64)
        a, b = first(weights), second(weights)
        for key in drawn:
            drawn[key].append(b[key] - a[key])
    tail = (1 - CONFIDENCE) / 2
    found = {}
    for key, parts in drawn.items():
        # Rounded so that equal models differ by exactly zero.
        known = np.round(np.concatenate(parts), 12)
        known = known[np.isfinite(known)]
        ends = np.quantile(known, [tail, 1 - tail]).tolist() if len(known) else [float("nan")] * 2
        found[key] = {"estimate": after[key] - before[key], "interval": ends}
    return found


def verdict(
    metric: Metric, difference: dict[str, Any], num_images: int, names: Sequence[str] = ("parent", "evolved")
) -> tuple[bool, str]:
    """
    Whether the second model is significantly better by this metric, and a sentence that says so.

    Args:
        difference (`dict`): of the metric, from [`differences`].
    """
    low, high = difference["interval"]
    gain = metric.better(low) and metric.better(high)
    loss = metric.better(-low) and metric.better(-high)
    factor, decimals = metric.factor, metric.decimals
    numbers = (
        f"{metric.label} {factor * difference['estimate']:+.{decimals}f}, {100 * CONFIDENCE:g} % interval {factor * low:+.{decimals}f} "
        f"to {factor * high:+.{decimals}f}, {num_images:,} images"
    )
    kept = "the parent" if names[0] == "parent" else names[0]
    if gain:
        return True, f"significant gain: {names[1]} is better than {names[0]} ({numbers})."
    if loss:
        return False, f"significant loss: keep {kept} ({numbers} for {names[1]})."
    return False, f"no significant gain: keep {kept} ({numbers} for {names[1]})."
