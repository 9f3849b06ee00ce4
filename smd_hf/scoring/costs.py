"""What part of a forward pass lies behind each block, in operations: the same on every machine, unlike seconds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging

from ..messages import one_line
from ..models.blocks import find_blocks
from ..models.inputs import as_inputs

logger = logging.get_logger(__name__)


def suffix_costs(model: Any, inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> list[float]:
    """
    The cost of a pass that begins at each block, as a share of a full one.

    Args:
        model (`torch.nn.Module`): in eval mode.
        inputs (mapping of `str` to `torch.Tensor`): keyword arguments of its forward; a tensor alone is the `pixel_values`.

    Returns:
        list of `float`: for each block of [`find_blocks`], in (0, 1], by floating-point operations of convolutions and matrix
        products (`torch.utils.flop_counter`) in this and all later blocks. Where they cannot be counted, every block costs
        the same, and the log says why.
    """
    model.eval()
    blocks = find_blocks(model)
    try:
        by_module = operations(model, as_inputs(inputs, model))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the counter hooks into every module, and not every model bears that
        logger.warning(
            f"The operations of {type(model).__name__} cannot be counted ({type(error).__name__}: {one_line(str(error))}), "
            "so that each of its blocks is taken to cost the same."
        )
        return [1 - place / len(blocks) for place in range(len(blocks))]
    prefix = type(model).__name__
    total = max(by_module.get("Global", 0), 1)
    costs, left = [], total
    for block in blocks:
        costs.append(max(left, 1) / total)
        left -= by_module.get(f"{prefix}.{block.name}", 0)
    return costs


def operations(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """
    Floating-point operations of a pass by module, those inside of it included; of the whole model under `"Global"`.

    Raises what the model raises: the counter hooks into every module, and not every model bears that.
    """
    counter = FlopCounterMode(display=False)
    # The counter follows gradients of whatever requires them, and stumbles over views of parameters (timm's cait and pit).
    with _without_gradients(model), counter, torch.no_grad():
        model(**inputs)
    return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
