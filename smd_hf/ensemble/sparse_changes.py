"""
A sparse change: values that take the place of some coordinates of a tensor, and the exact way back.

A coordinate is a flat index into the tensor in its logical (row-major) order, whatever its memory layout. The change holds
*new values*, not differences: putting them and putting back what stood there are both copies, so nothing is ever rounded.

This file travels with an ensemble's checkpoint: it imports torch alone.
"""

import torch


@torch.no_grad()
def exchange(tensor: torch.Tensor, indices: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    """
    Put `values` in place and return what stood there before.

    Args:
        tensor (`torch.Tensor`): the tensor to change, of any shape and memory layout.
        indices (`torch.Tensor` or `None`): flat indices, int32 or int64, of shape `(k,)`; `None` for the whole tensor.
        values (`torch.Tensor`): the new values, of shape `(k,)` and the tensor's dtype; of the tensor's shape where
            `indices` is `None`.

    Returns:
        `torch.Tensor`: the former values, ready for the call that brings them back.
    """
    if indices is None:
        before = tensor.detach().clone()
        tensor.copy_(values)
        return before
    indices = indices.long()
    before = tensor.take(indices)
    tensor.put_(indices, values)
    return before


def check_change(
    name: str, indices: torch.Tensor | None, values: torch.Tensor, shape: torch.Size, dtype: torch.dtype
) -> None:
    """
    Refuse a change that does not fit its tensor, before anything is written.

    Args:
        name (`str`): the tensor's name, for the message.
        indices (`torch.Tensor` or `None`), values (`torch.Tensor`): the change, as for [`exchange`].
        shape (`torch.Size`), dtype (`torch.dtype`): of the tensor which is to be changed.

    Raises:
        `ValueError`: for values of another dtype or shape or that are not finite; for indices that are not integers, not
            strictly increasing (so also for duplicates), negative or beyond the tensor's end.
    """
    if values.dtype != dtype:
        raise ValueError(f"The change of {name} has values of {values.dtype}, but the tensor is of {dtype}.")
    if not torch.isfinite(values).all():
        raise ValueError(f"The change of {name} has values that are NaN or infinite.")
    if indices is None:
        if values.shape != shape:
            raise ValueError(
                f"The change of {name} has values of shape {tuple(values.shape)}, but the tensor's is {tuple(shape)}."
            )
        return
    if indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"The change of {name} has indices of {indices.dtype}; expected int32 or int64.")
    if indices.ndim != 1 or values.shape != indices.shape:
        raise ValueError(
            f"The change of {name} has indices of shape {tuple(indices.shape)} and values of shape "
            f"{tuple(values.shape)}; expected the same one-dimensional shape."
        )
    if indices.numel() == 0:
        return
    # Compared, not subtracted: a difference can overflow.
    increasing = bool((indices[1:] > indices[:-1]).all())
    if int(indices[0]) < 0 or int(indices[-1]) >= shape.numel() or not increasing:
        raise ValueError(
            f"The change of {name} has indices outside the tensor's {shape.numel()} coordinates, repeated or not in "
            "increasing order."
        )
