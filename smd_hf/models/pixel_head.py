"""The layer whose output is the logits of pixels, before they are resized."""

import torch
from torch import nn
from torch.nn import functional as F

from .linear_head import DenseHeadInputs


class PixelHeadInputs(DenseHeadInputs):
    """
    Records what goes into the head of a model for semantic segmentation.

    Args:
        model ([`~transformers.PreTrainedModel`]): in eval mode. Its logits are the output of a convolution of size 1, or of a linear
            layer over the last dimension, as it is or resized bilinearly.
        inputs (mapping of `str` to `torch.Tensor`): some images, which show where the head is.

    Raises:
        `SMDError`: if they are not.
    """

    expected = "its logits are not those of one convolution of size 1, resized bilinearly"

    def kept(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer's inputs, of shape `(batch, num_features, height, width)`."""
        return self._channels_first(inputs)

    def _channels_first(self, values: torch.Tensor) -> torch.Tensor:
        return values.movedim(-1, 1) if isinstance(self.layer, nn.Linear) and values.ndim == 4 else values

    def makes(self, output: torch.Tensor, logits: torch.Tensor, limit: float) -> bool:
        output = self._channels_first(output)
        if output.ndim != 4 or logits.ndim != 4 or output.shape[1] != logits.shape[1]:
            return False
        for self.align_corners in (False, True):
            if float((self.as_logits(output, logits) - logits).abs().max()) <= limit:
                return True
        return False

    def as_logits(self, channels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Channels `(batch, any, height, width)`, resized as the model resizes its logits."""
        size = logits.shape[-2:]
        if channels.shape[-2:] == size:
            return channels
        return F.interpolate(channels, size, mode="bilinear", align_corners=self.align_corners)
