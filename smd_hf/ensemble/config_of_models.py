"""
The configuration of a new ensemble, from the models and children that it is made of, and the checks of these.

This file travels with an ensemble's checkpoint: it imports torch and transformers alone, and files that travel with
it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from .configuration_smd_ensemble import SMDEnsembleConfig, check_weights
from .sparse_changes import check_change
from .sparse_member import Change, changeable_tensors, checkpoint_names


def config_of_children(
    parent: PreTrainedModel,
    children: Sequence[Mapping[str, Change]],
    member_weights: Sequence[float] | None,
    combination: str,
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
    config = _common_config([parent], len(children), member_weights, combination)
    config.parent_config = _config_dict(parent)
    config.changes = {name: row for name, row in counts.items() if any(count != 0 for count in row)}
    return config


def config_of_models(
    models: Sequence[PreTrainedModel], member_weights: Sequence[float] | None, combination: str
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
    config = _common_config(models, len(models), member_weights, combination)
    config.member_configs = [_config_dict(model) for model in models]
    return config


def _common_config(
    models: Sequence[PreTrainedModel], count: int, member_weights: Sequence[float] | None, combination: str
) -> SMDEnsembleConfig:
    """A configuration with labels, weights and combination, and without its models."""
    if count == 0:
        raise ValueError("An ensemble needs at least one member.")
    weights = [1.0 / count] * count if member_weights is None else [float(weight) for weight in member_weights]
    if len(weights) != count:
        raise ValueError(f"The ensemble has {count} members, but {len(weights)} member_weights.")
    check_weights(weights)
    first = models[0].config
    if first.problem_type in ("regression", "multi_label_classification") or first.num_labels < 2:
        raise ValueError("An ensemble combines classifiers of images into one of at least two classes.")
    config = SMDEnsembleConfig(
        combination=combination, id2label=first.id2label, label2id=first.label2id, problem_type=first.problem_type
    )
    config.member_weights = weights
    if first.model_type == "timm_wrapper" and getattr(first, "pretrained_cfg", None) is not None:
        config.set_timm_processor(first.pretrained_cfg, first.architecture)
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
