"""What prefix replay has to know of a model before it trusts it: what forbids it, and what a pass has changed."""

import sys
from itertools import chain
from typing import Any

import torch
from torch import nn

from ..models.block_calls import CONSTANTS, modifications, rebuild


def static_refusal(model: nn.Module) -> str | None:
    """Why the model cannot be replayed, as far as it can be seen without a pass."""
    # Importing the compiler takes seconds; without it, nothing is compiled.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    for name, module in model.named_modules():
        where = f"its module {name}" if name else "it"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{where} is scripted"
        if module._compiled_call_impl is not None or (compiler and isinstance(module, compiler.OptimizedModule)):
            return f"{where} is compiled"
        if isinstance(module, nn.DataParallel):
            return f"{where} is spread over devices by DataParallel"
        if "forward" in vars(module):
            return f"{where} has a forward method put on the instance"
        if module.training:
            return f"{where} is in training mode"
    return "forward hooks are registered on it" if has_hooks(model) else None


def has_hooks(model: nn.Module) -> bool:
    everywhere = nn.modules.module
    return bool(everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks) or any(
        module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    )


def state_of(model: nn.Module, device: torch.device) -> list[Any]:
    """What a pass must leave as it is: references, so that no identity is taken twice, and counts of modifications."""
    state: list[Any] = [("random numbers", torch.get_rng_state().tolist())]
    if device.type == "cuda":
        state.append(("random numbers of the device", torch.cuda.get_rng_state(device).tolist()))
    for value in chain.from_iterable(vars(module).values() for module in model.modules()):
        if isinstance(value, list | tuple | dict | set):
            items = tuple(value.values() if isinstance(value, dict) else value)
            # A tuple may be made anew of the same items.
            state.append((tuple if isinstance(value, tuple) else value, len(items)))
        else:
            items = (value,)
        state.extend((item, modifications(item) if isinstance(item, torch.Tensor) else 0) for item in items)
    return state


def same_state(before: list, after: list) -> bool:
    return len(before) == len(after) and all(
        m == n and (a is b or (isinstance(a, CONSTANTS) and type(a) is type(b) and a == b))
        for (a, m), (b, n) in zip(before, after)
    )


def signature(inputs: tuple, device: torch.device) -> str:
    """What the calls of a pass may depend upon, but for the number of images. Raises `TypeError` as [`rebuild`] does."""
    shapes = rebuild(inputs, lambda tensor: (*tensor.shape[1:], tensor.stride(), tensor.dtype, tensor.device))
    autocast = (torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type))
    return repr((shapes, torch.is_inference_mode_enabled(), torch.is_grad_enabled(), autocast))
