"""A new ensemble's configuration and members, from the models and children that it is made of, and the checks of these."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ...remote_code.configuration_smd_ensemble import COMBINATIONS, OF_CLASSES, SMDEnsembleConfig, check_weights
from ...remote_code.members_smd_ensemble import (
    Change,
    Segment,
    SparseMember,
    changeable_tensors,
    checkpoint_names,
    index_dtype,
)
from ..change_checks import check_change


def config_of_children(
    parent: PreTrainedModel,
    children: Sequence[Mapping[str, Change]],
    member_weights: Sequence[float] | None,
    combination: str | None,
    task: str = "image-classification",
) -> SMDEnsembleConfig:
    """The configuration for [`~SMDEnsembleForImageClassification.from_children`]; same arguments, same errors."""
    tensors = changeable_tensors(parent)
    for child in children:
        for name, (indices, values) in child.items():
            if name not in tensors:
                raise ValueError(
                    f"A child changes {name}, which is no floating-point parameter of {type(parent).__name__}."
                )
            check_change(name, indices, values, tensors[name].shape, tensors[name].dtype)
    stored = checkpoint_names(parent)
    counts = {stored[name]: [_count(child.get(name)) for child in children] for name in tensors}
    config = _common_config([parent], len(children), member_weights, combination, task)
    config.parent_config = _config_dict(parent)
    config.changes = {name: row for name, row in counts.items() if any(count != 0 for count in row)}
    config.names_in_memory = names_in_memory(parent, config.changes)
    return config


def names_in_memory(parent: PreTrainedModel, stored: Iterable[str]) -> dict[str, str]:
    """The names in memory of a parent's tensors, by their names in a checkpoint, where these differ."""
    names = {saved: name for name, saved in checkpoint_names(parent).items() if saved != name}
    return {saved: names[saved] for saved in stored if saved in names}


def config_of_models(
    models: Sequence[PreTrainedModel],
    member_weights: Sequence[float] | None,
    combination: str | None,
    task: str = "image-classification",
) -> SMDEnsembleConfig:
    """The configuration for [`~SMDEnsembleForImageClassification.from_models`]; same arguments, same errors."""
    parameters = [list(model.parameters()) for model in models]
    if len({id(tensor) for tensors in parameters for tensor in tensors}) < sum(map(len, parameters)):
        raise ValueError(
            "Members of an ensemble must not share tensors. To count a model twice, give it twice the weight; to make "
            "an ensemble of children of one parent, use from_children."
        )
    if any(model.config.id2label != models[0].config.id2label for model in models):
        raise ValueError("Members of an ensemble must have the same labels in the same order (config.id2label).")
    config = _common_config(models, len(models), member_weights, combination, task)
    config.member_configs = [_config_dict(model) for model in models]
    return config


def packed(segments: list[Segment], changes: Mapping[str, Change], device: torch.device) -> SparseMember:
    """A member from the changes of tensors by their names in memory; those of `segments` and no others."""
    parts = [changes[segment.name] for segment in segments]
    indices = [indices.to(device, index_dtype(segments)) for indices, _ in parts if indices is not None]
    # Tensors of several dtypes share the widest: every value is exact in it, and cast back when it is applied.
    values = [values.detach().to(device).reshape(-1) for _, values in parts]
    return SparseMember(segments, torch.cat(indices) if indices else None, torch.cat(values) if values else None)


def set_timm_processor(
    config: SMDEnsembleConfig, pretrained_cfg: dict[str, Any] | None, architecture: str | None = None
) -> None:
    """
    Tell `AutoImageProcessor` how timm prepares images; transformers reads that from a model's `config.json`.

    Args:
        pretrained_cfg (`dict` or `None`): timm's settings (input size, mean, standard deviation, interpolation, ...);
            `None` takes them out, for an image processor which has a file of its own.
    """
    entries = {
        "image_processor_type": "TimmWrapperImageProcessor",
        "pretrained_cfg": pretrained_cfg,
        "architecture": architecture,
    }
    for name, value in entries.items():
        if pretrained_cfg is not None:
            setattr(config, name, value)
        elif name in config.__dict__:
            delattr(config, name)


def _common_config(
    models: Sequence[PreTrainedModel],
    count: int,
    member_weights: Sequence[float] | None,
    combination: str | None,
    task: str,
) -> SMDEnsembleConfig:
    """A configuration with labels, weights and combination, and without its models."""
    if count == 0:
        raise ValueError("An ensemble needs at least one member.")
    weights = [1.0 / count] * count if member_weights is None else [float(weight) for weight in member_weights]
    if len(weights) != count:
        raise ValueError(f"The ensemble has {count} members, but {len(weights)} member_weights.")
    check_weights(weights)
    first = models[0].config
    is_classifier = COMBINATIONS[task] == OF_CLASSES
    fewest = 1 if first.problem_type == "multi_label_classification" else 2
    if is_classifier and (first.problem_type == "regression" or (first.num_labels or 0) < fewest):
        raise ValueError("An ensemble combines classifiers of images into one of at least two classes.")
    config = SMDEnsembleConfig(
        combination=combination,
        id2label=first.id2label,
        label2id=first.label2id,
        problem_type=first.problem_type,
        task=task,
    )
    config.member_weights = weights
    if first.model_type == "timm_wrapper" and getattr(first, "pretrained_cfg", None) is not None:
        set_timm_processor(config, first.pretrained_cfg, first.architecture)
    return config


def _count(change: Change | None) -> int | None:
    """How an ensemble's configuration counts a change: `None` for the whole tensor."""
    if change is None:
        return 0
    return None if change[0] is None else change[0].numel()


def _config_dict(model: PreTrainedModel) -> dict[str, Any]:
    """A model's configuration to be stored in an ensemble's: all that builds it again, and no path of this machine."""
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    for key in ("_name_or_path", "transformers_version", "auto_map"):
        config.pop(key, None)
    return config
