"""An exported model in compiled segments, together with what they take of the parent's weights."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import fx, nn

from .graph import Exported
from .segments import Cut, Segment, cut

Run = Callable[..., Sequence[torch.Tensor]]
"""A compiled segment: from its inputs and weights to its outputs, which its next call may overwrite."""

Compile = Callable[[Cut], tuple[Run, Sequence[Run]]]
"""
Compiles a graph: in one piece, from inputs and weights to the logits alone, and in parts. Whatever takes long is done when a
function is called for the first time.
"""


class Plan:
    """
    The compiled graph of a model, and the parent's weights as the graph takes them.

    Args:
        exported ([`Exported`]): the graph.
        mutable (collection of `str`): names of the weights that are inputs. All others are constants.
        compile (`Callable`): compiles the graph.
        most (`int`): how many segments at most.

    Attributes:
        cut ([`Cut`]): the graph in one piece and in parts.
        values (dict of `torch.fx.Node` to `torch.Tensor`): what the segments take of the parent's weights.
    """

    def __init__(self, exported: Exported, mutable: Collection[str], compile: Compile, most: int):
        self.exported = exported
        self.mutable = frozenset(mutable)
        self.cut = cut(exported, most, self.mutable)
        self._whole, self._parts = compile(self.cut)
        self._first = {
            name: place
            for place, part in reversed(list(enumerate(self.cut.parts)))
            for node in part.weights
            for name in exported.sources[node]
        }
        self.values: dict[fx.Node, torch.Tensor] = {}
        self._constants = self._versions(of_mutable=False)
        self._seen: dict[str, int] = {}
        self.refresh()

    def start(self, changed: Iterable[str]) -> int:
        """The first part that takes one of these weights; the last one where none does."""
        return min((self._first[name] for name in changed if name in self._first), default=len(self.cut.parts) - 1)

    def needed(self, start: int) -> set[str]:
        """Activations that the parts from this one on take from the parts before it."""
        made = {name for part in self.cut.parts[:start] for name in part.outputs}
        return {name for part in self.cut.parts[start:] for name in part.inputs} & made

    def cost(self, start: int) -> float:
        """The share of a pass that begins with this part."""
        return sum(part.cost for part in self.cut.parts[start:])

    def fits(self, model: nn.Module) -> bool:
        """Whether the model still has the tensors that were exported, and no constant has been changed."""
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        same = all(tensors.get(name) is self.exported.tensors[place] for place, name in self.exported.names.items())
        return same and self._constants == self._versions(of_mutable=False)

    def refresh(self) -> None:
        """Takes the parent's weights as they are now."""
        now = self._versions(of_mutable=True)
        changed = {self.exported.names[place] for place in now if self._seen.get(place) != now[place]}
        self.values.update(self._computed(changed, {}))
        self._seen = now

    def values_of(self, tensors: Mapping[str, torch.Tensor]) -> dict[fx.Node, torch.Tensor]:
        """
        What the segments take of a child's weights.

        Args:
            tensors (mapping of `str` to `torch.Tensor`): the weights in which the child differs from the parent.
        """
        return self.values | self._computed(tensors.keys(), tensors)

    def run(self, inputs: Mapping[str, torch.Tensor], values: Mapping[fx.Node, torch.Tensor]) -> torch.Tensor:
        """Logits by the graph in one piece."""
        whole = self.cut.whole
        activations = self._placed(inputs)
        return self._whole(*(activations[name] for name in whole.inputs), *(values[node] for node in whole.weights))[0]

    def run_from(
        self,
        start: int,
        inputs: Mapping[str, torch.Tensor],
        values: Mapping[fx.Node, torch.Tensor],
        kept: Mapping[str, torch.Tensor],
        keep: Collection[str] = (),
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        Logits by the parts from this one on.

        Args:
            start (`int`): the first part to run.
            inputs (mapping of `str` to `torch.Tensor`): the batch.
            values (mapping of `torch.fx.Node` to `torch.Tensor`): of the weights.
            kept (mapping of `str` to `torch.Tensor`): activations of the parts before.
            keep (collection of `str`, *optional*): activations to return.

        Returns:
            `tuple[torch.Tensor, dict[str, torch.Tensor]]`: the logits, and copies of the activations to keep.
        """
        activations = self._placed(inputs) | dict(kept)
        copies = {}
        for part, run in zip(self.cut.parts[start:], self._parts[start:]):
            outputs = run(*(activations[name] for name in part.inputs), *(values[node] for node in part.weights))
            for name, output in zip(part.outputs, outputs):
                activations[name] = output
                if name in keep:
                    copies[name] = activations[name] = output.clone()
        return activations[self.exported.logits.name], copies

    def _placed(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {place: inputs[name].contiguous() for place, name in self.exported.inputs.items()}

    def _computed(self, changed: Collection[str], tensors: Mapping[str, torch.Tensor]) -> dict[fx.Node, torch.Tensor]:
        """Of the weights that segments take, those that depend on changed ones."""
        exported = self.exported
        wanted = [node for node in self.cut.whole.weights if not exported.sources[node].isdisjoint(changed)]
        known = {node: tensors[name] for node, name in exported.placeholders.items() if name in tensors}
        with torch.no_grad():
            computed = exported.computed(wanted, known)
        return {node: computed[node].contiguous() for node in wanted}

    def _versions(self, of_mutable: bool) -> dict[str, int]:
        """How often each tensor has been changed so far."""
        names = self.exported.names
        return {
            place: tensor._version
            for place, tensor in self.exported.tensors.items()
            if (names.get(place) in self.mutable) is of_mutable
        }


def arguments_of(segment: Segment) -> list[torch.Tensor]:
    """An example of what a segment takes: zeros."""
    placeholders = (node for node in segment.module.graph.nodes if node.op == "placeholder")
    return [
        torch.zeros(value.shape, dtype=value.dtype, device=value.device)
        for value in (node.meta["val"] for node in placeholders)
    ]
