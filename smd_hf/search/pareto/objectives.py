"""
Several objectives at once: which candidates no other dominates, and which of these to go on with.

One candidate dominates another if it is no worse in any objective and better in one. Those that nothing dominates are the
front. This is about *choosing*, by any numbers whatever, and is what the argument `objectives` asks for; what a
Gauss-Newton step lowers is one function that is differentiable in the logits, the argument `objective` (see `objectives.py`).

Values are signed so that greater is better. Sorting and crowding distances are pymoo's (Deb et al. 2002, NSGA-II).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from transformers import EvalPrediction

from ...scoring.scores import Score
from ..fitness import Fitness

COORDINATE_OBJECTIVES = {"mutated_fraction": False, "zero_fraction": True}
"""Objectives about weights, not about predictions, and whether more is better."""


class Objectives:
    """
    The numbers that candidates are compared by.

    Args:
        names (sequence of `str`): names of [`Fitness`], with or without the prefix `eval_`, or of `COORDINATE_OBJECTIVES`; at
            least one of the former.
        compute_metrics (`Callable`, *optional*): as for [`Fitness`].
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
        self.needs_outside = any(fitness.needs_outside for fitness in self._measured.values())
        self.about_coordinates = [name for name in names if name in COORDINATE_OBJECTIVES]
        self.greater_is_better = [
            COORDINATE_OBJECTIVES[name] if name in COORDINATE_OBJECTIVES else self._measured[name].greater_is_better
            for name in names
        ]

    def __call__(self, score: Score, labels: np.ndarray, coordinates: Mapping[str, float]) -> list[float]:
        """
        One value an objective, better when greater; minus infinity where it is not finite.

        Args:
            score ([`Score`]): of a variant, also on the second data set where an objective is about that.
            labels (`numpy.ndarray`): of the images of the score, of shape `(n,)`.
            coordinates (mapping): the variant's values of the objectives about weights.
        """
        metrics = None
        if self._computes_metrics and score.finite:
            # Once for all objectives: each call may go through all logits.
            metrics = self._compute_metrics(EvalPrediction(predictions=score.logits, label_ids=labels))
        values = []
        for key, greater in zip(self._keys, self.greater_is_better):
            if key in self._measured:
                values.append(self._measured[key](score, labels, metrics))
            else:
                values.append(coordinates[key] if greater else -coordinates[key])
        return values

    def raw(self, values: Sequence[float]) -> dict[str, float | None]:
        """Values by the objectives' names and in their own directions; `None` for those that are not finite."""
        return {
            name: (value if greater else -value) if np.isfinite(value) else None
            for name, greater, value in zip(self.names, self.greater_is_better, values)
        }

    def signed(self, raw: Mapping[str, float | None]) -> list[float]:
        """The inverse of [`Objectives.raw`]."""
        return [
            float("-inf") if raw[name] is None else raw[name] if greater else -raw[name]
            for name, greater in zip(self.names, self.greater_is_better)
        ]


def front_of(values: np.ndarray) -> list[int]:
    """
    The candidates that no other dominates, in their order; of several with the same values, the first alone.

    Args:
        values (`numpy.ndarray`): of shape `(candidates, objectives)`, better when greater. Rows with a value that is not
            finite are never in the front.
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
    The best candidates by rank (those that nothing dominates; those that nothing of the rest dominates; and so on), in a rank
    by crowding distance, the most solitary first; of equals the earlier.

    Args:
        values (`numpy.ndarray`): of shape `(candidates, objectives)`, better when greater. Rows with a value that is not
            finite are left out.
        count (`int`): how many, at the most.
    """
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    order: list[int] = []
    for front in _fronts(values):
        solitude = calc_crowding_distance(-values[front])
        order += [front[place] for place in np.argsort(-solitude, kind="stable")]
        if len(order) >= count:
            break
    return order[:count]


def _fronts(values: np.ndarray) -> list[list[int]]:
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    finite = np.flatnonzero(np.isfinite(values).all(axis=1))
    if not len(finite):
        return []
    # pymoo takes the smaller for the better.
    return [sorted(finite[front].tolist()) for front in NonDominatedSorting().do(-values[finite])]


def distances_to_ideal(values: np.ndarray) -> np.ndarray:
    """
    How far each member of a front is from the point that has the best value of every objective.

    Each objective is scaled to its range in the front: the best is 0 and the worst 1, or all are 0 where they are equal.

    Args:
        values (`numpy.ndarray`): of shape `(members, objectives)`, finite, better when greater.

    Returns:
        `numpy.ndarray`: Euclidean distances, float64, of shape `(members,)`, from 0 to the root of the number of objectives.
    """
    best, worst = values.max(axis=0), values.min(axis=0)
    ranges = np.where(best > worst, best - worst, 1.0)
    return np.sqrt((((best - values) / ranges) ** 2).sum(axis=1))
