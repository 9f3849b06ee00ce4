"""The front at the end of a run by several objectives, with its members scored on the test images."""

from dataclasses import dataclass
from typing import Any

from ...data.batches import ImageBatches
from ...scoring.changes import Change
from ..mutation import Child
from .pareto_evolution import ParetoEvolution, Place, candidates_of, nondominated


@dataclass
class RunFront:
    """
    The front at the end of a run.

    Args:
        table (`dict`): has four entries. `objectives`: for each, its `name` and `better` (`"lower"` or `"greater"`). `images`:
            the number of images of each split. `members`: for each, `generation` and `child` from 0 (null for the first
            parent), `on_front`, `chosen` (true for the evolved model), and the objectives on the `selection` images (optimistic,
            because these images chose the front) and on the `test` images (null if there are none). The first parent and the
            evolved model are always members. `others`: the dominated candidates.
        ensemble (list of (place, changes)): the members of an ensemble, as changes of the first parent.
    """

    table: dict[str, Any]
    ensemble: list[tuple[Place, dict[str, Change]]]


def run_front(
    evolution: ParetoEvolution, test_batches: ImageBatches | None, ensemble_size: int = 0
) -> RunFront | None:
    """
    Finds the front of all generations and scores its members on the test images. All processes must call it.

    Args:
        evolution ([`ParetoEvolution`]): after its last step.
        ensemble_size (`int`, *optional*, defaults to 0): puts at most this many members of the front into the ensemble, the
            nearest to the ideal point first.

    Returns:
        [`RunFront`], or `None` if no generation was run.
    """
    candidates, evolved = candidates_of(evolution.records, evolution.objectives)
    if not candidates:
        return None
    front, raw = nondominated(candidates), evolution.objectives.raw
    # A stable sort by the first objective, the best first. Members without a value come last.
    ordered = sorted({**front, None: 0, evolved: 0}, key=lambda place: -candidates[place][0])
    members = sorted(front, key=lambda place: front[place])[:ensemble_size]
    test: dict[Place, list[float]] = {}
    changes: dict[Place, dict[str, Change]] = {}
    for generation in evolution.replay(ordered):
        places, children, variants = map(list, zip(*generation))
        if test_batches is not None:
            scores = evolution.evaluator.score(variants, test_batches, keep_logits=evolution.scorer.keep_logits)
            for score, other in zip(scores, evolution.scorer.ood_scores(variants, "test")):
                score.ood = other
            test |= dict(zip(places, evolution.values(scores, children, test_batches.labels)))
        changes |= {
            place: changes_of_first_parent(evolution, child)
            for place, child in zip(places, children)
            if place in members
        }
    entries = [
        {
            **named(place),
            "on_front": place in front,
            "chosen": place == evolved,
            "selection": raw(candidates[place]),
            "test": raw(test[place]) if test else None,
        }
        for place in ordered
    ]
    others = [named(place) | {"selection": raw(candidates[place])} for place in candidates if place not in ordered]
    better = zip(evolution.objectives.names, evolution.objectives.greater_is_better)
    table = {
        "objectives": [{"name": name, "better": "greater" if greater else "lower"} for name, greater in better],
        "images": {
            "selection": evolution.selection_batches.num_images,
            "test": 0 if test_batches is None else test_batches.num_images,
        },
        "members": entries,
        "others": others,
    }
    return RunFront(table, [(place, changes[place]) for place in members])


def named(place: Place) -> dict[str, int | None]:
    generation, child = place or (None, None)
    return {"generation": generation, "child": child}


def changes_of_first_parent(evolution: ParetoEvolution, child: Child | None) -> dict[str, Change]:
    """The changes that turn the first parent into a child of the current parent; `None`: into the current parent."""
    values = {name: parameter.detach().clone() for name, parameter in evolution.mutation.parameters.items()}
    for name, (indices, new) in evolution.mutation.changes(child) if child is not None else ():
        if indices is None:
            values[name] = new
        else:
            values[name].put_(indices, new)
    changes = {}
    for name, value in values.items():
        different = (value != evolution.first_parent[name]).flatten().nonzero().flatten()
        if len(different):
            changes[name] = (different, value.take(different))
    return changes
