"""A model's inputs: which tensors of a batch its forward takes, and inputs of noise."""

import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .load import is_timm_model, num_channels

DEFAULT_IMAGE_SIZE = 224


def input_names(model: nn.Module) -> frozenset[str] | None:
    """
    Names of the inputs that the forward takes, without labels.

    A forward with `**kwargs` also takes the inputs of the models inside it: timm's in its wrapper,
    the members of an ensemble.

    Returns:
        `frozenset[str]` or `None`: `None` if the forward names no input (`forward(*args, **kwargs)`) and may take any.
    """
    names = set(_named(model))
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        for inner in _inner_models(model):
            names |= set(_named(inner))
    return frozenset(names) or None


def _named(module: nn.Module) -> Iterator[str]:
    for name, parameter in inspect.signature(module.forward).parameters.items():
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if by_name and "label" not in name:
            yield name


def _inner_models(model: nn.Module) -> Iterator[nn.Module]:
    if is_timm_model(model):
        yield model.timm_model  # pyright: ignore[reportReturnType]
    yield from (child for child in model.children() if isinstance(child, PreTrainedModel))


def select_inputs(columns: Mapping[str, Any], names: Collection[str] | None) -> dict[str, torch.Tensor]:
    """The tensors of a batch that go into the model."""
    return {
        name: value
        for name, value in columns.items()
        if isinstance(value, torch.Tensor) and ("label" not in name if names is None else name in names)
    }


def as_inputs(inputs: torch.Tensor | Mapping[str, torch.Tensor], model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Inputs by name, on the model's device and in its dtype; a bare tensor is the `pixel_values`."""
    named = {"pixel_values": inputs} if isinstance(inputs, torch.Tensor) else inputs
    return {name: moved(value, model.device, model.dtype) for name, value in named.items()}


def moved(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A tensor on a device; floats in this dtype, while masks, shapes and token ids keep theirs."""
    tensor = tensor.to(device, non_blocking=True)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def noise_inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """
    Inputs of one image of noise, of the size that the configuration gives: zeros could make layers equal which are not.

    Token ids for a model whose main input they are (ImageGPT); patches with their mask and shape for one that takes these
    (SigLIP 2); otherwise `pixel_values` of shape `(1, channels, height, width)`.
    """
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "input_ids" and "pixel_values" not in (input_names(model) or ()):
        config = model.config
        return {"input_ids": torch.randint(config.vocab_size, (1, config.n_positions), generator=generator)}
    if "spatial_shapes" in (input_names(model) or ()):
        config = getattr(model.config, "vision_config", model.config)
        side = int(config.num_patches**0.5)
        patches = torch.randn(1, side * side, config.num_channels * config.patch_size**2, generator=generator)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(1, side * side, dtype=torch.int32),
            "spatial_shapes": torch.tensor([[side, side]]),
        }
    height, width = _image_size(model)
    return {"pixel_values": torch.randn(1, num_channels(model), height, width, generator=generator)}


def _image_size(model: PreTrainedModel) -> tuple[int, int]:
    if is_timm_model(model):
        _, height, width = (getattr(model.config, "pretrained_cfg", None) or {}).get(
            "input_size", (3, DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE)
        )
        size = (model.config.model_args or {}).get("img_size", (height, width))
    else:
        config = getattr(model.config, "vision_config", model.config)
        size = getattr(model.config, "image_size", getattr(config, "image_size", DEFAULT_IMAGE_SIZE))
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
