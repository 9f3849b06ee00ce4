"""Which task a run serves: as the user says, else as the checkpoint says."""

import os
from typing import Any

from transformers import PreTrainedModel

from ..arguments.choices import TaskName, names
from ..errors import SMDError
from ..models.load import read_config
from ..models.tasks import KINDS, kind_of, task_of
from .classification import ImageClassification
from .detection import ObjectDetection
from .protocol import Task
from .segmentation import SemanticSegmentation

TASKS: dict[str, type[Any]] = {
    task.kind.pipeline_tag: task for task in (ImageClassification, SemanticSegmentation, ObjectDetection)
}
"""By their names on the Hub."""

assert set(TASKS) == set(names(TaskName)) == set(KINDS)


def find_task(name: str | None, model: PreTrainedModel | str | os.PathLike, loading: dict[str, Any]) -> Task:
    """
    The task of a run.

    Args:
        name (`str`, *optional*): as the user gives it. By default, the model decides.
        model ([`~transformers.PreTrainedModel`], `str` or `os.PathLike`): the parent, or its name.
        loading (`dict`): how a model is loaded that is given by name.
    """
    if name is not None:
        return TASKS[name]()
    if isinstance(model, PreTrainedModel):
        words = task_of(type(model).__name__)
        tag = next((tag for tag, kind in KINDS.items() if kind.words == words), ImageClassification.kind.pipeline_tag)
        return TASKS[tag]()
    try:
        config = read_config(str(model), {key: loading.get(key) for key in ("revision", "token", "cache_dir")})
    except SMDError:  # loading the model says more, and a delta has no configuration
        return ImageClassification()
    return TASKS[kind_of(config).pipeline_tag]()


def is_classification(task: Task) -> bool:
    return isinstance(task, ImageClassification)
