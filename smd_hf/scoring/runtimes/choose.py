"""Chooses the runtime of a run: the fastest that is installed, takes the model, and agrees with eager PyTorch."""

import importlib.metadata
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import nn

from ...errors import SMDError
from ...messages import one_line
from ...remote_code.members_smd_ensemble import logits_of
from ..costs import operations
from .compiled import compiled
from .eager import Eager
from .graph import CannotExport, Read
from .openvino import OpenVINO, has_bf16
from .protocol import Inputs, Runtime
from .segmented import SEGMENTS, SegmentedRuntime

TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 0.1}
"""
How far logits of the first batch may be from those of eager PyTorch, in units of their largest absolute value. TF32 is what PyTorch
convolves float32 in on a GPU, by default. Another kernel then rounds the logits elsewhere: on an H200, those of an EfficientNet-Lite0 by
up to 0.0067.
"""

WORTH_EXPORTING = 1e12
"""Operations of a run from which `auto` looks for a faster runtime than eager: below it, exporting takes longer than the run."""


class Settled(NamedTuple):
    """The runtime to take, why it is not a faster one, and the precision of children."""

    name: str
    reason: str | None = None
    precision: str = "fp32"


@dataclass(eq=False)
class RuntimeChoice:
    """
    What was asked for, until there is a batch to try it on.

    Args:
        name (`str`, *optional*, defaults to `"auto"`): `"auto"`, `"eager"`, `"compiled"` or `"openvino"`.
        precision (`str`, *optional*, defaults to `"fp32"`): `"fp32"`, `"bf16"` or `"auto"`, of children.
        mutable (collection of `str`, *optional*): names of the parameters that children may change; all by default.
        prefix_replay (`bool`, *optional*, defaults to `True`): children may start in the middle.
        images (`int`, *optional*, defaults to 0): how many images the run will forward, for `"auto"`.
        mixed_precision (`bool`, *optional*, defaults to `False`): passes run under autocast.
    """

    model: nn.Module
    name: str = "auto"
    precision: str = "fp32"
    mutable: Collection[str] | None = None
    batch_size: int | None = None
    prefix_replay: bool = True
    images: int = 0
    mixed_precision: bool = False
    read: Read = logits_of
    _runtimes: dict[tuple[str, str], Runtime] = field(default_factory=dict, init=False)
    _expected: torch.Tensor | None = field(default=None, init=False)

    def settle(self, inputs: Inputs) -> Settled:
        """
        Tries the runtimes on a batch.

        Raises:
            `SMDError`: if the runtime that was asked for cannot run the model.
        """
        self._expected = None
        name = self._candidate(inputs)
        if name == "eager":
            return Settled(name, self._advice(inputs), self._settled_precision(name, inputs))
        self._check_possible(name, inputs)
        reason = self._disagreement(name, "fp32", inputs)
        if reason is None and self.precision == "bf16":
            reason = self._disagreement(name, "bf16", inputs)
        if reason is None:
            return Settled(name, precision=self._settled_precision(name, inputs))
        if self.name == "auto":
            reason = f"Runtime: eager, because {name} does not take {type(self.model).__name__}: {reason}."
            return Settled("eager", reason, self._settled_precision("eager", inputs))
        raise SMDError(
            f"runtime='{name}' does not take {type(self.model).__name__}: {reason}. Choose runtime='eager', or 'auto' for "
            "the fastest runtime that takes it."
        )

    def _settled_precision(self, name: str, inputs: Inputs) -> str:
        """The precision of children in this runtime."""
        if self.precision != "auto":
            return self.precision
        on_gpu = next(iter(inputs.values())).device.type == "cuda"
        fast = has_bf16() if name == "openvino" else on_gpu and torch.cuda.is_bf16_supported(False)
        takes = fast and not self.mixed_precision and self._disagreement(name, "bf16", inputs) is None
        return "bf16" if takes else "fp32"

    def runtime(self, name: str, precision: str = "fp32") -> Runtime:
        """The runtime of this name, with what it has compiled so far."""
        if name == "eager":
            return Eager(self.model, self.prefix_replay, read=self.read)
        if (name, precision) not in self._runtimes:
            hint = "bf16" if precision == "bf16" else "f32"
            compile = partial(OpenVINO, precision=hint) if name == "openvino" else compiled
            segments = SEGMENTS if self.prefix_replay else 1
            self._runtimes[name, precision] = SegmentedRuntime(
                self.model, name, compile, self.mutable, self.batch_size, segments, self.read
            )
        return self._runtimes[name, precision]

    def _candidate(self, inputs: Inputs) -> str:
        """The runtime to try."""
        if self.name != "auto":
            return self.name
        return "openvino" if find_spec("openvino") is not None and self._suits_openvino(inputs) else "eager"

    def _suits_openvino(self, inputs: Inputs) -> bool:
        """Whether the run is long, and of a kind that OpenVINO computes on this machine."""
        if self.mixed_precision or (self.precision == "bf16" and not has_bf16()):
            return False
        on_cpu = next(iter(inputs.values())).device.type == "cpu"
        return on_cpu and self.images * operations_per_image(self.model, inputs) >= WORTH_EXPORTING

    def _advice(self, inputs: Inputs) -> str | None:
        """For a long run on a CPU, if `auto` lacks the runtime that it would try."""
        if self.name != "auto" or find_spec("openvino") is not None or not self._suits_openvino(inputs):
            return None
        return "Runtime: eager. OpenVINO is not installed; it is often twice as fast on a CPU: pip install 'smd-hf[openvino]'."

    def _check_possible(self, name: str, inputs: Inputs) -> None:
        if name != "openvino":
            return
        if find_spec("openvino") is None:
            raise SMDError(
                "runtime='openvino' needs OpenVINO, which is not installed. Install it with `pip install smd_hf[openvino]`, or "
                "choose runtime='eager' or 'compiled'."
            )
        device = next(iter(inputs.values())).device.type
        if device != "cpu":
            raise SMDError(
                f"runtime='openvino' runs on the CPU, and the model is on {device}. Choose runtime='compiled' or 'eager', or "
                "run with use_cpu=True."
            )
        if self.mixed_precision:
            raise SMDError(
                "runtime='openvino' does not run under bf16=True or fp16=True. Choose precision='bf16' to score children in bfloat16, "
                "or runtime='eager'."
            )
        if self.precision == "bf16" and not has_bf16():
            raise SMDError(
                "precision='bf16' with runtime='openvino' needs a CPU with AVX-512 BF16 or AMX, and this one has neither. "
                "Choose precision='fp32'."
            )

    def _disagreement(self, name: str, precision: str, inputs: Inputs) -> str | None:
        """Why a runtime cannot take the model, or how its logits of a batch differ from those of eager PyTorch, if by too much."""
        device = next(iter(inputs.values())).device
        with torch.inference_mode():
            if self._expected is None:  # the same for both precisions
                self._expected = Eager(self.model, prefix_replay=False, read=self.read).forward(inputs).double()
            expected = self._expected
            if not torch.isfinite(expected).all():
                return None  # the parent's own fault, which scoring reports
            try:
                with in_precision(name, precision, device):
                    found = self.runtime(name, precision).forward(inputs).double()
            except CannotExport as error:
                return one_line(str(error))
        difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
        limit = TOLERANCE["tf32" if precision == "fp32" and convolves_in_tf32(device) else precision]
        if difference <= limit:
            return None
        return (
            f"its logits in {precision} differ from those of eager PyTorch by {difference:.2g} of the largest, and "
            f"{limit:g} is allowed"
        )


