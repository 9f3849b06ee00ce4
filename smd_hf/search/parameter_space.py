"""Which parameters of a model are mutable: patterns over names, with named groups."""

from fnmatch import fnmatchcase

from torch import nn

from ..errors import SMDError
from ..models.blocks import find_blocks
from ..models.checkpoints import checkpoint_names
from ..models.heads import head_parameter_names
from ..models.quantized import is_mutable
from .subspaces import ParameterSpace

GROUPS = ("all", "norms", "biases", "head")


def norm_parameter_names(model: nn.Module) -> set[str]:
    """Names of the parameters that belong to normalisation layers: every module whose class is named so."""
    return {
        f"{module_name}.{name}" if module_name else name
        for module_name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    }


def matching_parameters(model: nn.Module, patterns: list[str], argument: str) -> set[str]:
    """
    Names of the parameters that at least one of the patterns matches.

    Args:
        model (`torch.nn.Module`): the model.
        patterns (`list[str]`): each a named group (`all`; `norms`: of normalisation layers; `biases`: those named bias;
            `head`: of the classifier) or a shell-style pattern over names in memory or in the checkpoint, such as
            `"*.layer.11.*"`.
        argument (`str`): the argument that the patterns come from, for the message.

    Raises:
        `SMDError`: for a pattern that matches nothing, with some of the names that there are.
    """
    names = [name for name, _ in model.named_parameters()]
    saved = checkpoint_names(model)
    matches: set[str] = set()
    for pattern in patterns:
        if pattern == "norms":
            found = norm_parameter_names(model) & set(names)
        elif pattern == "biases":
            found = {name for name in names if name.rsplit(".", 1)[-1].endswith("bias")}
        elif pattern == "head":
            found = head_parameter_names(model)
        else:
            glob = "*" if pattern == "all" else pattern
            found = {name for name in names if fnmatchcase(name, glob) or fnmatchcase(saved[name], glob)}
        if not found:
            some = ", ".join([*names[:3], "...", *names[-3:]]) if len(names) > 6 else ", ".join(names)
            raise SMDError(
                f"{argument}: '{pattern}' matches no parameter of this model. Give one of the groups "
                f"{', '.join(GROUPS)} or a shell-style pattern over its {len(names)} parameter names ({some})."
            )
        matches |= found
    return matches


def parameter_space(
    model: nn.Module, mutable_parameters: list[str] | None = None, frozen_parameters: list[str] | None = None
) -> ParameterSpace:
    """
    The parameters that mutation may change: those that `mutable_parameters` match, less those that `frozen_parameters` do.

    Buffers, BatchNorm's running statistics among them, and parameters that are not plain floating-point tensors, such as
    quantised ones, are never mutable.

    Args:
        model (`torch.nn.Module`): the model.
        mutable_parameters (`list[str]`, *optional*, defaults to everything): patterns as in [`matching_parameters`].
        frozen_parameters (`list[str]`, *optional*, defaults to nothing): the same.

    Returns:
        [`ParameterSpace`]: in the order in which blocks run, and the model's own within a block.

    Raises:
        `SMDError`: for a pattern that matches nothing, or if nothing is left.
    """
    mutable = matching_parameters(model, mutable_parameters or ["all"], "mutable_parameters")
    frozen = matching_parameters(model, frozen_parameters, "frozen_parameters") if frozen_parameters else set()
    parameters = dict(model.named_parameters())
    saved = checkpoint_names(model)
    chosen = [
        (name, position)
        for position, block in enumerate(find_blocks(model))
        for name in block.parameter_names
        if name in mutable - frozen and is_mutable(parameters[name])
    ]
    if not chosen:
        raise SMDError(
            "No mutable parameter is left: frozen_parameters takes away all that mutable_parameters gives, or it is quantised "
            f"({len(mutable)} tensors matched, {len(frozen)} frozen). Loosen one of the two."
        )
    names = tuple(name for name, _ in chosen)
    return ParameterSpace(
        names=names,
        keys=tuple(saved[name] for name in names),
        sizes=tuple(parameters[name].numel() for name in names),
        blocks=tuple(position for _, position in chosen),
    )
