"""
Runs a model as a compiled graph that takes weights as inputs.

A child is the parent's tensors with some replaced. Nothing is written into the model, and nothing is restored. A child whose
first changed weight comes late starts at a cut of the graph, from the parent's activations there.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import fx, nn

from ...models.quantized import named_tensors
from ...remote_code.members_smd_ensemble import logits_of
from ..changes import Change
from .graph import Exported, Read
from .plan import Compiled, Plan
from .protocol import Forward, Inputs
from .segments import Cut

SEGMENTS = 16
"""Into how many parts a model is cut at most: for each cut that children start at, activations of a batch are kept."""


class Recording(NamedTuple):
    """A batch that the parent has been run on, and the activations from which children continue."""

    plan: Plan
    inputs: Inputs
    kept: Mapping[str, torch.Tensor]
    exact: frozenset[int]

    def start(self, changed: Iterable[str]) -> int:
        """The part that a child begins with: the last one before its changes that gives the bits of a whole pass."""
        start = self.plan.start(changed)
        return max((part for part in self.exact if part <= start), default=0)


class SegmentedRuntime:
    """
    Exports a model, compiles its graph and runs children through it.

    Args:
        model (`torch.nn.Module`): in eval mode.
        mutable (collection of `str`, *optional*): names of the parameters that children may change. All others become
            constants, until a child changes one. By default all are mutable.
        batch_size (`int`, *optional*): smaller batches are filled up to this size, so that one graph serves all. By default
            each size of a batch has a graph of its own.
        segments (`int`, *optional*, defaults to 16): into how many the model is cut at most.

    Raises:
        [`CannotExport`]: by the first pass, if the model cannot be exported or compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        compile: Callable[[Cut], Compiled],
        mutable: Collection[str] | None = None,
        batch_size: int | None = None,
        segments: int = SEGMENTS,
        read: Read = logits_of,
    ):
        self.model = model
        self.name = name
        self.batch_size = batch_size
        self.segments = segments
        self.wants_one_thread = False  # until there is a graph
        self._compile = compile
        self._read = read
        self._parameters = named_tensors(model)
        self._mutable = frozenset(self._parameters if mutable is None else mutable)
        self._plans: dict[tuple, Plan] = {}
        self._recording: Recording | None = None

    def begin(self) -> None:
        self.clear()
        self._parameters = named_tensors(self.model)
        self._plans = {key: plan for key, plan in self._plans.items() if plan.fits(self.model)}
        for plan in self._plans.values():
            plan.refresh()

    def forward(self, inputs: Inputs) -> torch.Tensor:
        self.begin()
        plan, filled = self._plan(inputs)
        return plan.run(filled, plan.values)[0][: _length(inputs)]

    @contextmanager
    def child(
        self, changes: Iterable[tuple[str, Change]], changed: Collection[str] | None = None
    ) -> Iterator[Forward]:
        tensors = self._tensors(changes)
        # The same for all batches of a plan.
        values: dict[int, dict[fx.Node, torch.Tensor]] = {}

        def forward(inputs: Inputs) -> torch.Tensor:
            plan, filled = self._plan(inputs)
            if id(plan) not in values:
                values[id(plan)] = plan.values_of(tensors)
            recording = self._recording
            if changed is not None and recording is not None and inputs is recording.inputs:
                part = recording.start(tensors)
                if part > 0:
                    return plan.run_from(part, filled, values[id(plan)], recording.kept)[: _length(inputs)]
            return plan.run(filled, values[id(plan)])[0][: _length(inputs)]

        yield forward

    def record(self, inputs: Inputs, starts: Iterable[Collection[str]]) -> torch.Tensor:
        self.clear()
        starts = list(starts)
        self._let_change(frozenset().union(*starts))
        plan, filled = self._plan(inputs)
        parts = frozenset(plan.start(changed) for changed in starts if changed) - {0}
        logits, kept = plan.run_keeping(filled, parts)
        self._recording = Recording(plan, inputs, kept, plan.exact(parts, filled, kept, logits))
        return logits[: _length(inputs)]

    def can_replay(self) -> bool:
        return self.segments > 1

    def suffix_share(self, changed: Collection[str]) -> float:
        if self._recording is None:
            return 1.0
        plan = self._recording.plan
        return plan.cut.cost(plan.start(changed))

    def clear(self) -> None:
        self._recording = None

    def _tensors(self, changes: Iterable[tuple[str, Change]]) -> dict[str, torch.Tensor]:
        """The tensors of a child that are not the parent's."""
        tensors = {}
        for name, (indices, values) in changes:
            if indices is not None:
                copy = self._parameters[name].detach().clone(memory_format=torch.contiguous_format)
                values = copy.put_(indices.long(), values)
            tensors[name] = values
        self._let_change(tensors.keys())
        return tensors

    def _let_change(self, names: Collection[str]) -> None:
        if not self._mutable.issuperset(names):
            self._mutable |= frozenset(names)
            self._plans.clear()

    def _plan(self, inputs: Inputs) -> tuple[Plan, Inputs]:
        """The plan for a batch, and the batch in the size that it takes."""
        filled = {name: self._filled(tensor) for name, tensor in inputs.items()}
        key = tuple((name, *tensor.shape, tensor.dtype) for name, tensor in sorted(filled.items()))
        if key not in self._plans:
            exported = Exported(self.model, filled, self._read)
            self._plans[key] = Plan(exported, self._mutable, self._compile, self.segments)
        self.wants_one_thread = self._plans[key].wants_one_thread
        return self._plans[key], filled

    def _filled(self, tensor: torch.Tensor) -> torch.Tensor:
        """With the last image repeated until the batch has its full size."""
        missing = 0 if self.batch_size is None else self.batch_size - len(tensor)
        return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing > 0 else tensor


def _length(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))
