"""
An image classifier as OpenVINO serves it, int8 included, whose scales, biases and head evolve. (`pip install smd_hf[int8]`)

A child is the model with other constants, compiled as it would be served: it runs on the kernels, and to the bits, that it
will be served with. Compiling takes a second, so score it in batches of hundreds of images.
"""

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import SMDError
from .linear_head import HeadInputs, not_linear
from .openvino_compiler import compiled_for_cpu

LAYERS = ("Convolution", "GroupConvolution", "MatMul")


class OpenVINOClassifier(nn.Module):
    """
    A model in OpenVINO's format, as a module whose parameters are constants of the model.

    Each convolution and matrix product with constant weights is a module of `layers`, in the order in which they run. Its
    parameters are `scale` (one for each output channel of int8 weights; the integers stay as they are), `weight` (where it is
    not quantised) and `bias`. Norms are folded into these by OpenVINO. They share their memory with the model's constants:
    whatever is written into them is what runs next, and what is saved.

    Args:
        model (`str`, `Path` or `openvino.Model`): a file that OpenVINO reads, or a model in memory, such as that of
            `nncf.quantize`. It takes images of shape `(images, channels, height, width)` and returns logits; it is changed.
        images (`int`, *optional*, defaults to 32): how many the compiled graph takes at once. Larger batches run in
            several passes, and the last images of a batch are repeated to fill it.

    Raises:
        `SMDError`: if the model has another number of inputs or outputs than one, or no such constants.
    """

    dtype = torch.float32

    def __init__(self, model: Any, images: int = 32):
        import openvino

        super().__init__()
        self.model = openvino.Core().read_model(str(model)) if isinstance(model, str | Path) else model
        self.images = images
        if len(self.model.inputs) != 1 or len(self.model.outputs) != 1:
            raise SMDError(
                f"The model has {len(self.model.inputs)} inputs and {len(self.model.outputs)} outputs. Expected one input, the "
                "images, and one output, their logits. Export the model with its logits alone."
            )
        self.layers = nn.ModuleList()
        for node in list(self.model.get_ordered_ops()):
            if node.get_type_name() in LAYERS:
                layer = _layer(node)
                if layer is not None:
                    self.layers.append(layer)
        if not self.layers:
            raise SMDError(
                "No convolution or matrix product of the model has constant weights in float32 or int8, so nothing of it can "
                "evolve. Save the model without compress_to_fp16, and quantise it with nncf.quantize."
            )
        [classes] = self.model.output(0).get_partial_shape().get_max_shape()[1:]
        self.config = SimpleNamespace(num_labels=classes)
        self._request: Any = None
        self._compiled_with: list[int] = []

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        now = [parameter._version for parameter in self.parameters()]
        if now != self._compiled_with:
            self._request, self._compiled_with = self._compile(pixel_values.shape[1:]), now
        logits = [
            torch.from_numpy(self._request.infer([_filled(part, self.images).numpy()], share_inputs=True)[0].copy())
            for part in pixel_values.contiguous().split(self.images)
        ]
        return {"logits": torch.cat(logits)[: len(pixel_values)]}

    def save(self, path: str | Path) -> None:
        """Writes the model as it is now, as `path` (`.xml`) and a file of weights beside it: what OpenVINO reads."""
        import openvino

        openvino.save_model(self.model, str(path), compress_to_fp16=False)

    def _compile(self, image: Sequence[int]) -> Any:
        model = self.model.clone()
        model.reshape([self.images, *image])
        return compiled_for_cpu(model).create_infer_request()


class OpenVINOHead(HeadInputs):
    """
    The classifier of an [`OpenVINOClassifier`], which can be fitted exactly on its features.

    OpenVINO returns logits alone. [`~smd_hf.search.head.features.features_of`] gets the features as logits of unit vectors.

    Raises:
        `SMDError`: if the last layer is not a classifier in float32, one row of weights a class.
    """

    is_called = False

    def __init__(self, model: OpenVINOClassifier):
        self.model: Any = model
        layer: Any = model.layers[-1]
        self.name, self.layer = f"layers.{len(model.layers) - 1}", layer
        weight = getattr(layer, "weight", None)
        if weight is None or weight.ndim != 2 or not layer.rows or len(weight) != model.config.num_labels:
            raise not_linear(model, "its last layer is quantised, or has no row of weights for each class")


def quantised(path: str | Path, images: Iterable[np.ndarray], batch: int = 32) -> OpenVINOClassifier:
    """
    Quantises an exported model to int8, all but its classifier, by NNCF's post-training quantisation.

    Args:
        images (iterable of `np.ndarray`): batches as the model takes them, float32, from which the ranges of activations are
            measured. A few hundred images are enough.
        batch (`int`, *optional*, defaults to 32): as `images` of [`OpenVINOClassifier`].

    Raises:
        `SMDError`: if NNCF is not installed, or as [`OpenVINOClassifier`] does.
    """
    if find_spec("nncf") is None:
        raise SMDError("Quantising needs nncf, which is not installed. Install it with pip install 'smd-hf[int8]'.")
    import nncf
    import openvino

    model, images = openvino.Core().read_model(str(path)), list(images)
    products = [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    classifier = nncf.IgnoredScope(names=products[-1:])
    found = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images), ignored_scope=classifier)
    return OpenVINOClassifier(found, batch)


class _Layer(nn.Module):
    """A convolution or matrix product."""

    rows = False
    """Whether a matrix has a row of weights for each output."""


def _layer(node: Any) -> nn.Module | None:
    """The parameters of a convolution or matrix product, if it has any."""
    layer = _Layer()
    quantised = node.input_value(1).get_node().get_type_name() != "Constant"
    layer.rows = bool(node.get_attributes().get("transpose_b"))
    for constant in _floats(node.input_value(1)):
        layer.register_parameter("scale" if quantised else "weight", _shared(constant))
    if not list(layer.parameters()):
        return None
    for target in node.output(0).get_target_inputs():
        sum = target.get_node()
        if sum.get_type_name() == "Add":
            for constant in _floats(sum.input_value(1 - target.get_index())):
                layer.register_parameter("bias", _shared(constant))
    return layer


def _floats(output: Any) -> Iterator[Any]:
    """The constants of more than one number in float32 that a value is computed from, if from constants alone."""
    import openvino

    waiting, found = [output.get_node()], []
    while waiting:
        node = waiting.pop()
        if node.get_type_name() == "Constant":
            if node.get_element_type() == openvino.Type.f32 and node.data.size > 1:
                found.append(node)
        elif node.get_input_size() == 0 or node.get_type_name() in LAYERS:
            return iter(())
        else:
            waiting += [each.get_node() for each in node.input_values()]
    return iter(found)


def _shared(constant: Any) -> nn.Parameter:
    """A parameter in the place of a constant, with memory that both share."""
    from openvino.op import Constant

    values = constant.data.copy()
    shared = Constant(values, shared_memory=True)
    shared.set_friendly_name(constant.get_friendly_name())
    constant.output(0).replace(shared.output(0))
    return nn.Parameter(torch.from_numpy(values), requires_grad=False)


def _filled(images: torch.Tensor, count: int) -> torch.Tensor:
    """With the last image repeated until there are so many."""
    return torch.cat([images, images[-1:].expand(count - len(images), *images.shape[1:])])
