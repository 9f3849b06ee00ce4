"""Checks of sparse changes, before they are written into a parent."""

from collections.abc import Iterable

import torch
from torch import nn

from ..remote_code.members_smd_ensemble import SparseMember, changeable_tensors


def check_change(name: str, indices: torch.Tensor | None, values: torch.Tensor, shape, dtype: torch.dtype) -> None:
    """Refuse, by a `ValueError`, a change that does not fit the tensor `name` of this shape and dtype, before it is written."""
    fault = None
    if values.dtype != dtype:
        fault = f"values of {values.dtype}, but the tensor is of {dtype}"
    elif not torch.isfinite(values).all():
        fault = "values that are NaN or infinite"
    elif indices is None:
        if values.shape != shape:
            fault = f"values of shape {tuple(values.shape)}, but the tensor's is {tuple(shape)}"
    elif indices.dtype not in (torch.int32, torch.int64):
        fault = f"indices of {indices.dtype}; expected int32 or int64"
    elif indices.ndim != 1 or values.shape != indices.shape:
        fault = f"indices of {[*indices.shape]}, values of {[*values.shape]}; expected the same one-dimensional shape"
    # Compared, not subtracted, and as Python's integers: int32 can overflow.
    elif len(indices) and (indices[0] < 0 or int(indices[-1]) >= shape.numel() or (indices[1:] <= indices[:-1]).any()):
        fault = f"indices outside the tensor's {shape.numel()} coordinates, repeated or not in increasing order"
    if fault is not None:
        raise ValueError(f"The change of {name} has {fault}.")


def check_members(members: Iterable[SparseMember], parent: nn.Module) -> None:
    """Refuse, by a `ValueError`, changes that do not fit the parent."""
    tensors = changeable_tensors(parent)
    for i, member in enumerate(members):
        for name, (indices, values) in member.changes():
            what, tensor = f"{name} in member {i} of the ensemble", tensors[name]
            check_change(what, indices, values.to(tensor.dtype), tensor.shape, tensor.dtype)
