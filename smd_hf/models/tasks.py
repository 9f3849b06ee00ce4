"""
The task of a checkpoint. Models of the run's task are accepted; for image classification also backbones, which get a new head.

The Auto classes of transformers do not ask: `AutoModelForImageClassification` loads the backbone of a checkpoint for
segmentation, drops the rest and makes up a classifier. The task shows in two places, and both are checked: the architecture
that its config.json names, and the weights that it holds.
"""

import re
from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

from ..errors import SMDError
from ..messages import one_line

IMAGE_CLASSIFICATION = "image classification"
ZERO_SHOT = "zero-shot image classification"


@dataclass(frozen=True)
class Kind:
    """
    A kind of model that can be loaded.

    Args:
        pipeline_tag (`str`): the task's name on the Hub.
        words (`str`): the task in words. transformers' classes and mappings are named by them.
        model (`str`): what such a model is called in messages.
    """

    pipeline_tag: str
    words: str
    model: str

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads such models."""
        of_task = re.sub("[ -]", "", self.words.title())
        return "AutoModel" if self is BACKBONE else f"AutoModelFor{of_task}"

    @property
    def auto(self) -> Any:
        return getattr(transformers, self.auto_class)

    @property
    def configs(self) -> Any:
        """The configurations whose models the Auto class loads."""
        name = "IMAGE" if self is BACKBONE else re.sub("[ -]", "_", self.words.upper())
        return getattr(transformers, f"MODEL_FOR_{name}_MAPPING")

    @property
    def a_model(self) -> str:
        return f"{'an' if self.model[0] in 'aeiou' else 'a'} {self.model}"


CLASSIFIER = Kind("image-classification", IMAGE_CLASSIFICATION, "image classifier")
BACKBONE = Kind("image-feature-extraction", "image feature extraction", "backbone of images")
KINDS = {
    kind.pipeline_tag: kind
    for kind in (
        CLASSIFIER,
        Kind("image-segmentation", "semantic segmentation", "model for semantic segmentation"),
        Kind("zero-shot-image-classification", ZERO_SHOT, "model for zero-shot image classification"),
        Kind("object-detection", "object detection", "object detector"),
        Kind("depth-estimation", "depth estimation", "model for depth estimation"),
        BACKBONE,
    )
}
"""By the task's name on the Hub."""
PRETRAINING = ("masked image modeling", "causal image modeling", "pre-training")
"""Tasks that train backbones without labels: their heads may be dropped."""


def remedy(kind: Kind) -> str:
    """What to do about a checkpoint of another task."""
    others = ", ".join(f"{each.words} (--task {each.pipeline_tag})" for each in KINDS.values() if each is not kind)
    if kind is BACKBONE:
        return f"Choose a backbone without a head. Other tasks: {others}."
    choose = f"Choose a checkpoint that was fine-tuned for {kind.words}"
    if kind is CLASSIFIER:
        choose += ", or a backbone without a head, which gets a new classifier"
    return f"{choose}. Other tasks: {others}."


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


def kind_of(config_dict: dict[str, Any]) -> Kind:
    """The kind of model that a config.json names; a classifier if it names none that is known."""
    words = checkpoint_tasks(config_dict).values()
    return next((kind for kind in KINDS.values() if kind.words in words), CLASSIFIER)


def check_task(name: str, config_dict: dict[str, Any], kind: Kind = CLASSIFIER) -> None:
    """
    Refuses a checkpoint whose config.json names another task.

    Args:
        kind ([`Kind`], *optional*): what is wanted. A classifier by default.
    """
    tasks = checkpoint_tasks(config_dict)
    accepted = (None, kind.words, *(PRETRAINING if kind in (CLASSIFIER, BACKBONE) else ()))
    others = [each for each, task in tasks.items() if task not in accepted]
    if others and kind.words not in tasks.values():
        described = _described(one_line(others[0]), tasks[others[0]], kind)
        raise SMDError(f"'{name}' is a checkpoint for {described}. {remedy(kind)}")


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


def check_kind(model: nn.Module, kind: Kind = CLASSIFIER) -> None:
    """Refuses a model in memory whose class is for another task."""
    cls = type(model)
    if not isinstance(model, PreTrainedModel) or not cls.__module__.startswith("transformers."):
        return
    task = task_of(cls.__name__)
    if task not in (None, kind.words):
        raise SMDError(f"The model is for {_described(cls.__name__, task, kind)}. {remedy(kind)}")
    if kind is BACKBONE:
        return
    if task is None and type(model.config) in MODEL_MAPPING and MODEL_MAPPING[type(model.config)] is cls:
        if kind is not CLASSIFIER:
            raise SMDError(
                f"The model is a {cls.__name__}, a backbone without a head for {kind.words}. Expected {kind.a_model}: train a "
                "head first."
            )
        raise SMDError(
            f"The model is a {cls.__name__}, a backbone without a classifier. Expected an image classifier: save the model "
            "with `save_pretrained` and pass the folder's name instead, and it gets a new classifier."
        )


def _described(architecture: str, task: str | None, kind: Kind) -> str:
    if task == ZERO_SHOT and kind is CLASSIFIER:
        return f"{task} ({architecture}): it compares images with texts, and has no classifier of images"
    return f"{one_line(str(task))} ({architecture}), not {kind.a_model}"
