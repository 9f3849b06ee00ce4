"""
Passes of a parent as each of its children: the changes go in, the pass runs, and what stood there comes back.

Children that leave the beginning of the parent as it is share that beginning: it runs once for all of them.

This file travels with an ensemble's checkpoint: it imports torch and transformers alone, and files that travel with
it.
"""

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import attrgetter
from typing import Any

import torch
from transformers import PreTrainedModel

from .derived_weights import forget_derived, keepers
from .outputs import logits_of
from .prefix_replay import PrefixReplay
from .sparse_changes import exchange
from .sparse_member import SparseMember, changeable_tensors


def model_logits(model: PreTrainedModel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """A model's logits, `(batch, classes)`, in float32 at least; floating-point inputs are cast to the model's dtype."""
    output = model(*[_cast(value, model) for value in args], **{name: _cast(kwargs[name], model) for name in kwargs})
    logits = logits_of(output)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _cast(value: Any, model: PreTrainedModel) -> Any:
    floats = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(model.dtype) if floats else value


@contextmanager
def _put_in_place(parent: PreTrainedModel, member: SparseMember) -> Iterator[None]:
    """Within the block, the parent is this member; its bytes come back, also where the block raises."""
    undo, caching = [], keepers(parent)
    try:
        for name, (indices, values) in member.changes():
            tensor = attrgetter(name)(parent)
            indices = None if indices is None else indices.to(tensor.device)
            undo.append((tensor, indices, exchange(tensor, indices, values.to(tensor.device, tensor.dtype))))
        # Autocast keeps casts by tensor, and a change in place goes unnoticed.
        torch.clear_autocast_cache()
        forget_derived(caching)
        yield
    finally:
        for tensor, indices, before in undo:
            exchange(tensor, indices, before)
        torch.clear_autocast_cache()
        forget_derived(caching)


class ChildPasses:
    """
    Runs a parent as its children, one thread at a time.

    Parent and members are given to each call, for `torch.nn.DataParallel` calls with replicas of them.

    Args:
        parent ([`PreTrainedModel`]): the parent.
        members (sequence of [`SparseMember`]): its children.
    """

    def __init__(self, parent: PreTrainedModel, members: Sequence[SparseMember]):
        self.lock = threading.RLock()
        self.replay = PrefixReplay(parent)
        self.recorded = _member_to_record(parent, members)

    @torch.no_grad()
    def logits(
        self,
        parent: PreTrainedModel,
        members: Sequence[SparseMember],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> list[torch.Tensor]:
        """Each member's logits, see [`model_logits`]."""
        # Once, so that a replay finds every pass to have the very same input.
        args = [_cast(value, parent) for value in args]
        kwargs = {name: _cast(value, parent) for name, value in kwargs.items()}
        found: dict[int, torch.Tensor] = {}
        with self.lock:
            try:
                for i in sorted(range(len(members)), key=lambda i: i != self.recorded):
                    with _put_in_place(parent, members[i]), self._shared_prefix(parent, members, i):
                        found[i] = model_logits(parent, args, kwargs)
            finally:
                self.replay.clear()
        return [found[i] for i in range(len(members))]

    @torch.no_grad()
    def child(self, parent: PreTrainedModel, member: SparseMember) -> PreTrainedModel:
        """A copy of the parent as one of its children."""
        with self.lock, _put_in_place(parent, member):
            return copy.deepcopy(parent)

    def _shared_prefix(
        self, parent: PreTrainedModel, members: Sequence[SparseMember], i: int
    ) -> AbstractContextManager[None]:
        """Within the block, the pass as member `i` is recorded, or begins where it differs from the recorded one."""
        if self.recorded is None or parent.training:
            return nullcontext()
        recorded = members[self.recorded].names
        if i != self.recorded:
            return self.replay.replay(recorded | members[i].names)
        return self.replay.record([recorded | m.names for j, m in enumerate(members) if j != i])


def _member_to_record(parent: PreTrainedModel, members: Sequence[SparseMember]) -> int | None:
    """
    The member whose pass the others can begin with: the one whose first change comes last, by the order of the
    parent's parameters. `None` where no other member leaves the beginning as it is.

    The order is a guess that can cost time alone: what may be replayed is found out by watching a pass.
    """
    position = {name: i for i, name in enumerate(changeable_tensors(parent))}
    starts = [min((position[name] for name in member.names), default=len(position)) for member in members]
    last = max(range(len(starts)), key=starts.__getitem__)
    return last if sum(start > 0 for start in starts) > 1 else None
