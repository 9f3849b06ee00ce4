"""What part of a forward pass lies behind each block, in operations: the same on every machine, unlike seconds."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..models.blocks import find_blocks


def suffix_costs(model: nn.Module, pixel_values: torch.Tensor) -> list[float]:
    """
    The cost of a pass that begins at each block, as a share of a full one.

    Args:
        model (`torch.nn.Module`): in eval mode.
        pixel_values (`torch.Tensor`): an input, of shape `(batch, channels, height, width)`.

    Returns:
        list of `float`: for each block of [`find_blocks`], in (0, 1], by floating-point operations of convolutions and matrix
        products (`torch.utils.flop_counter`) in this and all later blocks.
    """
    model.eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(pixel_values=pixel_values)
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    prefix = type(model).__name__
    total = max(by_module.get("Global", 0), 1)
    costs, left = [], total
    for block in find_blocks(model):
        costs.append(max(left, 1) / total)
        left -= by_module.get(f"{prefix}.{block.name}", 0)
    return costs
