"""
Several objectives at once: finds the non-dominated candidates and ranks the rest.

One candidate dominates another if it is no worse in any objective and better in at least one. The front is the set of
non-dominated candidates. The argument `objectives` names the numbers that *choose* candidates, and any metric will do. It is
not the argument `loss`, the differentiable function of the logits that a Gauss-Newton step lowers (see `losses.py`).

Values are signed so that greater is better. Sorting and crowding distances are pymoo's (Deb et al. 2002, NSGA-II).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from transformers import EvalPrediction

from ...scoring.scores import Score
from ..fitness import Fitness

COORDINATE_OBJECTIVES = {"mutated_fraction": False, "zero_fraction": True}
"""Objectives that measure weights, not predictions, and whether greater is better."""


class Objectives:
    """
    Computes the values of several objectives.

    Args:
        names (sequence of `str`): names for [`Fitness`], with or without the prefix `eval_`, at least one; and names of
            `COORDINATE_OBJECTIVES`.
    """

    def __init__(
        self,
        names: Sequence[str],
        compute_metrics: Callable[[EvalPrediction], Mapping[str, float]] | None = None,
    ):
        self._measured = {name: Fitness(name, compute_metrics) for name in names if name not in COORDINATE_OBJECTIVES}
        self.names = [self._measured[name].name if name in self._measured else name for name in names]
        self._keys = list(names)
        self._compute_metrics = compute_metrics
        self._computes_metrics = any(fitness.computes_metrics for fitness in self._measured.values())
        self.needs_logits = any(fitness.needs_logits for fitness in self._measured.values())
        self.needs_ood = any(fitness.needs_ood for fitness in self._measured.values())
        self.about_coordinates = [name for name in names if name in COORDINATE_OBJECTIVES]
        self.greater_is_better = [
            COORDINATE_OBJECTIVES[name] if name in COORDINATE_OBJECTIVES else self._measured[name].greater_is_better
            for name in names
        ]

    def __call__(self, score: Score, labels: np.ndarray, coordinates: Mapping[str, float]) -> list[float]:
        """
        One value per objective: greater is better, and minus infinity if the value is not finite.

        Args:
            score ([`Score`]): of a variant, also on out-of-distribution images if an objective needs them.
            labels (`numpy.ndarray`): of the scored images, of shape `(n,)`.
            coordinates (mapping): the variant's values of the objectives in `COORDINATE_OBJECTIVES`.
        """
        metrics = None
        if self._computes_metrics and self._compute_metrics is not None and score.finite:
            # Call it once for all objectives: it may go through all logits.
            metrics = self._compute_metrics(EvalPrediction(predictions=score.logits, label_ids=labels))
        values = []
        for key, greater in zip(self._keys, self.greater_is_better):
            if key in self._measured:
                values.append(self._measured[key](score, labels, metrics))
            else:
                values.append(coordinates[key] if greater else -coordinates[key])
        return values

    def raw(self, values: Sequence[float]) -> dict[str, float | None]:
        """Converts values to metrics in their own directions, by name; `None` for values that are not finite."""
        return {
            name: (value if greater else -value) if np.isfinite(value) else None
            for name, greater, value in zip(self.names, self.greater_is_better, values)
        }

    def signed(self, raw: Mapping[str, float | None]) -> list[float]:
        """The inverse of [`Objectives.raw`]."""
        values = [raw[name] for name in self.names]
        return [
            float("-inf") if value is None else value if greater else -value
            for value, greater in zip(values, self.greater_is_better)
        ]


def front_of(values: np.ndarray) -> list[int]:
    """
    The non-dominated candidates, in their order. If several have the same values, only the first is returned.

    Args:
        values (`numpy.ndarray`): of shape `(candidates, objectives)`, greater is better. A row with a value that is not finite
            is never on the front.
    """
    fronts = _fronts(values)
    if not fronts:
        return []
    seen: dict[tuple[float, ...], int] = {}
    for number in fronts[0]:
        seen.setdefault(tuple(values[number]), number)
    return sorted(seen.values())


def fittest_of(values: np.ndarray, count: int) -> list[int]:
    """
    The best candidates by non-dominated rank, and within a rank by crowding distance, the greatest first. Ties go to the
    earlier candidate.

    Args:
        values (`numpy.ndarray`): of shape `(candidates, objectives)`, greater is better. A row with a value that is not finite
            is left out.
        count (`int`): returns at most this many.
    """
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    order: list[int] = []
    for front in _fronts(values):
        distances = calc_crowding_distance(-values[front])
        order += [front[place] for place in np.argsort(-distances, kind="stable")]
        if len(order) >= count:
            break
    return order[:count]


def _fronts(values: np.ndarray) -> list[list[int]]:
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    finite = np.flatnonzero(np.isfinite(values).all(axis=1))
    if not len(finite):
        return []
    # For pymoo, smaller is better.
    return [sorted(finite[front].tolist()) for front in NonDominatedSorting().do(-values[finite])]


def distances_to_ideal(values: np.ndarray) -> np.ndarray:
    """
    The distance of each member of a front to the ideal point, which has the best value of every objective.

    Each objective is scaled to its range on the front: the best value is 0 and the worst 1. If all are equal, all are 0.

    Args:
        values (`numpy.ndarray`): of shape `(members, objectives)`, finite, greater is better.

    Returns:
        `numpy.ndarray`: Euclidean distances, float64, of shape `(members,)`, from 0 to the root of the number of objectives.
    """
    best, worst = values.max(axis=0), values.min(axis=0)
    ranges = np.where(best > worst, best - worst, 1.0)
    return np.sqrt((((best - values) / ranges) ** 2).sum(axis=1))
