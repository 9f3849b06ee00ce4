"""
The logits in what a model returns.

This file travels with an ensemble's checkpoint: it imports torch alone.
"""

from typing import Any

import torch


def logits_of(output: Any) -> torch.Tensor:
    """
    The logits of an image classifier's output, of shape `(batch, classes)`.

    Most classifiers name them `logits`. PPLCNet returns them as `last_hidden_state`, which is a feature map elsewhere.

    Args:
        output (`tuple` or [`~transformers.utils.ModelOutput`]): what the model returned, without a loss.

    Raises:
        `ValueError`: if there are none.
    """
    if isinstance(output, tuple):
        output = {"logits": output[0]}
    for name in ("logits", "last_hidden_state"):
        found = output.get(name) if hasattr(output, "get") else getattr(output, name, None)
        if isinstance(found, torch.Tensor) and (name == "logits" or found.ndim == 2):
            return found
    raise ValueError(
        f"The model returns {type(output).__name__}, which holds no logits. Expected an image classifier: its output has "
        "`logits` of shape (batch, classes)."
    )
