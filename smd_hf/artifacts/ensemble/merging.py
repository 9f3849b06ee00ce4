"""
Merging an ensemble into one model: the weighted mean of its members' weights.

Means are taken in float64 on the CPU and rounded to the weights' dtype once. Coordinates that no member changes keep
their bytes.
"""

from collections.abc import Sequence

import torch
from torch import nn

from ...remote_code.members_smd_ensemble import Change, SparseMember, changeable_tensors


@torch.no_grad()
def merge_children(parent: nn.Module, members: Sequence[SparseMember], weights: Sequence[float]) -> None:
    """Put the mean of its children into a parent, in place."""
    changes = [dict(member.changes()) for member in members]
    for name, tensor in changeable_tensors(parent).items():
        parts = [change.get(name) for change in changes]
        if any(part is not None for part in parts):
            tensor.copy_(_mean(tensor, parts, weights))


@torch.no_grad()
def merge_models(target: nn.Module, models: Sequence[nn.Module], weights: Sequence[float]) -> None:
    """
    Put the mean of models into one of the same architecture, in place; integer buffers are left as they are.

    Raises:
        `ValueError`: for models of different architectures.
    """
    states = [model.state_dict() for model in models]
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if any(type(model) is not type(target) for model in models) or any(other != shapes[0] for other in shapes):
        raise ValueError("Only members of the same architecture can be merged into one model.")
    for name, tensor in target.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(_mean(tensor, [(None, state[name]) for state in states], weights))


def _mean(tensor: torch.Tensor, changes: Sequence[Change | None], weights: Sequence[float]) -> torch.Tensor:
    """tensor + sum of weight x (member - tensor), where a change of `None` is no change."""
    # Copied first: MPS would convert before it copies, and has no float64.
    base = tensor.detach().cpu().double()
    mean = base.clone(memory_format=torch.contiguous_format)
    for change, weight in zip(changes, weights):
        if change is None:
            continue
        indices, values = change
        values = values.cpu().double()
        if indices is None:
            mean += weight * (values - base)
        else:
            indices = indices.to("cpu", torch.int64)
            mean.view(-1).index_add_(0, indices, weight * (values - base.take(indices)))
    return mean
