"""The linear layer whose output is the logits, read and written as numbers, and what goes into it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import SMDError
from ..remote_code.members_smd_ensemble import logits_of
from .heads import Head, Inputs, find_heads, trace
from .inputs import as_inputs
from .quantized import is_mutable

TOLERANCE = 1e-3
"""How far logits may be from those of the layer, as a share of their largest value."""


class HeadInputs:
    """
    Records what goes into the head of an image classifier.

    Args:
        model ([`~transformers.PreTrainedModel`]): an image classifier, in eval mode.
        inputs (mapping of `str` to `torch.Tensor`): some images, which show where the head is.

    Attributes:
        name (`str`): the layer's name in the model.
        layer (`torch.nn.Module`): linear, or a convolution of size 1.

    Raises:
        `SMDError`: if the logits are not the output of one linear layer on one vector for each image.
    """

    is_called = True
    """Whether PyTorch calls the layer, so that its inputs can be recorded."""

    def __init__(self, model: PreTrainedModel, inputs: Inputs):
        self.model = model
        heads = find_heads(model, inputs)
        [(self.name, self.layer), *others] = heads.items()
        if others:
            raise not_linear(model, f"{len(heads)} layers make its logits ({', '.join(heads)})")
        self.check_mutable()
        with self.recorded() as seen, torch.inference_mode():
            logits = logits_of(model(**as_inputs(inputs, model))).float().cpu().numpy()
        [features] = seen or [torch.empty(0)]
        weight, bias = self.numbers()
        if features.numel() != len(logits) * weight.shape[1]:
            raise not_linear(model, f"{self.name} gets several vectors for each image")
        expected = features.numpy() @ weight.T + (0.0 if bias is None else bias)
        # Its own precision decides in which places they may differ.
        share = TOLERANCE if self.layer.weight.dtype == torch.float32 else 50 * TOLERANCE
        if np.abs(logits - expected).max() > share * max(np.abs(expected).max(), 1.0):
            raise not_linear(model, f"its logits are not the output of {self.name} alone")

    def check_mutable(self) -> None:
        if not all(is_mutable(parameter) for parameter in self.layer.parameters()):
            raise not_linear(self.model, f"the weights of {self.name} are quantised")

    @property
    def parameter_names(self) -> list[str]:
        """Names of the layer's parameters in the model."""
        return [f"{self.name}.{name}" for name, _ in self.layer.named_parameters()]

    def numbers(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight `(num_labels, num_features)` and bias `(num_labels,)` (or `None`), float64."""
        weight = self.layer.weight.detach().cpu().double().flatten(1).contiguous().numpy()
        bias = self.layer.bias
        return weight, None if bias is None else bias.detach().cpu().double().flatten().numpy()

    @torch.no_grad()
    def write(self, weight: np.ndarray, bias: np.ndarray | None) -> None:
        """Writes weight and bias into the layer, rounded to its dtype."""
        self.layer.weight.copy_(torch.from_numpy(weight).reshape(self.layer.weight.shape))
        if bias is not None and self.layer.bias is not None:
            self.layer.bias.copy_(torch.from_numpy(bias))

    def changes(self, arrays: Mapping[str, np.ndarray | torch.Tensor]) -> list[tuple[str, tuple[None, torch.Tensor]]]:
        """Another head as changes of the model: by names of parameters, new values in their shape, dtype and place."""
        return [
            (f"{self.name}.{name}", (None, torch.as_tensor(arrays[name]).to(old).view_as(old)))
            for name, old in self.layer.named_parameters()
        ]

    def kept(self, inputs: torch.Tensor) -> torch.Tensor:
        """What is kept of the layer's inputs: float32, on the CPU, of shape `(batch, num_features)`."""
        return inputs.flatten(1).cpu()

    @contextmanager
    def recorded(self) -> Iterator[list[torch.Tensor]]:
        """Within the context, the inputs of each pass are appended to the list, as [`HeadInputs.kept`] makes them."""
        seen: list[torch.Tensor] = []

        def record(layer: Head, args: tuple[torch.Tensor, ...]) -> None:
            seen.append(self.kept(args[0].detach().float()))

        handle = self.layer.register_forward_pre_hook(record)
        try:
            yield seen
        finally:
            handle.remove()


class DenseHeadInputs(HeadInputs):
    """
    Records what goes into a head that is applied at many places of an image.

    Args:
        model ([`~transformers.PreTrainedModel`]): in eval mode.
        inputs (mapping of `str` to `torch.Tensor`): some images, which show where the head is.

    Raises:
        `SMDError`: if no layer's output makes the logits.
    """

    expected: str
    """What no layer does if none is the head, for the error."""

    def __init__(self, model: PreTrainedModel, inputs: Inputs):
        self.model = model
        with torch.inference_mode():
            outputs, logits = trace(model, inputs)
            logits = logits.float()
            limit = TOLERANCE * float(logits.abs().max())
            for self.name, (self.layer, output) in reversed(outputs.items()):
                if self.makes(output.float(), logits, limit):
                    self.check_mutable()
                    return
        raise not_linear(model, self.expected)

    def makes(self, output: torch.Tensor, logits: torch.Tensor, limit: float) -> bool:
        """Whether a layer's output makes the logits, up to differences of `limit`."""
        raise NotImplementedError

    def kept(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer's inputs as they are: they are read at a few places alone."""
        return inputs


def not_linear(model: nn.Module, reason: str) -> SMDError:
    return SMDError(
        f"The head of {type(model).__name__} cannot be fitted on features: {reason}. Expected logits that are the output of "
        "one linear layer. Children can still change it."
    )
