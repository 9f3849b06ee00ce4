"""
Quantised models: which weights can be mutated, and the plain tensors that others consist of.

torchao keeps a quantised weight as a parameter that looks like float32 and holds integers and scales inside. The integers stay
unchanged; the scales can evolve, as the plain weights do. `torch.ao.quantization` keeps weight and bias packed, as no parameter
at all: the model runs with them, and nothing of them evolves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from ..errors import SMDError


def is_mutable(parameter: torch.Tensor) -> bool:
    """Whether a parameter is a plain, dense, floating-point tensor, whose coordinates can be changed and restored."""
    # torchao's quantised tensors, and tensors sharded over devices, are subclasses without values of their own.
    plain = type(parameter.data) is torch.Tensor and parameter.layout == torch.strided
    return plain and parameter.is_floating_point() and not parameter.is_quantized


def scales_of(name: str, parameter: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """
    The scales inside a quantised parameter: beside integers or numbers of 8 bits, what holds floating-point numbers of at least 16.

    Yields:
        `tuple[str, torch.Tensor]`: the name, such as `"fc.weight.scale"`, and the tensor itself: what is written into it is
        what the model runs with next.
    """
    parts = list(_plain_parts(name, parameter)) if is_traceable_wrapper_subclass(parameter) else []
    scales = [(part, tensor) for part, tensor in parts if is_mutable(tensor) and tensor.element_size() > 1]
    if len(scales) < len(parts):  # else it is wrapped for another reason
        yield from scales


def _plain_parts(name: str, tensor: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a subclass is made of: themselves, not copies."""
    if is_traceable_wrapper_subclass(tensor):
        for part in tensor.__tensor_flatten__()[0]:
            yield from _plain_parts(f"{name}.{part}", getattr(tensor, part))
    else:
        yield name, tensor


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of a model by name, and after each quantised one its scales."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter
        tensors.update(scales_of(name, parameter))
    return tensors


def stored_parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """
    What an entry of a `state_dict` consists of.

    Args:
        value: the entry: a plain or quantised tensor, a tensor subclass made of others, a tuple or list of such
            values, or a setting, such as a dtype.

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


def is_plain(value: Any) -> bool:
    """Whether an entry of a `state_dict` is a tensor as safetensors holds it."""
    return isinstance(value, torch.Tensor) and not is_traceable_wrapper_subclass(value) and not value.is_quantized


def stored_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """All plain tensors that the model's `state_dict` consists of."""
    for name, value in model.state_dict().items():
        yield from (part for _, part in stored_parts(name, value) if isinstance(part, torch.Tensor))


def check_can_be_saved(model: PreTrainedModel, ensemble_size: int = 0) -> None:
    """Refuses a model whose evolved form could not be saved, before anything is scored."""
    state = model.state_dict()
    sparse = [name for name, value in state.items() if is_plain(value) and value.layout != torch.strided]
    if sparse:
        raise SMDError(
            f"The model has sparse tensors ({', '.join(sparse[:3])}), which safetensors cannot hold, so that the evolved model "
            "could not be saved. Make them dense with `.to_dense()`."
        )
    odd = [name for name, value in state.items() if not is_plain(value)]
    if not odd:
        return
    names = f"{', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}"
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None or not quantizer.is_serializable():
        raise SMDError(
            f"The model is quantised in a form that cannot be saved as safetensors ({names}). Let transformers quantise it "
            "while it is loaded, such as with quantization_config=TorchAoConfig(...), or evolve it without a trainer, as "
            "examples/forward_only_int8.py does."
        )
    if ensemble_size:
        raise SMDError(
            f"ensemble_size is {ensemble_size}, but an ensemble of a quantised model cannot be saved ({names}). Leave it out: "
            "save_children keeps the best children, and the evolved model is saved with its quantised weights."
        )


@contextmanager
def as_if_not_quantised(model: PreTrainedModel) -> Iterator[None]:
    """Hides the quantisation from Trainer, which refuses quantised models because they have no gradients."""
    if not getattr(model, "is_quantized", False):
        yield
        return
    model.is_quantized = False  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        model.is_quantized = True  # pyright: ignore[reportArgumentType]


def drop_one_way_conversions(model: PreTrainedModel) -> None:
    """
    Makes it possible to save a model again that was loaded from a quantised checkpoint.

    To save, transformers reverts the conversions of loading. It cannot revert those that made
    quantised tensors of their parts, and need not: saving takes these apart by other means.
    """
    conversions = getattr(model, "_weight_conversions", None)
    if conversions and getattr(model, "hf_quantizer", None) is not None:
        model._weight_conversions = [each for each in conversions if _reverts(each)]  # pyright: ignore[reportArgumentType]


def _reverts(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True
