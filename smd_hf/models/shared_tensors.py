"""
Tensors that a model holds under several names, for a file that holds each name once.


"""

from collections.abc import Collection, Mapping

import torch


def separated(state: Mapping[str, torch.Tensor], tied: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """
    A state of which no two tensors share memory, as safetensors wants it: a second name gets a copy.

    Loading finds each name, as timm requires; modules that the model itself shares are shared again.
    """
    seen, result = set(), {}
    for name, tensor in state.items():
        result[name] = tensor
        if name in tied or type(tensor.data) is not torch.Tensor or tensor.is_quantized:
            continue
        if tensor.layout != torch.strided or tensor.is_meta or tensor.numel() == 0:
            continue
        place = (tensor.device, tensor.untyped_storage().data_ptr())
        if place in seen:
            result[name] = tensor.detach().clone()
        seen.add(place)
    return result
