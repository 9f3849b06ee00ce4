"""Passes of a parent as each of its children: those that leave its beginning as it is share that beginning."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from ...remote_code.members_smd_ensemble import SparseMember, changeable_tensors
from ...remote_code.modeling_smd_ensemble import model_logits
from ...scoring.prefix_replay import PrefixReplay


class ChildPasses:
    """
    Runs a parent as its children. It is not safe to be called by two threads at once.

    Parent and members are given to each call, for `torch.nn.DataParallel` calls with replicas of them.
    """

    def __init__(self, parent: PreTrainedModel, members: Sequence[SparseMember]):
        self.replay = PrefixReplay(parent)
        self.recorded = _member_to_record(parent, members)

    def logits(
        self, parent: PreTrainedModel, members: Sequence[SparseMember], inputs: dict[str, Any]
    ) -> list[torch.Tensor]:
        """Each member's logits, see [`model_logits`]. Every pass gets the very same inputs, so that it can be replayed."""
        found: dict[int, torch.Tensor] = {}
        try:
            for i in sorted(range(len(members)), key=lambda i: i != self.recorded):
                with members[i].within(parent), self._shared_prefix(parent, members, i):
                    found[i] = model_logits(parent, inputs)
        finally:
            self.replay.clear()
        return [found[i] for i in range(len(members))]

    def _shared_prefix(
        self, parent: PreTrainedModel, members: Sequence[SparseMember], i: int
    ) -> AbstractContextManager[None]:
        """Within the block, the pass as member `i` is recorded, or begins where it differs from the recorded one."""
        if self.recorded is None or parent.training:
            return nullcontext()
        recorded = _changed(members[self.recorded])
        if i != self.recorded:
            return self.replay.replay(recorded | _changed(members[i]))
        return self.replay.record([recorded | _changed(member) for j, member in enumerate(members) if j != i])


def _changed(member: SparseMember) -> frozenset[str]:
    """The names in memory of the tensors that a member changes."""
    return frozenset(segment.name for segment in member.segments)


def _member_to_record(parent: PreTrainedModel, members: Sequence[SparseMember]) -> int | None:
    """
    The member whose pass the others can begin with: the one whose first change comes last, by the order of the
    parent's parameters. `None` where no other member leaves the beginning as it is.

    The order is a guess that can cost time alone: what may be replayed is found out by watching a pass.
    """
    position = {name: i for i, name in enumerate(changeable_tensors(parent))}
    starts = [min((position[name] for name in _changed(member)), default=len(position)) for member in members]
    last = max(range(len(starts)), key=starts.__getitem__)
    return last if sum(start > 0 for start in starts) > 1 else None
