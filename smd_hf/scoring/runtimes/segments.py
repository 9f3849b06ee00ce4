"""
A graph and the places where it is cut, so that a child starts at the last one before the first weight that it changes.

The graph is cut where the fewest activations are alive.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import FlopCounterMode

from .graph import Exported, is_tensor

OPERATIONS_PER_NUMBER = 20
"""What it costs to write one number of an activation, in operations: most of the cost of norms and activation functions."""


@dataclass(frozen=True)
class Segment:
    """
    A part of a graph: a pure function of activations and weights.

    Args:
        module (`torch.fx.GraphModule`): takes `inputs`, then `weights`, and returns a tuple of `outputs`.
        inputs (tuple of `str`): names of the model's inputs and of activations before this part.
        weights (tuple of `torch.fx.Node`): values that depend on mutable weights alone.
        outputs (tuple of `str`): names of activations.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    weights: tuple[fx.Node, ...]
    outputs: tuple[str, ...]


class Cut:
    """
    A graph and the places where it is cut, into parts of about the same cost.

    Args:
        most (`int`): how many parts at most. There are fewer where a model cannot be cut so often.
        mutable (collection of `str`): names of the weights that are inputs. All others become constants.

    Attributes:
        places (list of `int`): where each part begins; the first one is 0.
    """

    def __init__(self, exported: Exported, most: int, mutable: Collection[str]):
        self.exported = exported
        self.mutable = frozenset(mutable)
        self.steps = [node for node in exported.nodes if node in exported.of_images]
        costs = [operations(node) for node in self.steps]
        self.places = [0, *_places(exported, self.steps, costs, most)]
        total = max(sum(costs), 1.0)
        self._left = [sum(costs[place:]) / total for place in self.places]
        self._last_use = _last_uses(exported, self.steps)
        self._suffixes: dict[int, Segment] = {}

    def cost(self, part: int) -> float:
        """The share of a pass that begins with this part, by counted operations: 1 for the first."""
        return self._left[part]

    @cached_property
    def taken(self) -> list[tuple[str, ...]]:
        """For each part, names of the activations that it and all later ones take from those before it."""
        return [tuple(node.name for node in self._alive(place)) for place in self.places]

    @cached_property
    def whole(self) -> Segment:
        """The graph in one piece. Its outputs are the activations at all places, and the logits last."""
        kept = dict.fromkeys(node for place in self.places for node in self._alive(place))
        return self._segment(0, len(self.steps), [*kept, self.exported.logits])

    def part(self, number: int) -> Segment:
        """From one place to the next."""
        start, end = [*self.places, len(self.steps)][number : number + 2]
        outputs = [node for node in self._alive(end) if node in set(self.steps[start:end])]
        return self._segment(start, end, outputs)

    def suffix(self, number: int) -> Segment:
        """From one place to the logits."""
        if number not in self._suffixes:
            self._suffixes[number] = self._segment(self.places[number], len(self.steps), [self.exported.logits])
        return self._suffixes[number]

    def _alive(self, place: int) -> list[fx.Node]:
        """The activations from before a place that are used from there on."""
        return [node for node in self.steps[:place] if self._last_use.get(node, -1) >= place]

    def _segment(self, start: int, end: int, outputs: Sequence[fx.Node]) -> Segment:
        exported, inside = self.exported, self.steps[start:end]
        used = {node for step in inside for node in step.all_input_nodes} - set(inside)
        inputs = sorted(used & exported.of_images, key=_name)
        of_weights = sorted(used - exported.of_images, key=_name)
        weights = [node for node in of_weights if exported.sources[node] & self.mutable]
        constants = [node for node in of_weights if not exported.sources[node] & self.mutable]
        graph, root, copies = fx.Graph(), torch.nn.Module(), {}
        for node in [*inputs, *weights]:
            copies[node] = graph.placeholder(node.name)
            copies[node].meta = dict(node.meta)
        values = exported.computed(constants, {})
        for node in constants:
            root.register_buffer(node.name, values[node].detach())
            copies[node] = graph.get_attr(node.name)
            copies[node].meta = dict(node.meta)
        for node in inside:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(tuple(copies[node] for node in outputs))
        graph.lint()
        names = (tuple(map(_name, nodes)) for nodes in (inputs, outputs))
        return Segment(fx.GraphModule(root, graph), next(names), tuple(weights), next(names))


def operations(node: fx.Node) -> float:
    """The cost of one node: floating-point operations of matrix products and convolutions, and the numbers that it writes."""
    values = node.meta.get("val")
    several = values if isinstance(values, list | tuple) else [values]
    written = sum(each.numel() for each in several if isinstance(each, torch.Tensor))
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    mode = next((each.fake_mode for each in _flat(args) if isinstance(each, FakeTensor)), None)
    if mode is None or not isinstance(node.target, torch._ops.OpOverload):
        return float(OPERATIONS_PER_NUMBER * written)
    counter = FlopCounterMode(display=False)
    with mode, counter, torch.no_grad():
        node.target(*args, **kwargs)
    return float(counter.get_total_flops() + OPERATIONS_PER_NUMBER * written)


def _places(exported: Exported, steps: Sequence[fx.Node], costs: Sequence[float], most: int) -> list[int]:
    """The positions of cuts: near every `1 / most` of the cost, where the fewest bytes are alive."""
    sizes = _alive_bytes(exported, steps)
    total, before = sum(costs), [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    chosen: list[int] = []
    for part in range(1, most):
        low, goal, high = ((part + shift) / most * total for shift in (-0.5, 0.0, 0.5))
        near = [place for place in range(1, len(steps)) if sizes[place] and low <= before[place] < high]
        if near:
            least = min(sizes[place] for place in near)
            # As few bytes as can be, and of such places the one that is nearest to the goal.
            place = min((each for each in near if sizes[each] == least), key=lambda each: abs(before[each] - goal))
            if not chosen or place > chosen[-1]:
                chosen.append(place)
    return chosen


def _last_uses(exported: Exported, steps: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """The last step that takes each value."""
    uses = {used: place for place, node in enumerate(steps) for used in node.all_input_nodes}
    return uses | {exported.logits: len(steps)}


def _alive_bytes(exported: Exported, steps: Sequence[fx.Node]) -> list[int]:
    """How many bytes are alive before each step; 0 where the graph cannot be cut, for a value there is a tuple."""
    last_use = _last_uses(exported, steps)
    alive: set[fx.Node] = set()
    sizes = []
    for place, node in enumerate(steps):
        alive = {each for each in alive if last_use.get(each, -1) >= place}
        whole = all(is_tensor(each) for each in alive)
        sizes.append(sum(each.meta["val"].nbytes for each in alive) if whole else 0)
        alive.add(node)
    return sizes


def _name(node: fx.Node) -> str:
    return node.name


def _flat(args: object) -> list[object]:
    if isinstance(args, list | tuple):
        return [leaf for each in args for leaf in _flat(each)]
    return [args]
