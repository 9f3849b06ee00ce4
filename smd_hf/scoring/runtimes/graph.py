"""
A model as a pure function of its inputs and weights: one graph, exported once, that every child runs with its own weights.

`torch.export` traces the model, and operations in place become functional ones. What depends on weights alone (a
positional embedding that is resized, a weight that is standardised) is told from what depends on images: it is computed once
for each child, not once for each batch.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind

from ...models.quantized import is_mutable, named_tensors
from ...remote_code.members_smd_ensemble import forget_derived, keepers, logits_of

Read = Callable[[Any], torch.Tensor]
"""From a model's output to the predictions in it."""


class CannotExport(Exception):
    """The model is no pure function that could be exported. The message completes "because ..."."""


class Exported:
    """
    The graph of a model for one batch size and kind of input.

    Args:
        model (`torch.nn.Module`): in eval mode.
        inputs (mapping of `str` to `torch.Tensor`): a batch, as keyword arguments of its forward.
        read (`Callable`, *optional*): the predictions in the model's output; its logits by default.

    Attributes:
        nodes (list of `torch.fx.Node`): all operations, in the order in which they run.
        logits (`torch.fx.Node`): the predictions.
        tensors (dict of `str` to `torch.Tensor`): the model's parameters, buffers and constants by the names of their
            placeholders. They are the model's own, so that a lasting change of the model is seen here.
        names (dict of `str` to `str`): names in the model of the parameters and buffers, by the names of their placeholders.
        inputs (dict of `str` to `str`): names of the inputs by the names of their placeholders.

    Raises:
        [`CannotExport`]: if the model does not export, changes its own state in a pass, or draws random numbers.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, torch.Tensor], read: Read = logits_of):
        # What a module derived from its weights and kept would be a constant of the graph, and what tracing makes has no values.
        caching = keepers(model)
        forget_derived(caching)
        try:
            program = _exported(_Read(model, read), inputs)
        finally:
            forget_derived(caching)
        signature = program.graph_signature
        if signature.buffers_to_mutate:
            raise CannotExport(f"a pass changes its buffer {next(iter(signature.buffers_to_mutate.values()))}")
        self.graph: fx.Graph = program.graph
        _take_out_copies(self.graph)
        self.nodes = [node for node in self.graph.nodes if node.op in ("call_function", "get_attr")]
        for node in self.nodes:
            if node.op == "get_attr":
                raise CannotExport("its control flow depends on data")
            if _draws(node):
                raise CannotExport(f"a pass draws random numbers ({node.target})")
        [output] = (node for node in self.graph.nodes if node.op == "output")
        [[self.logits]] = output.args
        mine = named_tensors(model)
        own = {id(tensor): name for name, tensor in [*model.named_buffers(), *mine.items()]}
        # To export it, PyTorch takes a quantised weight apart, and makes other parameters of the same memory.
        scales = {tensor.data_ptr(): tensor for tensor in mine.values() if not isinstance(tensor, nn.Parameter)}
        self.tensors: dict[str, torch.Tensor] = {}
        self.names: dict[str, str] = {}
        self.inputs: dict[str, str] = {}
        for spec in signature.input_specs:
            name = spec.arg.name
            if spec.kind is InputKind.USER_INPUT:
                self.inputs[name] = _input_name(name, inputs)
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                tensor = {**program.constants, **program.state_dict}[str(spec.target)]
                if not isinstance(tensor, torch.Tensor):
                    raise CannotExport(f"it holds a {type(tensor).__name__}")
                if id(tensor) not in own and is_mutable(tensor):
                    tensor = scales.get(tensor.data_ptr(), tensor)
                self.tensors[name] = tensor
                if id(tensor) in own:
                    self.names[name] = own[id(tensor)]
            else:
                raise CannotExport(f"it takes an input of kind {spec.kind.name}")
        if lost := {own[id(tensor)] for tensor in scales.values()} - set(self.names.values()):
            # A child that changes it would be the parent.
            raise CannotExport(f"the graph does not take {min(lost)}")

    @cached_property
    def sources(self) -> dict[fx.Node, frozenset[str]]:
        """Names in the model of all weights that each value depends on."""
        found: dict[fx.Node, frozenset[str]] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                found[node] = frozenset({self.names[node.name]} if node.name in self.names else ())
            elif node.op == "call_function":
                found[node] = frozenset().union(*(found[each] for each in node.all_input_nodes))
        return found

    @cached_property
    def placeholders(self) -> dict[fx.Node, str]:
        """The placeholders of weights, with their names in the model."""
        return {node: self.names[node.name] for node in self.graph.nodes if node.name in self.names}

    @cached_property
    def of_images(self) -> set[fx.Node]:
        """The values that depend on the inputs; all others depend on weights alone."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node.name in self.inputs or not found.isdisjoint(node.all_input_nodes):
                found.add(node)
        return found

    def computed(self, wanted: Iterable[fx.Node], values: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        """
        Computes values that depend on weights alone.

        Args:
            values (dict of `torch.fx.Node` to value): those that are known. What is computed is added.
        """
        wanted = list(wanted)
        needed, waiting = set(), list(wanted)
        while waiting:
            node = waiting.pop()
            if node not in needed and node not in values:
                needed.add(node)
                waiting.extend(node.all_input_nodes)
        for node in self.graph.nodes:
            if node in needed and node.op == "placeholder":
                values[node] = self.tensors[node.name].detach()
            elif node in needed:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
        return values


class _Read(nn.Module):
    """The model with nothing but its predictions as output."""

    def __init__(self, model: nn.Module, read: Read):
        super().__init__()
        self.model = model
        self.read = read

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.read(self.model(**inputs))


def _exported(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.export.ExportedProgram:
    try:
        # Outside of inference mode, as tensors that are made there do not count their changes.
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*assigned during export")  # it is forgotten
            inputs = {name: tensor.clone() for name, tensor in inputs.items()}
            program = torch.export.export(model, (), inputs, strict=False)
            # No operation is decomposed; those in place become functional.
            return program.run_decompositions({})
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever in a model cannot be traced
        raise CannotExport(f"it does not export ({type(error).__name__}: {error})") from error


def _take_out_copies(graph: fx.Graph) -> None:
    """
    Takes out operations that return their input as it is, or a copy for a view that can do without.

    At a cut, the input and the output would both be kept, though they are one tensor; and OpenVINO's front end fails on a
    graph that gives out one tensor twice ("Tensor name is not a number").
    """
    for node in list(graph.nodes):
        is_copy = _copies_for_views(node)
        if is_copy:
            for view in node.users:
                view.target = torch.ops.aten.reshape.default
        if is_copy or _returns_its_input(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _returns_its_input(node: fx.Node) -> bool:
    """Whether an operation does nothing: a slice of all rows (`alias`), dropout outside of training."""
    if node.target in (torch.ops.aten.alias.default, torch.ops.aten.detach.default):
        return True
    return node.target is torch.ops.aten.dropout.default and node.args[2] is False


def _copies_for_views(node: fx.Node) -> bool:
    """Whether an operation copies a tensor so that it can be viewed in another shape: the export's words for a `reshape`."""
    views = [user.target for user in node.users]
    return node.target is torch.ops.aten.clone.default and set(views) == {torch.ops.aten._unsafe_view.default}


def _draws(node: fx.Node) -> bool:
    """Whether an operation draws random numbers."""
    if node.target is torch.ops.aten.scaled_dot_product_attention.default:
        return (node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p")) not in (None, 0.0)
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _input_name(placeholder: str, inputs: Iterable[str]) -> str:
    return max((name for name in inputs if placeholder.endswith(name)), key=len)


def is_tensor(node: fx.Node) -> bool:
    """Whether a value is one tensor, not a tuple of several."""
    return isinstance(node.meta.get("val"), torch.Tensor)
