"""The layer whose output is the logits of pixels, before they are resized."""

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from .heads import Inputs, trace
from .linear_head import TOLERANCE, HeadInputs, not_linear


class PixelHeadInputs(HeadInputs):
    """
    Records what goes into the head of a model for semantic segmentation.

    Args:
        model ([`~transformers.PreTrainedModel`]): in eval mode. Its logits are the output of a convolution of size 1, as it is or
            resized bilinearly.
        inputs (mapping of `str` to `torch.Tensor`): some images, which show where the head is.

    Raises:
        `SMDError`: if they are not.
    """

    def __init__(self, model: PreTrainedModel, inputs: Inputs):
        self.model = model
        with torch.inference_mode():
            outputs, logits = trace(model, inputs)
            logits = logits.float()
            limit = TOLERANCE * float(logits.abs().max())
            for self.name, (self.layer, output) in reversed(outputs.items()):
                if output.ndim != 4 or logits.ndim != 4 or output.shape[1] != logits.shape[1]:
                    continue
                for self.align_corners in (False, True):
                    if float((self.as_logits(output.float(), logits) - logits).abs().max()) <= limit:
                        self.check_mutable()
                        return
        raise not_linear(model, "its logits are not those of one convolution of size 1, resized bilinearly")

    def kept(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer's inputs as they are: they are read at a few pixels alone."""
        return inputs

    def as_logits(self, channels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Channels `(batch, any, height, width)`, resized as the model resizes its logits."""
        size = logits.shape[-2:]
        if channels.shape[-2:] == size:
            return channels
        return F.interpolate(channels, size, mode="bilinear", align_corners=self.align_corners)
