"""
A graph compiled by OpenVINO, for CPUs. (`pip install smd_hf[openvino]`)

The graph is converted once, with the activations at its cuts as outputs. What begins at a cut is taken out of the converted model.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import fx

from ...models.openvino_compiler import compiled_for_cpu
from .graph import CannotExport
from .plan import Run
from .segments import Cut, Segment


def has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU (AVX-512 or AMX): elsewhere it silently uses float32."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVINO:
    """
    A graph compiled for the CPU. ([`Compiled`])

    Args:
        cut ([`Cut`]): the graph. Its tensors are float32.
        precision (`str`, *optional*, defaults to `"f32"`): in which the graph is computed, `"f32"` or `"bf16"`. Inputs, weights
            and outputs are float32 in both.

    Raises:
        [`CannotExport`]: by the first call of a function, if OpenVINO cannot compile the graph.
    """

    has_threads = True

    def __init__(self, cut: Cut, precision: str = "f32"):
        self.cut = cut
        self.precision = precision
        self.rounds_coarsely = precision == "bf16"

    def whole(self, outputs: tuple[str, ...]) -> Run:
        return _Request(partial(self._compile, self._names(self.cut.whole), outputs, _plain), len(outputs))

    def suffixes(self, part: int) -> Iterator[Run]:
        segment = self.cut.suffix(part)
        for entry in (_plain, _pooled, _convolved):
            yield _Request(partial(self._compile, self._names(segment), segment.outputs, entry), 1)

    @staticmethod
    def _names(segment: Segment) -> list[str]:
        return [*segment.inputs, *(node.name for node in segment.weights)]

    @cached_property
    def _converted(self) -> Any:
        import openvino

        whole = self.cut.whole
        arguments = _example(whole)
        other = {each.dtype for each in arguments if each.is_floating_point()} - {torch.float32}
        if other:
            raise CannotExport(f"its weights are in {other.pop()}, and OpenVINO is given float32")
        _fit(whole.module)
        try:
            with torch.no_grad():
                program = torch.export.export(whole.module, tuple(arguments), strict=False)
            model = openvino.convert_model(program)
            if len(model.inputs) != len(arguments) or len(model.outputs) != len(whole.outputs):
                raise CannotExport("OpenVINO drops an input or an output of its graph")
            model.reshape({port: list(tensor.shape) for port, tensor in zip(model.inputs, arguments)})
        except (CannotExport, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the front end has exceptions of its own, which are no RuntimeError
            raise CannotExport(f"OpenVINO cannot convert it ({type(error).__name__}: {error})") from error
        return model

    def _compile(self, entries: Sequence[str], outputs: Sequence[str], entry: "_Entry") -> Any:
        """The request of the graph from these inputs, activations and weights to these outputs."""
        import openvino
        from openvino import opset13

        model = self._converted.clone()
        parameters = dict(zip(self._names(self.cut.whole), model.get_parameters()))
        sources = {name: result.input_value(0) for name, result in zip(self.cut.whole.outputs, model.get_results())}
        results = [opset13.result(self._output(name, sources[name])) for name in outputs]
        for name in entries:
            if name in sources:
                parameters[name] = _replaced(sources[name], entry)
        try:
            graph = openvino.Model(results, [parameters[name] for name in entries])  # pyright: ignore
            compiled = compiled_for_cpu(graph, self.precision)
        except Exception as error:
            raise CannotExport(f"OpenVINO cannot compile it ({type(error).__name__}: {error})") from error
        return compiled.create_infer_request()

    def _output(self, name: str, source: Any) -> Any:
        """
        What an output of the graph takes.

        In bfloat16, OpenVINO computes in float32 what lies between an output and the last convolution or product of matrices before it,
        also for the activations that are kept on the way: the rest of the graph then differs. An operation of this kind that changes no
        number stands between.
        """
        from openvino import opset13

        is_kept = name != self.cut.whole.outputs[-1]
        shape = list(source.get_shape())
        if (
            self.precision == "f32"
            or not is_kept
            or len(shape) < 2
            or source.get_element_type().get_type_name() != "f32"
        ):
            return source
        if len(shape) == 4:
            return _times_one(source)
        flat = opset13.reshape(source, [*shape[:2], prod(shape[2:]), 1], special_zero=False)
        return opset13.reshape(_times_one(flat.output(0)), shape, special_zero=False)


def _fit(module: fx.GraphModule) -> None:
    """
    Says in other words, and with the same result, what OpenVINO refuses.

    An average over a window larger than the image is that over the image (EfficientNet of transformers), and an empty tensor of
    one dimension adds nothing to others (ImageGPT's cache).
    """
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.avg_pool2d.default:
            source, window, *rest = node.args
            stride, padding = [*rest[:2], *([], [0, 0])[len(rest) :]]
            size = source.meta["val"].shape[-2:]
            if not any(padding) and any(length > most for length, most in zip(window, size)):
                fitted = [min(length, most) for length, most in zip(window, size)]
                node.args = (source, fitted, stride or window, *rest[1:])
        elif node.target is torch.ops.aten.cat.default:
            parts, *rest = node.args
            node.args = ([part for part in parts if part.meta["val"].shape != (0,)] or parts, *rest)
    module.recompile()


def _example(segment: Segment) -> list[torch.Tensor]:
    """An example of what a segment takes: zeros."""
    placeholders = (node for node in segment.module.graph.nodes if node.op == "placeholder")
    return [
        torch.zeros(value.shape, dtype=value.dtype, device=value.device)
        for value in (node.meta["val"] for node in placeholders)
    ]


_Entry = Callable[[Any], Any]
"""
What stands between the input that takes the place of an activation, which has its channels first, and the graph behind it.

OpenVINO lets sums of images (the shortcuts of a ResNet) follow the layout of what they add. In the whole graph most images have their
channels last, as convolutions like it; and a mean over an image adds up its pixels in another order in each layout, so that the
bits differ. An operation that changes no number gives the image its own layout: which one that is depends on the processor.
"""


def _plain(parameter: Any) -> Any:
    return parameter


def _pooled(parameter: Any) -> Any:
    """A pooling of single pixels: channels last on Intel's processors with AMX."""
    from openvino import opset13

    return opset13.avg_pool(parameter, [1, 1], [0, 0], [0, 0], [1, 1], exclude_pad=False)


def _convolved(parameter: Any) -> Any:
    """A convolution of each channel with 1: channels last on AMD's processors, too."""
    return _times_one(parameter.output(0))


def _times_one(image: Any) -> Any:
    """A convolution of each channel of an image with 1."""
    from openvino import opset13

    ones = opset13.constant(np.ones((image.get_shape()[1], 1, 1, 1, 1), np.float32))
    return opset13.group_convolution(image, ones, [1, 1], [0, 0], [0, 0], [1, 1])


def _replaced(source: Any, entry: _Entry) -> Any:
    """Puts an input in the place of an activation."""
    from openvino import opset13

    parameter = opset13.parameter(source.get_partial_shape(), source.get_element_type())
    node = entry(parameter) if len(source.get_partial_shape()) == 4 else parameter
    for target in source.get_target_inputs():
        if target.get_node().get_type_name() != "Result":
            target.replace_source_output(node.output(0))
    return parameter


class _Request:
    """
    Compiles when it is called for the first time; then shares the memory of its arguments with OpenVINO.

    Each compiled graph keeps memory for what it computes on the way, hundreds of megabytes for a batch of images. Only the one that
    was called last has it: another one that is called takes its place.
    """

    _in_memory: ClassVar[weakref.ref["_Request"] | None] = None

    def __init__(self, compile: Any, num_outputs: int):
        self._compile = compile
        self._num_outputs = num_outputs
        self._bound: dict[int, torch.Tensor] = {}

    @cached_property
    def _request(self) -> Any:
        return self._compile()

    def __call__(self, *arguments: torch.Tensor) -> list[torch.Tensor]:
        import openvino

        request = self._request
        self._take_memory()
        for place, tensor in enumerate(arguments):
            if self._bound.get(place) is not tensor:
                request.set_input_tensor(place, openvino.Tensor(tensor.numpy(), shared_memory=True))
                # The memory is shared, so the tensor has to stay.
                self._bound[place] = tensor
        request.infer()
        return [torch.from_numpy(request.get_output_tensor(place).data) for place in range(self._num_outputs)]

    def _take_memory(self) -> None:
        before = _Request._in_memory and _Request._in_memory()
        if before is not self:
            if before is not None:
                before._request.get_compiled_model().release_memory()
            _Request._in_memory = weakref.ref(self)
