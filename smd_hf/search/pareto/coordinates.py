"""Counts exactly, without a forward pass, how many weights of a candidate differ from a reference and how many are zero."""

from collections.abc import Mapping

import torch

from ..mutation import Child, Mutation


class CoordinateCounts:
    """
    Counts over the mutable coordinates of a child, computed from its changes and its parent's counts.

    Args:
        mutation ([`Mutation`]): makes the children. Its model holds their parent.
        reference (mapping of `str` to `torch.Tensor`): values to compare with, by name of the mutable parameter.
    """

    def __init__(self, mutation: Mutation, reference: Mapping[str, torch.Tensor]):
        self.mutation = mutation
        self.reference = reference
        self.parent_changed()

    def parent_changed(self) -> None:
        """Counts the parent again. Call it after every lasting change of its weights."""
        self._parent = {
            name: (_count(parameter.detach() != self.reference[name]), _count(parameter.detach() == 0))
            for name, parameter in self.mutation.parameters.items()
        }
        self._known: dict[int, dict[str, float]] = {}

    def shares(self, child: Child | None) -> dict[str, float]:
        """
        The shares of the mutable coordinates that differ from the reference (`mutated_fraction`) and that are exactly zero
        (`zero_fraction`).

        Args:
            child ([`Child`], *optional*): a child of the current parent; `None` for the parent itself.
        """
        if child is None:
            return self._as_shares(self._parent)
        if child.index not in self._known:
            counts = dict(self._parent)
            for name, (indices, values) in self.mutation.changes(child):
                parameter, reference = self.mutation.parameters[name].detach(), self.reference[name]
                if indices is not None:
                    parameter, reference = parameter.take(indices), reference.take(indices)
                mutated, zeros = counts[name]
                counts[name] = (
                    mutated + _count(values != reference) - _count(parameter != reference),
                    zeros + _count(values == 0) - _count(parameter == 0),
                )
            self._known[child.index] = self._as_shares(counts)
        return self._known[child.index]

    def _as_shares(self, counts: Mapping[str, tuple[int, int]]) -> dict[str, float]:
        mutated, zeros = (sum(each) for each in zip(*counts.values()))
        return {
            "mutated_fraction": mutated / self.mutation.space.total,
            "zero_fraction": zeros / self.mutation.space.total,
        }


def _count(mask: torch.Tensor) -> int:
    return int(mask.sum())
