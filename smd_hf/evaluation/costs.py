"""What part of a forward pass lies behind each block, in operations: the same on every machine, unlike seconds."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..blocks import find_blocks
from ..models.inputs import as_inputs


def suffix_costs(model: nn.Module, inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> list[float]:
    """
    The cost of a pass that begins at each block, as a share of a full one.

    Args:
        model (`torch.nn.Module`): in eval mode.
        inputs (mapping of `str` to `torch.Tensor`): keyword arguments of its forward; a tensor alone is the `pixel_values`.

    Returns:
        list of `float`: for each block of [`find_blocks`], in (0, 1], by floating-point operations of convolutions and matrix
        products (`torch.utils.flop_counter`) in this and all later blocks.
    """
    model.eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(**as_inputs(inputs, model))
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    prefix = type(model).__name__
    total = max(by_module.get("Global", 0), 1)
    costs, left = [], total
    for block in find_blocks(model):
        costs.append(max(left, 1) / total)
        left -= by_module.get(f"{prefix}.{block.name}", 0)
    return costs
