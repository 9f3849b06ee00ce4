"""The layer whose output is the class logits of a detector's queries."""

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from .heads import Inputs, trace
from .linear_head import TOLERANCE, HeadInputs, not_linear


class QueryHeadInputs(HeadInputs):
    """
    Records what goes into the layer that classifies the queries of a detector. Boxes do not depend on it.

    Args:
        model ([`~transformers.PreTrainedModel`]): a detector, in eval mode. Its logits are the output of one linear layer, as it is or
            with one number a query added, as D-FINE adds what its boxes say of their quality.
        inputs (mapping of `str` to `torch.Tensor`): some images, which show where the layer is.

    Raises:
        `SMDError`: if they are not.
    """

    def __init__(self, model: PreTrainedModel, inputs: Inputs):
        self.model = model
        with torch.inference_mode():
            outputs, logits = trace(model, inputs)
        limit = TOLERANCE * float(logits.abs().max())
        for self.name, (self.layer, output) in reversed(outputs.items()):
            if output.shape == logits.shape:
                apart = logits - output
                if float((apart - apart.mean(-1, keepdim=True)).abs().max()) <= limit:
                    self.check_mutable()
                    return
        raise not_linear(model, "the class logits of its queries are not those of one linear layer")

    def kept(self, inputs: torch.Tensor) -> torch.Tensor:
        """The layer's inputs as they are, of shape `(batch, queries, num_features)`."""
        return inputs

    def added(self, features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """What the model adds to the layer's output: of shape `(batch, queries, 1)`."""
        weight, bias = self.layer.weight.float(), self.layer.bias
        output = F.linear(features, weight, None if bias is None else bias.float())
        return (logits - output).mean(-1, keepdim=True)
