"""Calibrates sigma by bisection until children flip a target share of predictions, and schedules it over generations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..data.batches import ImageBatches
from ..errors import SMDError
from ..scoring.reading import Reading
from .evolution import Evolution
from .fitness_scorer import PARENT, check_parent

PROBES = 4
"""Number of children that measure the effect of a sigma."""

FIRST_SIGMA = {"relative": 0.1, "absolute": 0.01}
"""The first sigma to try, by `sigma_units`."""


@dataclass(frozen=True)
class Calibration:
    """
    The result of a calibration.

    Args:
        sigma (`float`): the chosen sigma.
        flipped (`float`): share of predictions that its children flip, in [0, 1].
        target (`float`): the share to reach.
        curve (tuple of (`float`, `float`)): every measured pair (sigma, share of flipped predictions), sorted by sigma.
    """

    sigma: float
    flipped: float
    target: float
    curve: tuple[tuple[float, float], ...]

    def __str__(self) -> str:
        curve = ", ".join(f"{sigma:.4g}: {100 * share:.1f} %" for sigma, share in self.curve)
        return (
            f"sigma was calibrated to {self.sigma:.4g}, at which a child flips {100 * self.flipped:.1f} % of the predictions "
            f"(curve: {curve})."
        )


def calibrate_sigma(
    flipped: Callable[[float], float],
    target: float,
    start: float,
    tolerance: float = 0.1,
    max_probes: int = 16,
) -> Calibration:
    """
    Finds sigma by bisection on its logarithm.

    Args:
        flipped (`Callable`): maps sigma to the mean share of predictions that differ from the parent's. It grows with sigma.
        target (`float`): the share to reach, in (0, 1).
        start (`float`): the first sigma to try. The bracket grows from it by factors of 4.
        tolerance (`float`, *optional*, defaults to 0.1): stops when the share is this close to the target, relative to it.
        max_probes (`int`, *optional*, defaults to 16): tries at most this many sigmas.

    Returns:
        [`Calibration`]: of the tried sigma whose share is nearest to the target.

    Raises:
        `SMDError`: if no sigma flips any prediction.
    """
    measured: dict[float, float] = {}
    low = high = None
    sigma = start
    for _ in range(max_probes):
        measured[sigma] = share = flipped(sigma)
        if abs(share - target) <= tolerance * target:
            break
        if share < target:
            low = sigma
        else:
            high = sigma
        if low is not None and high is not None:
            sigma = (low * high) ** 0.5
        else:
            sigma = sigma * 4 if share < target else sigma / 4
    if not any(measured.values()):
        raise SMDError(
            f"No sigma up to {max(measured):.3g} changes a prediction: the mutable parameters do not reach the logits, or "
            "their values are all zero. Choose others with mutable_parameters, or set sigma with sigma_units='absolute'."
        )
    best = min(measured, key=lambda tried: (abs(measured[tried] - target), tried))
    return Calibration(best, measured[best], target, tuple(sorted(measured.items())))


def flipped(evolution: Evolution, sigma: float, sample: ImageBatches, num_probes: int = PROBES) -> float:
    """
    The mean share of a sample's predictions that a child of this sigma flips.

    The children belong to generation -1, so every sigma gets the same noise. They are evenly spaced in the population.
    """
    children = evolution.mutation.children(-1, sigma)
    places = np.linspace(0, len(children) - 1, min(num_probes, len(children)))
    variants = [PARENT, *(evolution.variant(children[round(place)]) for place in places)]
    flips = _Flips(evolution.evaluator.reading, len(places))
    parent, *_ = evolution.evaluator.score(variants, sample, sums=flips)
    check_parent(parent.finite)
    assert flips.total is not None
    return float(np.mean(flips.total / sample.num_images))


class _Flips:
    """For each child, the number of images whose prediction it flips; of images with many predictions, the share of these."""

    def __init__(self, reading: Reading, num_children: int):
        self.reading = reading
        self.shape = (num_children,)
        self.total: np.ndarray | None = None

    def __call__(
        self, logits: Sequence[torch.Tensor], labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> np.ndarray:
        parent, *children = logits
        return np.array([self.reading.flipped(parent, child).cpu().double().sum().item() for child in children])


def calibrated(evolution: Evolution, batches: ImageBatches, samples: int, target: float) -> Calibration:
    """
    Finds the sigma at which the children of an evolution flip a target share of predictions.

    Args:
        target (`float`): the share to reach, in (0, 1).

    Raises:
        `SMDError`: if no sigma flips any prediction.
    """
    sample = batches.head(samples)
    start = FIRST_SIGMA[evolution.mutation.sigma_units]
    return calibrate_sigma(lambda sigma: flipped(evolution, sigma, sample), target, start)


def scheduled_sigma(sigma: float, schedule: str, generation: int, num_generations: int) -> float:
    """
    Sigma in one generation.

    Args:
        sigma (`float`): in generation 0.
        schedule (`str`): `"constant"`; `"linear"`: falls by sigma / `num_generations` per generation; `"cosine"`: half a
            cosine from sigma towards 0 (Loshchilov and Hutter 2017, without restarts). Neither of the last two reaches 0.
        generation (`int`): counts from 0.
    """
    share = generation / num_generations
    if schedule == "constant":
        return sigma
    if schedule == "linear":
        return sigma * (1 - share)
    return sigma * 0.5 * (1 + float(np.cos(np.pi * share)))
