"""An exported model as compiled, together with what it takes of the parent's weights."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import fx, nn

from ...models.quantized import named_tensors
from .graph import Exported
from .segments import Cut, Segment

Run = Callable[..., Sequence[torch.Tensor]]
"""A compiled segment: from its inputs and weights to its outputs, which its next call may overwrite."""


LOGITS, BATCHES = 1024, 8
"""So many logits are compared, of so many batches at most, where a graph rounds coarsely."""

FEW = 2**18
"""Up to so many predictions of a batch, one thread is enough for what PyTorch computes between passes."""


class Compiled(Protocol):
    """
    A compiled graph. Whatever takes long is done when a function is called for the first time.

    Attributes:
        rounds_coarsely (`bool`): whether a few logits may be equal by chance, although what is computed before them differs.
        has_threads (`bool`): whether it computes in threads of its own, and not in PyTorch's.
    """

    rounds_coarsely: bool
    has_threads: bool

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
        predictions: torch.Tensor = exported.logits.meta["val"]
        self.wants_one_thread = self._compiled.has_threads and predictions.numel() <= FEW
        self._runs: dict[int | tuple[str, ...], Run] = {}
        self._exact: dict[int, bool] = {}
        self._kept: dict[frozenset[int], frozenset[int]] = {}
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
        tensors = named_tensors(model) | dict(model.named_buffers())
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
        outputs = self._outputs(keep)
        if outputs not in self._runs:
            self._runs[outputs] = self._compiled.whole(outputs)
        *kept, logits = self._runs[outputs](*self._arguments(self.cut.whole, inputs, {}, values))
        return logits, {name: activation.clone() for name, activation in zip(outputs, kept)}

    def run_keeping(
        self, inputs: Mapping[str, torch.Tensor], parts: frozenset[int]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """[`run`] with the parent's weights, which keeps the activations where these parts begin, as far as this is [`harmless`]."""
        if parts not in self._kept:
            self._kept[parts] = self.harmless(inputs, parts) if parts else parts
        logits, kept = self.run(inputs, self.values, self._taken(self._kept[parts]))
        return logits.clone(), kept  # what compares other batches writes into the same memory

    def harmless(self, inputs: Mapping[str, torch.Tensor], parts: frozenset[int]) -> frozenset[int]:
        """
        Those of the parts whose activations can be kept. A graph that gives the others rounds the logits in another way, as operations
        are fused around them. Seen on a batch of the parent.
        """
        plain, batches = [self.run(inputs, self.values)[0].clone()], [inputs]
        before = set(self._runs)
        for batch in self._further(inputs, plain[0]):
            plain.append(self.run(batch, self.values)[0].clone())
            batches.append(batch)

        def changes_nothing(kept: frozenset[int]) -> bool:
            names = self._taken(kept)
            return all(_same_bits(self.run(batch, self.values, names)[0], each) for batch, each in zip(batches, plain))

        found = parts
        if not changes_nothing(parts):
            found = frozenset(part for part in parts if changes_nothing(frozenset([part])))
            if found and not changes_nothing(found):
                found = frozenset()
        outputs = self._outputs(self._taken(found))
        self._runs = {key: run for key, run in self._runs.items() if key in before or key == outputs}
        return found

    def _taken(self, parts: Iterable[int]) -> frozenset[str]:
        """The activations where these parts begin."""
        return frozenset(name for part in parts for name in self.cut.taken[part])

    def _outputs(self, keep: Collection[str]) -> tuple[str, ...]:
        whole = self.cut.whole
        return tuple(name for name in whole.outputs[:-1] if name in keep) + whole.outputs[-1:]

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
        self,
        parts: Iterable[int],
        inputs: Mapping[str, torch.Tensor],
        kept: Mapping[str, torch.Tensor],
        logits: torch.Tensor,
    ) -> frozenset[int]:
        """
        Those of the parts from which on the graph gives the bits of the whole graph, in one of the ways to compile it. Seen once,
        on a batch of the parent.

        Args:
            kept, logits: of a pass by [`run_keeping`]. A part whose activations were not kept is none of them.
        """
        able = [part for part in sorted(parts) if kept.keys() >= set(self.cut.taken[part])]
        new = [part for part in able if part not in self._exact]
        for part in new:
            self._exact[part] = False
            for run in self._compiled.suffixes(part):
                self._runs[part] = run
                if _same_bits(self.run_from(part, inputs, self.values, kept), logits):
                    self._exact[part] = True
                    break
        for batch in self._further(inputs, logits) if new else ():
            expected, its_kept = self.run(batch, self.values, kept.keys())
            for part in new:
                found = self.run_from(part, batch, self.values, its_kept)
                self._exact[part] = self._exact[part] and _same_bits(found, expected)
        return frozenset(part for part in able if self._exact[part])

    def _further(
        self, inputs: Mapping[str, torch.Tensor], logits: torch.Tensor
    ) -> Iterator[Mapping[str, torch.Tensor]]:
        """Other batches to compare logits on, of shifted images: none unless the graph rounds coarsely and there are few logits."""
        if self._compiled.rounds_coarsely:
            for shift in range(1, min(BATCHES, -(-LOGITS // logits.numel()))):
                yield {
                    name: value.roll(5 * shift, dims=-1).contiguous() if value.is_floating_point() else value
                    for name, value in inputs.items()
                }

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


def _same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(found.nan_to_num(), expected.nan_to_num())