def in_precision(name: str, precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which the passes of a runtime have a precision. OpenVINO is compiled for its own."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" and name != "openvino")


def convolves_in_tf32(device: torch.device) -> bool:
    """Whether PyTorch convolves float32 in TF32 there, which has 10 bits of mantissa in place of 23."""
    if device.type != "cuda":
        return False
    convolution = getattr(torch.backends.cudnn, "conv", None)  # from PyTorch 2.9 on
    return torch.backends.cudnn.allow_tf32 if convolution is None else convolution.fp32_precision == "tf32"


def operations_per_image(model: nn.Module, inputs: Inputs) -> float:
    """Floating-point operations of a pass, for each image: those of convolutions and matrix products."""
    try:
        counted = operations(model, {name: tensor[:1] for name, tensor in inputs.items()})
    except torch.OutOfMemoryError:
        raise
    except Exception:  # not every model bears the counter; eager runs it
        return 0.0
    return float(counted.get("Global", 0))


def identity(name: str, precision: str = "fp32") -> str:
    """The runtime, the version of what computes in it, and the precision of children: each rounds differently."""
    if name != "eager":
        name = f"{name} {importlib.metadata.version('openvino' if name == 'openvino' else 'torch')}"
    return name if precision == "fp32" else f"{name}, children in {precision}"
