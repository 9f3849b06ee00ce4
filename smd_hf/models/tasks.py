"""
The task of a checkpoint. Image classifiers are accepted, and backbones, which get a new head.

`AutoModelForImageClassification` does not ask: of a checkpoint for segmentation it loads the backbone, drops the rest and
makes up a classifier. The task shows in two places, and both are checked: the architecture that its
config.json names, and the weights that it holds.
"""

import re
from typing import Any

from torch import nn
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

from ..errors import SMDError
from ..messages import one_line

IMAGE_CLASSIFICATION = "image classification"
ZERO_SHOT = "zero-shot image classification"
PRETRAINING = ("masked image modeling", "causal image modeling", "pre-training")
"""Tasks that train backbones without labels: their heads may be dropped."""

REMEDY = (
    "Only image classification is supported yet: choose a checkpoint that was fine-tuned for image classification, or a "
    "backbone without a head, which gets a new classifier."
)

_TASK = re.compile(r"For(?=[A-Z])(\w+)$")
_COMPARE_WITH_TEXTS = set(MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES.values())


def task_of(architecture: str) -> str | None:
    """
    The task in the name of a class of transformers, in words: `"semantic segmentation"` for
    `"SegformerForSemanticSegmentation"`; `None` for a backbone and other names.
    """
    if architecture in _COMPARE_WITH_TEXTS:
        return ZERO_SHOT
    found = _TASK.search(architecture)
    if found is None:
        return None
    if found[1].startswith("ImageClassification"):
        return IMAGE_CLASSIFICATION
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", found[1]).lower()
    return words.replace("zero shot", "zero-shot").replace("pre training", "pre-training")


def checkpoint_tasks(config_dict: dict[str, Any]) -> dict[str, str | None]:
    """The task of each architecture that a config.json names; empty where it names none."""
    architectures, auto_map = config_dict.get("architectures"), config_dict.get("auto_map")
    names = [each for each in architectures if isinstance(each, str)] if isinstance(architectures, list) else []
    # Custom code may give its image classifier any name, and declares it here.
    own = auto_map.get("AutoModelForImageClassification") if isinstance(auto_map, dict) else None
    own = own.rpartition(".")[2] if isinstance(own, str) else None
    return {each: IMAGE_CLASSIFICATION if each == own else task_of(each) for each in names}


def check_task(name: str, config_dict: dict[str, Any]) -> None:
    """
    Refuses a checkpoint whose config.json names another task.

    Args:
        config_dict (`dict`): its config.json, which may hold anything.
    """
    tasks = checkpoint_tasks(config_dict)
    others = [each for each, task in tasks.items() if task not in (None, IMAGE_CLASSIFICATION, *PRETRAINING)]
    if others and IMAGE_CLASSIFICATION not in tasks.values():
        raise SMDError(f"'{name}' is a checkpoint for {_described(one_line(others[0]), tasks[others[0]])}. {REMEDY}")


def foreign_weights(model: PreTrainedModel, unexpected: list[str], config_dict: dict[str, Any]) -> list[str]:
    """
    The weights of a checkpoint that belong to a head that the loaded model does not have.

    Returns:
        `list[str]`: those outside the body, in order; a pooler belongs to the body, and what a backbone was pretrained with
        does not count.
    """
    tasks = checkpoint_tasks(config_dict)
    if any(task in PRETRAINING or each.endswith("Backbone") for each, task in tasks.items()):
        return []
    prefix = model.base_model_prefix
    parts = {"pooler"}
    if model.base_model is not model:
        # A backbone that was saved without a head names its weights without the prefix.
        parts |= {prefix} | {part for part, _ in model.base_model.named_children()}
    return sorted(key for key in unexpected if key.split(".", 1)[0] not in parts)


def check_classifier(model: nn.Module) -> None:
    """Refuses a model in memory whose class is not an image classifier."""
    kind = type(model)
    if not isinstance(model, PreTrainedModel) or not kind.__module__.startswith("transformers."):
        return
    task = task_of(kind.__name__)
    if task not in (None, IMAGE_CLASSIFICATION):
        raise SMDError(f"The model is for {_described(kind.__name__, task)}. {REMEDY}")
    if task is None and type(model.config) in MODEL_MAPPING and MODEL_MAPPING[type(model.config)] is kind:
        raise SMDError(
            f"The model is a {kind.__name__}, a backbone without a classifier. Expected an image classifier: save the model "
            "with `save_pretrained` and pass the folder's name instead, and it gets a new classifier."
        )


def _described(architecture: str, task: str | None) -> str:
    if task == ZERO_SHOT:
        return f"{task} ({architecture}): it compares images with texts, and has no classifier of images"
    return f"{one_line(str(task))} ({architecture}), not an image classifier"
