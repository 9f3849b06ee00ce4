"""The layer whose output is the class logits of a detector's queries."""

import torch
from torch.nn import functional as F

from .linear_head import DenseHeadInputs


class QueryHeadInputs(DenseHeadInputs):
    """
    Records what goes into the layer that classifies the queries of a detector. Boxes do not depend on it.

    Args:
        model ([`~transformers.PreTrainedModel`]): a detector, in eval mode. Its logits are the output of one linear layer, as it is or
            with one number a query added, as D-FINE adds what its boxes say of their quality.
        inputs (mapping of `str` to `torch.Tensor`): some images, which show where the layer is.

    Raises:
        `SMDError`: if they are not.
    """

    expected = "the class logits of its queries are not those of one linear layer"

    def makes(self, output: torch.Tensor, logits: torch.Tensor, limit: float) -> bool:
        if output.shape != logits.shape:
            return False
        apart = logits - output
        return float((apart - apart.mean(-1, keepdim=True)).abs().max()) <= limit

    def added(self, features: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """What the model adds to the layer's output: of shape `(batch, queries, 1)`."""
        weight, bias = self.layer.weight.float(), self.layer.bias
        output = F.linear(features, weight, None if bias is None else bias.float())
        return (logits - output).mean(-1, keepdim=True)
