"""Which task a run serves: as the user says, else as the checkpoint says."""

import os
from contextlib import suppress
from typing import Any

from transformers import PreTrainedModel

from ..arguments.choices import TaskName, names
from ..errors import SMDError
from ..models.declared import declared_kind
from ..models.load import read_config
from ..models.tasks import CLASSIFIER, KINDS, task_of
from .classification import ImageClassification
from .depth_estimation import DepthEstimation
from .detection import ObjectDetection
from .feature_extraction import ImageFeatureExtraction
from .multi_label import MultiLabelClassification, is_multi_label
from .protocol import Task
from .segmentation import SemanticSegmentation
from .zero_shot import ZeroShotImageClassification

TASKS: dict[str, type[Any]] = {
    task.kind.pipeline_tag: task
    for task in (
        ImageClassification,
        SemanticSegmentation,
        ObjectDetection,
        ZeroShotImageClassification,
        DepthEstimation,
        ImageFeatureExtraction,
    )
}
"""By their names on the Hub."""

assert set(TASKS) == set(names(TaskName)) == set(KINDS)


def find_task(name: str | None, model: PreTrainedModel | str | os.PathLike, loading: dict[str, Any]) -> Task:
    """
    The task of a run.

    Args:
        name (`str`, *optional*): as the user gives it. By default, the model decides.
        loading (`dict`): how a model is loaded that is given by name.
    """
    config: Any = {}
    if isinstance(model, PreTrainedModel):
        words, config = task_of(type(model).__name__), model.config
        found = next((tag for tag, kind in KINDS.items() if kind.words == words), CLASSIFIER.pipeline_tag)
    else:
        source, found = {key: loading.get(key) for key in ("revision", "token", "cache_dir")}, CLASSIFIER.pipeline_tag
        with suppress(SMDError):  # loading the model says more, and a delta has no configuration
            config = read_config(str(model), source)
            found = found if name else declared_kind(str(model), config, source).pipeline_tag
    task = TASKS[name or found]
    return MultiLabelClassification() if task is ImageClassification and is_multi_label(config) else task()


def is_classification(task: Task) -> bool:
    return isinstance(task, ImageClassification)
