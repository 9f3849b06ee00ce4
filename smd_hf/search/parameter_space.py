"""Finds the mutable parameters of a model by patterns over their names and by named groups."""

from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..errors import SMDError
from ..models.blocks import find_blocks
from ..models.checkpoints import checkpoint_names
from ..models.heads import head_parameter_names
from ..models.quantized import is_mutable, named_tensors
from .subspaces import ParameterSpace

GROUPS = ("all", "norms", "biases", "head", "scales")


def norm_parameter_names(model: nn.Module) -> set[str]:
    """Names of the parameters of normalisation layers: the modules with "norm" in their class name."""
    return {
        f"{module_name}.{name}" if module_name else name
        for module_name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    }


def matching_parameters(model: Any, patterns: list[str], argument: str) -> set[str]:
    """
    Names of the parameters that match at least one of the patterns.

    Args:
        patterns (`list[str]`): each is a named group (`all`; `norms`: normalisation layers; `biases`: parameters named bias;
            `head`: the classifier; `scales`: those of quantised weights, which are not in `all`) or a shell-style pattern over
            names in memory or in the checkpoint, for example `"*.layer.11.*"`.
        argument (`str`): name of the argument that holds the patterns, for the error message.

    Raises:
        `SMDError`: if a pattern matches nothing. The message shows some of the model's names.
    """
    parameters = [name for name, _ in model.named_parameters()]
    names, saved = list(named_tensors(model)), checkpoint_names(model)
    matches: set[str] = set()
    for pattern in patterns:
        if pattern == "all":
            found = set(parameters)
        elif pattern == "scales":
            found = set(names) - set(parameters)
        elif pattern == "norms":
            found = norm_parameter_names(model) & set(names)
        elif pattern == "biases":
            found = {name for name in names if name.rsplit(".", 1)[-1].endswith("bias")}
        elif pattern == "head":
            found = head_parameter_names(model)
        else:
            found = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(saved[name], pattern)}
        if not found:
            some = ", ".join([*names[:3], "...", *names[-3:]]) if len(names) > 6 else ", ".join(names)
            raise SMDError(
                f"{argument}: '{pattern}' matches no parameter of this model. Give one of the groups "
                f"{', '.join(GROUPS)} or a shell-style pattern over its {len(names)} parameter names ({some})."
            )
        matches |= found
    return matches


def parameter_space(
    model: Any, mutable_parameters: list[str] | None = None, frozen_parameters: list[str] | None = None
) -> ParameterSpace:
    """
    The parameters that mutation may change: all that match `mutable_parameters`, except those that match `frozen_parameters`.

    Buffers are never mutable, nor are the integers of quantised parameters: plain floating-point parameters are, and the scales of
    quantised ones. BatchNorm's running statistics are buffers.

    Args:
        mutable_parameters (`list[str]`, *optional*, defaults to all): patterns as in [`matching_parameters`].
        frozen_parameters (`list[str]`, *optional*, defaults to none): patterns as in [`matching_parameters`].

    Returns:
        [`ParameterSpace`]: ordered by the blocks' depth and, within a block, as in the model.

    Raises:
        `SMDError`: if a pattern matches nothing, or no parameter is left.
    """
    mutable = matching_parameters(model, mutable_parameters or ["all"], "mutable_parameters")
    frozen = matching_parameters(model, frozen_parameters, "frozen_parameters") if frozen_parameters else set()
    parameters = named_tensors(model)
    saved = checkpoint_names(model)
    chosen = [
        (name, position)
        for position, block in enumerate(find_blocks(model))
        for name in block.parameter_names
        if name in mutable - frozen and is_mutable(parameters[name])
    ]
    if not chosen:
        raise SMDError(
            f"No mutable parameter is left: mutable_parameters matches {len(mutable)} tensors, and all of them are frozen by "
            f"frozen_parameters (which matches {len(frozen)}) or quantised. Widen mutable_parameters or narrow frozen_parameters."
        )
    names = tuple(name for name, _ in chosen)
    return ParameterSpace(
        names=names,
        keys=tuple(saved[name] for name in names),
        sizes=tuple(parameters[name].numel() for name in names),
        blocks=tuple(position for _, position in chosen),
    )
