"""
A graph cut into segments, so that a child starts at the first one that holds a weight it changes.

The graph is cut where the fewest activations are alive. A segment is a pure function of its inputs and weights, so what a
child computes from the kept activations of the parent is, to the bit, what a pass through all segments computes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

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
    A part of a graph.

    Args:
        module (`torch.fx.GraphModule`): takes `inputs`, then `weights`, and returns a tuple of `outputs`.
        inputs (tuple of `str`): names of the model's inputs and of activations of earlier segments.
        weights (tuple of `torch.fx.Node`): values that depend on mutable weights alone.
        outputs (tuple of `str`): names of activations.
        cost (`float`): its share of a pass, in [0, 1], by counted operations.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    weights: tuple[fx.Node, ...]
    outputs: tuple[str, ...]
    cost: float


@dataclass(frozen=True)
class Cut:
    """
    A graph in one piece and in parts.

    Args:
        whole ([`Segment`]): the graph; its outputs are all activations at which it is cut, and the logits last.
        parts (tuple of [`Segment`]): the same, in order.
    """

    whole: Segment
    parts: tuple[Segment, ...]


def cut(exported: Exported, most: int, mutable: Collection[str]) -> Cut:
    """
    Cuts a graph into segments of about the same cost.

    Args:
        exported ([`Exported`]): the graph.
        most (`int`): how many segments at most. There are fewer where a model cannot be cut so often.
        mutable (collection of `str`): names of the weights that are inputs. All others become constants.
    """
    steps = [node for node in exported.nodes if node in exported.of_images]
    costs = [operations(node) for node in steps]
    ends = [*_cuts(exported, steps, costs, most), len(steps)]
    last_use = {used: place for place, node in enumerate(steps) for used in node.all_input_nodes}
    last_use[exported.logits] = len(steps)
    taken = [node for node in exported.graph.nodes if node.name in exported.inputs]
    parts, alive, boundaries = [], set(taken), []
    for start, end in pairwise([0, *ends]):
        inside = steps[start:end]
        used = {node for step in inside for node in step.all_input_nodes}
        inputs = sorted(used & alive, key=_name)
        alive = {node for node in alive | set(inside) if last_use.get(node, -1) >= end}
        outputs = sorted(alive & set(inside), key=_name)
        boundaries += outputs
        cost = sum(costs[start:end]) / max(sum(costs), 1)
        parts.append(_segment(exported, inside, inputs, outputs, frozenset(mutable), cost))
    return Cut(_segment(exported, steps, taken, boundaries, frozenset(mutable), 1.0), tuple(parts))


def operations(node: fx.Node) -> float:
    """The cost of one node: floating-point operations of matrix products and convolutions, and the numbers that it writes."""
    values: Any = node.meta.get("val")
    written = sum(each.numel() for each in (values if isinstance(values, list | tuple) else [values]) if _counts(each))
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    mode = next((each.fake_mode for each in _flat(args) if isinstance(each, FakeTensor)), None)
    if mode is None or not isinstance(node.target, torch._ops.OpOverload):
        return float(OPERATIONS_PER_NUMBER * written)
    counter = FlopCounterMode(display=False)
    with mode, counter, torch.no_grad():
        node.target(*args, **kwargs)
    return float(counter.get_total_flops() + OPERATIONS_PER_NUMBER * written)


def _cuts(exported: Exported, steps: Sequence[fx.Node], costs: Sequence[float], most: int) -> list[int]:
    """
    The positions of cuts: near every `1 / most` of the cost, where the fewest bytes are alive.

    A cut at position `p` comes before `steps[p]`.
    """
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


def _alive_bytes(exported: Exported, steps: Sequence[fx.Node]) -> list[int]:
    """How many bytes are alive before each step; 0 where the graph cannot be cut, for a value there is a tuple."""
    last_use = {used: place for place, node in enumerate(steps) for used in node.all_input_nodes}
    last_use[exported.logits] = len(steps)
    alive = {node for node in exported.graph.nodes if node.name in exported.inputs}
    sizes = []
    for place, node in enumerate(steps):
        alive = {each for each in alive if last_use.get(each, -1) >= place}
        # The inputs are kept anyway.
        kept = [each for each in alive if each.op != "placeholder"]
        whole = all(is_tensor(each) for each in kept)
        sizes.append(sum(each.meta["val"].nbytes for each in kept) if whole else 0)
        alive.add(node)
    return sizes


def _segment(
    exported: Exported,
    inside: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    mutable: frozenset[str],
    cost: float,
) -> Segment:
    used = {node for step in inside for node in step.all_input_nodes}
    of_weights = sorted(used - exported.of_images, key=_name)
    weights = [node for node in of_weights if exported.sources[node] & mutable]
    constants = [node for node in of_weights if not exported.sources[node] & mutable]
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
    return Segment(
        fx.GraphModule(root, graph), tuple(map(_name, inputs)), tuple(weights), tuple(map(_name, outputs)), cost
    )


def _name(node: fx.Node) -> str:
    return node.name


def _counts(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _flat(args: object) -> list[object]:
    if isinstance(args, list | tuple):
        return [leaf for each in args for leaf in _flat(each)]
    return [args]
