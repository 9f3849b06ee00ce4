"""A child made again from what a run has recorded."""

from typing import Any

from smd_hf.scoring.changes import commit
from smd_hf.search.mutation import Mutation


def rebuild_child(
    mutation: Mutation, records: list[dict[str, Any]], generation: int, index: int
) -> list[tuple[str, Any]]:
    """
    Turns the original parent into a recorded child, in place.

    Args:
        mutation ([`Mutation`]): over a model that holds the *original* parent, made with the run's own arguments; its model
            is the child afterwards.
        records (list of `dict`): the run's `children.jsonl`, a [`Generation.record`] a line, up to `generation`.
        generation (`int`), index (`int`): of the child.

    Returns:
        list of (name, [`Change`]): what the last step changed, relative to that generation's parent.
    """
    for record in records[:generation]:
        children = mutation.children(record["generation"], record["sigma"])
        if record["parts"]:
            commit(mutation.parameters, mutation.combination([(children[i], weight) for i, weight in record["parts"]]))
            mutation.parent_changed()
    child = mutation.children(generation, records[generation]["sigma"])[index]
    changes = list(mutation.changes(child))
    commit(mutation.parameters, changes)
    return changes
