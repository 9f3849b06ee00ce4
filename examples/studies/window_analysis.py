"""
What the measurements of `window.py` show: the window of usable sigmas of each density, and the two claims, with intervals.

Every interval is a percentile bootstrap over children and images together. Children are drawn anew for each density, the same
at all its sigmas, as a child's noise is the same there; images are drawn anew for all densities alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import interval, verdict

LOST = 0.01
"""A sigma is usable if the mean child loses at most this share of accuracy, ..."""

FLIPPED = 0.005
"""... and flips at least this share of the parent's predictions."""

RESAMPLES = 2000


@dataclass
class Curve:
    """
    Children of one density.

    Args:
        halvings (`int`): density 2^-halvings.
        sigma (`np.ndarray` of shape `(sigmas,)`): mutation strength, increasing.
        correct, flipped (`np.ndarray` of shape `(sigmas, children, images)`): whether a child is right, and whether it
            predicts another class than the parent.
    """

    halvings: int
    sigma: np.ndarray
    correct: np.ndarray
    flipped: np.ndarray

    @property
    def density(self) -> float:
        return 2.0**-self.halvings

    @property
    def norm(self) -> np.ndarray:
        """The sigma of dense children that are as far from the parent: what `match_norm` takes."""
        return self.sigma * self.density**0.5


@dataclass
class Statistics:
    """
    Of one curve, of shape `(sigmas, 1 + resamples)`: as measured first, then with children and images drawn anew.

    Args:
        loss (`np.ndarray`): accuracy that the mean child loses.
        flipped (`np.ndarray`): share of predictions that the mean child flips.
        spread (`np.ndarray`): standard deviation of the children's accuracy.
    """

    loss: np.ndarray
    flipped: np.ndarray
    spread: np.ndarray


def resample(curve: Curve, parent: np.ndarray, image_weights: np.ndarray, rng: np.random.Generator) -> Statistics:
    """
    The statistics of one curve.

    Args:
        curve ([`Curve`]), parent (`np.ndarray` of shape `(images,)`): right answers.
        image_weights (`np.ndarray` of shape `(1 + resamples, images)`): sum to 1; the first are equal.
        rng (`np.random.Generator`): draws the children.
    """
    sigmas, children, n = curve.correct.shape
    draws = len(image_weights) - 1
    child_weights = rng.multinomial(children, np.full(children, 1 / children), size=draws) / children
    child_weights = np.concatenate([np.full((1, children), 1 / children), child_weights])

    def shares(answers: np.ndarray) -> np.ndarray:
        return (answers.reshape(-1, n).astype(np.float64) @ image_weights.T).reshape(sigmas, children, -1)

    accuracy = shares(curve.correct)
    mean = np.einsum("scb,bc->sb", accuracy, child_weights)
    variance = np.einsum("scb,bc->sb", (accuracy - mean[:, None]) ** 2, child_weights)
    return Statistics(
        loss=image_weights @ parent - mean,
        flipped=np.einsum("scb,bc->sb", shares(curve.flipped), child_weights),
        spread=np.sqrt(variance * children / max(children - 1, 1)),
    )


def crossing(sigma: np.ndarray, values: np.ndarray, level: float) -> np.ndarray:
    """
    The sigma at which values first reach a level, linear between those measured and from 0 at sigma 0; NaN if they do not.

    Args:
        sigma (`np.ndarray` of shape `(sigmas,)`): increasing.
        values (`np.ndarray` of shape `(sigmas, resamples)`): the curves.
        level (`float`): above 0.
    """
    sigma = np.concatenate([[0.0], sigma])
    values = np.concatenate([np.zeros((1, values.shape[1])), values])
    reached = values >= level
    after = np.maximum(reached.argmax(axis=0), 1)
    column = np.arange(values.shape[1])
    low, high = values[after - 1, column], values[after, column]
    with np.errstate(invalid="ignore", divide="ignore"):
        place = sigma[after - 1] + (sigma[after] - sigma[after - 1]) * (level - low) / (high - low)
    return np.where(reached.any(axis=0), place, np.nan)


