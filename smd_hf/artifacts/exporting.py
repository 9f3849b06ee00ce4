"""Exports an image classifier to ONNX or OpenVINO, and checks that the exported model has the same logits."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from ..errors import SMDError
from ..messages import one_line
from ..models.inputs import input_names
from ..models.load import num_channels
from ..models.openvino_compiler import compiled_for_cpu
from ..remote_code.members_smd_ensemble import logits_of

NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
BATCH = 3
"""Images of the check. Another number than the one that is traced, so that a batch size that was baked in is found."""


@dataclass(frozen=True)
class Exported:
    """
    An exported model.

    Args:
        path (`Path`): the file that a runtime loads.
        difference (`float`): the largest absolute difference of a logit from PyTorch's, on images of noise.
        scale (`float`): the largest absolute logit there.
        any_batch (`bool`): whether it takes any number of images at once; otherwise one.
    """

    path: Path
    difference: float
    scale: float
    any_batch: bool


class _Logits(nn.Module):
    """A model as a function from pixel values to logits."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return logits_of(self.model(pixel_values=pixel_values))


def check_installed(form: str) -> None:
    """Raises [`SMDError`] if a package that the export needs is not installed."""
    missing = [name for name in NEEDED[form] if importlib.util.find_spec(name) is None]
    if missing:
        raise SMDError(
            f"Exporting to {form} needs {', '.join(missing)}, which is not installed. Install it with pip install 'smd-hf[{form}]'."
        )


def export_model(model: PreTrainedModel, processor: Any, form: str, folder: Path, tolerance: float = 1e-3) -> Exported:
    """
    Exports a model in float32, and compares its logits on images of noise with PyTorch's.

    Args:
        model ([`~transformers.PreTrainedModel`]): an image classifier that takes `pixel_values`, on the CPU.
        processor: its image processor, which decides on the size of the images.
        form (`str`): `"onnx"` or `"openvino"`.
        folder (`Path`): receives the file; must exist.
        tolerance (`float`, *optional*, defaults to 1e-3): the largest difference of a logit that is accepted, as a share of the
            largest logit (of 1, if that is smaller).

    Raises:
        `SMDError`: if a package is missing, the model cannot be exported, or the logits differ. No file is left then.
    """
    check_installed(form)
    inputs = _processed_noise(processor, model)
    if inputs.keys() != {"pixel_values"}:
        raise SMDError(
            f"The model takes {', '.join(inputs)}, but only models that take pixel_values alone are exported. Run it in PyTorch."
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise SMDError(
            "The model is quantised, and its operations have no counterpart in the exported format. Export an unquantised model."
        )
    whole = _Logits(model.float().eval())
    pixels = inputs["pixel_values"]
    path = folder / FILES[form]
    with _quiet():
        program, any_batch = _trace(whole, pixels)
        try:
            run = (_to_onnx if form == "onnx" else _to_openvino)(program, path)
        except Exception as error:  # the converters raise anything for an operation that they do not know
            _remove(path)
            raise SMDError(
                f"The model cannot be converted to {form} ({type(error).__name__}: {one_line(str(error))})."
            ) from error
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH if any_batch else 1, *pixels.shape[1:], generator=generator)
    with torch.inference_mode():
        expected = whole(images).numpy()
    found = run(images.numpy())
    difference, scale = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    if not difference <= tolerance * max(1.0, scale):
        _remove(path)
        raise SMDError(
            f"The exported model has other logits than PyTorch's: they differ by up to {difference:.2g}, where the largest is "
            f"{scale:.2g} and {tolerance:g} of it is accepted. Nothing was kept. If that is close enough, give a larger --tolerance."
        )
    return Exported(path, difference, scale, any_batch)


def _processed_noise(processor: Any, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Inputs of one image of noise, as the image processor makes them."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    image = Image.fromarray(pixels if num_channels(model) == 3 else pixels[..., 0])
    made = processor(images=[image], return_tensors="pt")
    return {name: made[name] for name in made if name in (input_names(model) or {"pixel_values"})}


def _trace(whole: nn.Module, pixels: torch.Tensor) -> tuple[torch.export.ExportedProgram, bool]:
    """The traced model, for any number of images if that works, else for one."""
    with torch.no_grad():
        try:
            shapes = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=4096)}}
            return torch.export.export(whole, (torch.cat([pixels, pixels]),), dynamic_shapes=shapes), True
        except Exception:  # some architectures compute with the number of images
            pass
        try:
            return torch.export.export(whole, (pixels,)), False
        except Exception as error:
            raise SMDError(
                f"The model cannot be traced ({type(error).__name__}: {one_line(str(error))}). Its code depends on values of its "
                "input: run it in PyTorch."
            ) from error


def _to_onnx(program: torch.export.ExportedProgram, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    torch.onnx.export(
        program, f=str(path), dynamo=True, input_names=["pixel_values"], output_names=["logits"], external_data=False, verbose=False
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {"pixel_values": images})[0])


def _to_openvino(program: torch.export.ExportedProgram, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import openvino

    converted = openvino.convert_model(program)
    converted.inputs[0].get_tensor().set_names({"pixel_values"})
    converted.outputs[0].get_tensor().set_names({"logits"})
    openvino.save_model(converted, str(path), compress_to_fp16=False)
    compiled = compiled_for_cpu(str(path))
    return lambda images: compiled(images)[0]


def _remove(path: Path) -> None:
    for each in (path, path.with_suffix(".bin")):
        each.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say to their developers."""
    names: list[Any] = ["torch.onnx", "onnxscript", "torch.export", "torch._dynamo", "onnx_ir"]
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger, _ in before:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in before:
                logger.setLevel(level)
