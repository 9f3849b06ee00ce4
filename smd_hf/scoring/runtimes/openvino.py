"""
Segments compiled by OpenVINO, for CPUs. (`pip install smd_hf[openvino]`)

The graph is converted once, with the activations at its cuts as outputs. Each segment is cut out of the converted model.
"""

from functools import cached_property
from typing import Any

import torch

from .graph import CannotExport
from .plan import Run, arguments_of
from .segments import Cut, Segment

BF16 = "BF16"


def has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU (AVX-512 or AMX): elsewhere it silently uses float32."""
    import openvino

    return BF16 in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVINO:
    """
    Compiles graphs for the CPU. ([`Compile`])

    Args:
        precision (`str`, *optional*, defaults to `"f32"`): in which the graph is computed, `"f32"` or `"bf16"`. Inputs, weights
            and outputs are float32 in both.
    """

    def __init__(self, precision: str = "f32"):
        self.precision = precision

    def __call__(self, cut: Cut) -> tuple[Run, list[Run]]:
        converted = _Converted(cut)
        whole = _Compiled(converted, None, self.precision)
        return whole, [_Compiled(converted, part, self.precision) for part in cut.parts]


class _Converted:
    """A graph as a model of OpenVINO."""

    def __init__(self, cut: Cut):
        self.cut = cut

    @cached_property
    def model(self) -> Any:
        import openvino

        arguments = arguments_of(self.cut.whole)
        wide = next(
            (each.dtype for each in arguments if each.is_floating_point() and each.dtype != torch.float32), None
        )
        if wide is not None:
            raise CannotExport(f"its weights are in {wide}, and the runtime takes float32")
        try:
            with torch.no_grad():
                program = torch.export.export(self.cut.whole.module, tuple(arguments), strict=False)
            model = openvino.convert_model(program)
            if len(model.inputs) != len(arguments) or len(model.outputs) != len(self.cut.whole.outputs):
                raise CannotExport("OpenVINO drops an input or an output of its graph")
            model.reshape({port: list(tensor.shape) for port, tensor in zip(model.inputs, arguments)})
        except RuntimeError as error:
            raise CannotExport(f"OpenVINO cannot convert it ({error})") from error
        return model

    def part(self, segment: Segment | None) -> Any:
        """The model of one segment; of the whole graph, with the logits alone as output, where it is `None`."""
        from openvino import Model, opset13

        whole = self.cut.whole
        model = self.model.clone()
        places = [*whole.inputs, *(node.name for node in whole.weights)]
        parameters = dict(zip(places, model.get_parameters()))
        sources = {name: result.input_value(0) for name, result in zip(whole.outputs, model.get_results())}
        outputs = segment.outputs if segment is not None else whole.outputs[-1:]
        results = [opset13.result(sources[name]) for name in outputs]
        if segment is None:
            return Model(results, [parameters[place] for place in places])  # pyright: ignore
        entries = []
        for name in [*segment.inputs, *(node.name for node in segment.weights)]:
            if name in sources:
                source = sources[name]
                parameters[name] = opset13.parameter(source.get_partial_shape(), source.get_element_type())
                for target in source.get_target_inputs():
                    target.replace_source_output(parameters[name].output(0))
            entries.append(parameters[name])
        return Model(results, entries)  # pyright: ignore


class _Compiled:
    """A segment that is compiled when it is run for the first time."""

    def __init__(self, converted: _Converted, segment: Segment | None, precision: str):
        self.converted = converted
        self.segment = segment
        self.precision = precision
        self._bound: dict[int, torch.Tensor] = {}

    @cached_property
    def request(self) -> Any:
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        try:
            model = self.converted.part(self.segment)
            return openvino.Core().compile_model(model, "CPU", options).create_infer_request()
        except RuntimeError as error:
            raise CannotExport(f"OpenVINO cannot compile it ({error})") from error

    def __call__(self, *arguments: torch.Tensor) -> list[torch.Tensor]:
        import openvino

        request = self.request
        for place, tensor in enumerate(arguments):
            if self._bound.get(place) is not tensor:
                request.set_input_tensor(place, openvino.Tensor(tensor.numpy(), shared_memory=True))
                # The memory is shared, so the tensor has to stay.
                self._bound[place] = tensor
        request.infer()
        outputs = len(self.segment.outputs) if self.segment is not None else 1
        return [torch.from_numpy(request.get_output_tensor(place).data) for place in range(outputs)]
