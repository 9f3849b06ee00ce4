"""An exported model as compiled, together with what it takes of the parent's weights."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import fx, nn

from .graph import Exported
from .segments import Cut, Segment

Run = Callable[..., Sequence[torch.Tensor]]
"""A compiled segment: from its inputs and weights to its outputs, which its next call may overwrite."""


class Compiled(Protocol):
    """A compiled graph. Whatever takes long is done when a function is called for the first time."""

    def whole(self, outputs: tuple[str, ...]) -> Run:
        """The whole graph, from the inputs and weights of [`Cut.whole`] to some of its outputs."""
        ...

    def suffixes(self, part: int) -> Iterable[Run]:
        """From the activations at one place and the weights behind it to the logits: ways to compile this, the fastest first."""
        ...


class Plan:
    """
    The compiled graph of a model, and the parent's weights as the graph takes them.

    Args:
        mutable (collection of `str`): names of the weights that are inputs. All others are constants.
        most (`int`): into how many parts it is cut at most.

    Attributes:
        cut ([`Cut`]): the graph and the places where it is cut.
        values (dict of `torch.fx.Node` to `torch.Tensor`): what the graph takes of the parent's weights.
    """

    def __init__(self, exported: Exported, mutable: Collection[str], compile: Callable[[Cut], Compiled], most: int):
        self.exported = exported
        self.mutable = frozenset(mutable)
        self.cut = Cut(exported, most, self.mutable)
        self._compiled = compile(self.cut)
        self._runs: dict[int | tuple[str, ...], Run] = {}
        self._exact: dict[int, bool] = {}
        self._harmless: dict[frozenset[str], bool] = {}
        self._last_part = self._find_last_parts()
        self.values: dict[fx.Node, torch.Tensor] = {}
        self._constants = self._versions(of_mutable=False)
        self._seen: dict[str, int] = {}
        self.refresh()

    def start(self, changed: Iterable[str]) -> int:
        """The last part from which on all of these weights are used."""
        return min((self._last_part.get(name, 0) for name in changed), default=len(self.cut.places) - 1)

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
        What the graph takes of a child's weights.

        Args:
            tensors (mapping of `str` to `torch.Tensor`): the weights in which the child differs from the parent.
        """
        return self.values | self._computed(tensors.keys(), tensors)

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        values: Mapping[fx.Node, torch.Tensor],
        keep: Collection[str] = (),
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        A pass through the whole graph.

        Returns:
            `tuple[torch.Tensor, dict[str, torch.Tensor]]`: the logits, and copies of the activations to keep.
        """
        whole = self.cut.whole
        outputs = tuple(name for name in whole.outputs[:-1] if name in keep) + whole.outputs[-1:]
        if outputs not in self._runs:
            self._runs[outputs] = self._compiled.whole(outputs)
        *kept, logits = self._runs[outputs](*self._arguments(whole, inputs, {}, values))
        return logits, {name: activation.clone() for name, activation in zip(outputs, kept)}

    def run_keeping(
        self, inputs: Mapping[str, torch.Tensor], keep: frozenset[str]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        [`run`] with the parent's weights. It keeps nothing where a graph that gives these activations rounds the logits in
        another way: operations that are fused around them. Seen once, on a batch of the parent.
        """
        if keep and self._harmless.get(keep, True):
            logits, kept = self.run(inputs, self.values, keep)
            if keep not in self._harmless:
                logits = logits.clone()  # the next pass may overwrite them
                plain, _ = self.run(inputs, self.values)
                self._harmless[keep] = torch.equal(plain.nan_to_num(), logits.nan_to_num())
            if self._harmless[keep]:
                return logits, kept
        return self.run(inputs, self.values)

    def run_from(
        self,
        part: int,
        inputs: Mapping[str, torch.Tensor],
        values: Mapping[fx.Node, torch.Tensor],
        kept: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """Logits by the graph from one place on, which is exact; `kept` has the activations there."""
        [logits] = self._runs[part](*self._arguments(self.cut.suffix(part), inputs, kept, values))
        return logits

    def exact(
        self, part: int, inputs: Mapping[str, torch.Tensor], kept: Mapping[str, torch.Tensor], logits: torch.Tensor
    ) -> bool:
        """
        Whether the graph from one place on gives the bits of the whole graph, in one of the ways to compile it. Seen once, on
        a batch of the parent.
        """
        if part not in self._exact:
            self._exact[part] = False
            for run in self._compiled.suffixes(part):
                self._runs[part] = run
                found = self.run_from(part, inputs, self.values, kept)
                if torch.equal(found.nan_to_num(), logits.nan_to_num()):
                    self._exact[part] = True
                    break
        return self._exact[part]

    def _arguments(
        self,
        segment: Segment,
        inputs: Mapping[str, torch.Tensor],
        kept: Mapping[str, torch.Tensor],
        values: Mapping[fx.Node, torch.Tensor],
    ) -> list[torch.Tensor]:
        names = self.exported.inputs
        activations = (kept[name] if name in kept else inputs[names[name]].contiguous() for name in segment.inputs)
        return [*activations, *(values[node] for node in segment.weights)]

    def _find_last_parts(self) -> dict[str, int]:
        """For each mutable weight, the part that uses it first."""
        found: dict[str, int] = {}
        bounds = [*self.cut.places[1:], len(self.cut.steps)]
        part = 0
        for place, node in enumerate(self.cut.steps):
            part += place == bounds[part]
            for used in node.all_input_nodes:
                if used not in self.exported.of_images:
                    for name in self.exported.sources[used]:
                        found.setdefault(name, part)
        return found

    def _computed(self, changed: Collection[str], tensors: Mapping[str, torch.Tensor]) -> dict[fx.Node, torch.Tensor]:
        """Of the weights that the graph takes, those that depend on changed ones."""
        exported = self.exported
        wanted = [node for node in self.cut.whole.weights if not exported.sources[node].isdisjoint(changed)]
        known = {node: tensors[name] for node, name in exported.placeholders.items() if name in tensors}
        with torch.no_grad():
            computed = exported.computed(wanted, known)
        return {node: computed[node].contiguous() for node in wanted}

    def _versions(self, of_mutable: bool) -> dict[str, int]:
        """How often each tensor has been changed so far. Those that a pass has made in inference mode are not counted."""
        names = self.exported.names
        return {
            place: 0 if tensor.is_inference() else tensor._version
            for place, tensor in self.exported.tensors.items()
            if (names.get(place) in self.mutable) is of_mutable
        }
