"""The front that a run ends with: its members on the test images, as a table, a plot and an ensemble."""

import copy
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts.ensemble import SMDEnsembleForImageClassification
from ..evaluation.images import ImageBatches
from ..files import write_json, write_text
from ..mutation import Change, Child
from .evolution import ParetoEvolution, Place, candidates_of, nondominated
from .plots import names_of, plot_front

FRONT_NAME = "front.json"
TABLE_NAME = "front.csv"
PLOT_NAME = "front.png"


@dataclass
class RunFront:
    """
    What is known of the front at the end of a run.

    Args:
        table (`dict`): `objectives` (a `dict` each, in their order: `name`, and `better`, `"lower"` or `"greater"`); `images` (how many each split
            has); `members` (a `dict` each: `generation` and `child` from 0, null for the first parent; `on_front`; `chosen`
            for the evolved model; and the objectives on the `selection` images, which chose the front and so are too
            favourable, and on the `test` images, null without any); and `others`, the candidates that are dominated. The
            first parent and the evolved model are among the members in any case.
        ensemble (list of (place, changes)): the members that go into an ensemble, as changes of the first parent.
    """

    table: dict[str, Any]
    ensemble: list[tuple[Place, dict[str, Change]]]


def run_front(
    evolution: ParetoEvolution, test_batches: ImageBatches | None, ensemble_size: int = 0
) -> RunFront | None:
    """
    The front of all generations, its members scored on the test images; a collective call.

    Args:
        evolution ([`ParetoEvolution`]): after its last step.
        test_batches ([`ImageBatches`], *optional*): the test images.
        ensemble_size (`int`, *optional*, defaults to 0): as many members of the front at the most, the nearest to the ideal
            point first, go into the ensemble.

    Returns:
        [`RunFront`], or `None` where no generation was run.
    """
    candidates, evolved = candidates_of(evolution.records(), evolution.objectives)
    if not candidates:
        return None
    front, raw = nondominated(candidates), evolution.objectives.raw
    # A stable sort by the first objective, best first; without a value last.
    ordered = sorted({**front, None: 0, evolved: 0}, key=lambda place: -candidates[place][0])
    members = sorted(front, key=lambda place: front[place])[:ensemble_size]
    test: dict[Place, list[float]] = {}
    changes: dict[Place, dict[str, Change]] = {}
    for generation in evolution.replay(ordered):
        places, children, variants = zip(*generation)
        if test_batches is not None:
            scores = evolution.evaluator.score(variants, test_batches, keep_logits=evolution.needs_logits)
            for score, other in zip(scores, evolution.outside_scores(variants, "test")):
                score.outside = other
            test |= dict(zip(places, evolution.values(scores, children, test_batches.labels)))
        changes |= {
            place: changes_of_first_parent(evolution, child)
            for place, child in zip(places, children)
            if place in members
        }
    entries = [
        {
            **_named(place),
            "on_front": place in front,
            "chosen": place == evolved,
            "selection": raw(candidates[place]),
            "test": raw(test[place]) if test else None,
        }
        for place in ordered
    ]
    others = [_named(place) | {"selection": raw(candidates[place])} for place in candidates if place not in ordered]
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


def _named(place: Place) -> dict[str, int | None]:
    generation, child = place or (None, None)
    return {"generation": generation, "child": child}


def changes_of_first_parent(evolution: ParetoEvolution, child: Child | None) -> dict[str, Change]:
    """A child of the present parent, as what differs from the parent that the run began with; `None`: the present parent."""
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


def front_ensemble(
    evolution: ParetoEvolution, front: RunFront, combination: str
) -> tuple[SMDEnsembleForImageClassification, list[dict[str, Any]]]:
    """The ensemble of a front, one vote a member, as changes of the first parent; and where its members were made."""
    with evolution.from_first_parent():
        model = copy.deepcopy(evolution.model)
    ensemble = SMDEnsembleForImageClassification.from_children(
        model, [changes for _, changes in front.ensemble], combination=combination
    )
    return ensemble, [_named(place) | {"votes": 1} for place, _ in front.ensemble]


def write_front(table: dict[str, Any], folder: Path) -> None:
    """Writes `front.json`, the members as `front.csv`, and `front.png`."""
    write_json(folder / FRONT_NAME, table)
    write_text(folder / TABLE_NAME, as_csv(table))
    plot_front(table, folder / PLOT_NAME)


def front_lines(front: RunFront | None) -> list[str]:
    """What the terminal is told of a front."""
    if front is None:
        return []
    count, names = sum(member["on_front"] for member in front.table["members"]), ", ".join(names_of(front.table))
    models = "model is" if count == 1 else "models are"
    return [f"By {names}, {count} {models} on the front: {TABLE_NAME} has the values, {PLOT_NAME} shows them."]


def as_csv(table: dict[str, Any]) -> str:
    """The members, one a line; an empty field where there is no value."""
    names = names_of(table)
    splits = [split for split in ("selection", "test") if table["members"][0][split] is not None]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    facts = ["generation", "child", "on_front", "chosen"]
    writer.writerow([*facts, *(f"{split}_{name}" for split in splits for name in names)])
    for member in table["members"]:
        values: Sequence[Any] = [member[split][name] for split in splits for name in names]
        writer.writerow([*(member[fact] for fact in facts), *values])
    return text.getvalue()