def analyse(curves: Sequence[Curve], parent: np.ndarray, chance: float, seed: int) -> dict[str, Any]:
    """The curves as numbers, each density's window, and both claims."""
    rng = np.random.default_rng(seed)
    n = len(parent)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    image_weights = np.concatenate([np.full((1, n), 1 / n), drawn])
    statistics = [resample(curve, parent, image_weights, rng) for curve in curves]
    lower = np.stack([crossing(c.sigma, s.flipped, FLIPPED) for c, s in zip(curves, statistics)])
    upper = np.stack([crossing(c.sigma, s.loss, LOST) for c, s in zip(curves, statistics)])
    shrink = np.array([[curve.density**0.5] for curve in curves])
    with np.errstate(invalid="ignore", divide="ignore"):
        octaves, log_upper, log_width = np.log2(upper / lower), np.log2(upper), np.log2(upper - lower)
    kept = parent.mean() - (parent.mean() - chance) / 2
    return {
        "curves": [
            {
                "density": curve.density,
                "sigma": curve.sigma.tolist(),
                "norm": curve.norm.tolist(),
                "accuracy": (parent.mean() - s.loss[:, 0]).tolist(),
                "accuracy_std": s.spread[:, 0].tolist(),
                "flipped": s.flipped[:, 0].tolist(),
            }
            for curve, s in zip(curves, statistics)
        ],
        "windows": [
            {
                "density": curve.density,
                "lower": estimated(lower[row]),
                "upper": estimated(upper[row]),
                "upper_at_matched_norm": estimated(upper[row] * shrink[row]),
                "octaves": estimated(octaves[row]),
            }
            for row, curve in enumerate(curves)
        ],
        "claim_a": {
            axis: pairs(curves, statistics, axis, float(parent.mean()), float(kept)) for axis in ("sigma", "norm")
        },
        "claim_b": {
            "octaves": trend(curves, octaves),
            "log2_upper": trend(curves, log_upper),
            "log2_upper_at_matched_norm": trend(curves, log_upper + np.log2(shrink)),
            "log2_width": trend(curves, log_width),
            "log2_width_at_matched_norm": trend(curves, log_width + np.log2(shrink)),
        },
    }


def estimated(samples: np.ndarray) -> dict[str, Any]:
    """A number, with its interval; `None` for what was not reached. Samples as in [`Statistics`]."""
    estimate = float(samples[0]) if np.isfinite(samples[0]) else None
    return {"estimate": estimate, "interval": None if estimate is None else interval(samples[1:])}


def with_verdict(samples: np.ndarray) -> dict[str, Any]:
    """The same for a number that the claim has above 0."""
    found = estimated(samples)
    return found | {"verdict": verdict(found["estimate"], found["interval"])}


def pairs(
    curves: Sequence[Curve], statistics: Sequence[Statistics], axis: str, parent_accuracy: float, kept: float
) -> list[dict[str, Any]]:
    """
    Claim (a): each density against the next lower one, over all sigmas (or norms) at which the denser children lose
    something, at least `LOST`, and do not lose more than half of what the parent has above chance.
    """
    found = []
    for row in range(len(curves) - 1):
        denser, sparser = curves[row], curves[row + 1]
        # Both are measured at powers of sqrt(2), which rounding makes comparable.
        places = [np.round(2 * np.log2(getattr(curve, axis))) for curve in (denser, sparser)]
        _, first, second = np.intersect1d(*places, return_indices=True)
        loss = statistics[row].loss[first, 0]
        counts = (loss >= LOST) & (parent_accuracy - loss >= kept)
        first, second = first[counts], second[counts]
        entry = {"densities": [denser.density, sparser.density], axis: getattr(denser, axis)[first].tolist()}
        if len(first):
            a, b = statistics[row], statistics[row + 1]
            with np.errstate(invalid="ignore", divide="ignore"):
                entry["loss"] = with_verdict((a.loss[first] - b.loss[second]).mean(axis=0))
                entry["log2_spread"] = with_verdict(np.log2(a.spread[first] / b.spread[second]).mean(axis=0))
        found.append(entry)
    return found


def trend(curves: Sequence[Curve], samples: np.ndarray) -> dict[str, Any]:
    """Claim (b): how much a number, of shape `(densities, 1 + resamples)`, grows by for each fourth of the density."""
    x = np.array([curve.halvings / 2 for curve in curves])
    if len(x) < 2:
        return with_verdict(np.full(samples.shape[1], np.nan))
    centred = x - x.mean()
    return with_verdict(centred @ samples / (centred @ centred))
