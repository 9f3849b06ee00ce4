"""
Runs a model as compiled segments that take weights as inputs.

A child is the parent's tensors with some replaced. Nothing is written into the model, and nothing is restored.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import fx, nn

from ..changes import Change
from .graph import Exported
from .plan import Compile, Plan
from .protocol import Forward, Inputs

SEGMENTS = 16
"""Into how many segments a model is cut at most: each boundary costs a copy of activations."""


class Recording(NamedTuple):
    """A batch that the parent has been run on, and the activations from which children continue."""

    plan: Plan
    inputs: Inputs
    kept: Mapping[str, torch.Tensor]


class SegmentedRuntime:
    """
    Exports a model, cuts the graph, compiles the segments and runs children through them.

    Args:
        model (`torch.nn.Module`): in eval mode.
        name (`str`): the runtime's.
        compile (`Callable`): compiles a graph.
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
        compile: Compile,
        mutable: Collection[str] | None = None,
        batch_size: int | None = None,
        segments: int = SEGMENTS,
    ):
        self.model = model
        self.name = name
        self.batch_size = batch_size
        self.segments = segments
        self._compile = compile
        self._parameters = dict(model.named_parameters())
        self._mutable = frozenset(self._parameters if mutable is None else mutable)
        self._plans: dict[tuple, Plan] = {}
        self._recording: Recording | None = None

    def begin(self) -> None:
        self.clear()
        self._parameters = dict(self.model.named_parameters())
        self._plans = {key: plan for key, plan in self._plans.items() if plan.fits(self.model)}
        for plan in self._plans.values():
            plan.refresh()

    def forward(self, inputs: Inputs) -> torch.Tensor:
        self.begin()
        plan, filled = self._plan(inputs)
        return plan.run(filled, plan.values)[: _length(inputs)]

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
            of_child, recording = values[id(plan)], self._recording
            if changed is None or recording is None or inputs is not recording.inputs:
                return plan.run(filled, of_child)[: _length(inputs)]
            start = plan.start(tensors)
            if not plan.needed(start) <= recording.kept.keys():
                start = 0
            return plan.run_from(start, filled, of_child, recording.kept)[0][: _length(inputs)]

        yield forward

    def record(self, inputs: Inputs, starts: Iterable[Collection[str]]) -> torch.Tensor:
        self.clear()
        starts = list(starts)
        self._let_change(frozenset().union(*starts))
        plan, filled = self._plan(inputs)
        keep = set().union(*(plan.needed(plan.start(changed)) for changed in starts if changed))
        logits, kept = plan.run_from(0, filled, plan.values, {}, keep)
        self._recording = Recording(plan, inputs, kept)
        return logits[: _length(inputs)]

    def can_replay(self) -> bool:
        return self.segments > 1

    def suffix_share(self, changed: Collection[str]) -> float:
        return 1.0 if self._recording is None else self._recording.plan.cost(self._recording.plan.start(changed))

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
            self._plans[key] = Plan(Exported(self.model, filled), self._mutable, self._compile, self.segments)
        return self._plans[key], filled

    def _filled(self, tensor: torch.Tensor) -> torch.Tensor:
        """With the last image repeated until the batch has its full size."""
        missing = 0 if self.batch_size is None else self.batch_size - len(tensor)
        return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing > 0 else tensor


def _length(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))
