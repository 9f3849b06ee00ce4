"""
Weights that are not plain floating-point tensors: what of a quantised model can be mutated, and what it consists of.

torchao keeps a quantised weight as a parameter that looks like float32 and holds integers and scales inside;
`torch.ao.quantization` keeps weight and bias packed, as no parameter at all. Neither can be changed coordinate by coordinate,
so both are left as they are: the model runs forward with them, and what is plain beside them evolves.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_mutable(parameter: torch.Tensor) -> bool:
    """Whether a parameter is a plain, dense, floating-point tensor, whose coordinates can be put and taken back."""
    # torchao's quantised tensors, and tensors sharded over devices, are subclasses that only stand for their contents.
    plain = type(parameter.data) is torch.Tensor and parameter.layout == torch.strided
    return plain and parameter.is_floating_point() and not parameter.is_quantized


def stored_parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """
    What an entry of a `state_dict` consists of.

    Args:
        name (`str`): the entry's name.
        value: the entry: a tensor, a quantised one, a tensor subclass that is made of others, a tuple or list of such
            things, or a setting, such as a dtype.

    Yields:
        `tuple[str, Any]`: name and plain tensor of each part, which for a plain tensor is itself; a setting is its `repr`.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if is_traceable_wrapper_subclass(value):
            inner, settings = value.__tensor_flatten__()
            yield f"{name}.settings", repr(settings)
            for part in inner:
                yield from stored_parts(f"{name}.{part}", getattr(value, part))
        elif value.is_quantized:
            yield f"{name}.quantized", value.int_repr()
            if value.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
                yield f"{name}.scales", value.q_per_channel_scales()
                yield f"{name}.zero_points", value.q_per_channel_zero_points()
            else:
                yield f"{name}.scale", repr((value.q_scale(), value.q_zero_point()))
        else:
            yield name, value
    elif isinstance(value, tuple | list):
        for number, part in enumerate(value):
            yield from stored_parts(f"{name}.{number}", part)
    else:
        yield name, repr(value)
