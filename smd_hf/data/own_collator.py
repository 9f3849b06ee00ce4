"""Rows that the user's own collator reads: its output counts, and labels are looked up only where that is cheap."""

from collections.abc import Callable, Mapping
from typing import Any

import datasets
import numpy as np
import torch
from transformers import DefaultDataCollator, default_data_collator

from ..errors import SMDError
from .image_checks import Rows
from .labels import label_values
from .rows import find_label_column


def sees_all_columns(data_collator: Callable | None) -> bool:
    """Whether a collator chooses columns itself: a user's does, those of transformers do not."""
    standard = data_collator is default_data_collator or isinstance(data_collator, DefaultDataCollator)
    return data_collator is not None and not standard


def cheap_labels(dataset: Any, label_column_name: str | None = None) -> tuple[str, np.ndarray] | None:
    """
    The label column and its values, if they can be read without decoding images: stored as plain values, or rows in memory.

    Returns:
        `tuple` or `None`: the column's name and the labels, of shape `(n,)`; `None` if there is no such column or it
        holds anything but one integer or name for each image.
    """
    stored = dataset
    while isinstance(stored, torch.utils.data.Subset | Rows):
        stored = stored.dataset
    if not isinstance(stored, datasets.Dataset | list | tuple):
        return None
    try:
        column = find_label_column(dataset, label_column_name)
        plain = datasets.ClassLabel | datasets.Value
        if isinstance(stored, datasets.Dataset) and not isinstance(stored.features.get(column), plain):
            return None
        return column, label_values(dataset, column)
    except (SMDError, LookupError, TypeError):
        return None


def check_collated(collator: Callable, dataset: Any, num_labels: int, what: str) -> None:
    """Collates the first row, and refuses what cannot be scored."""
    batch = collator([dataset[0]])
    of = f"From the first row of {what}, the data_collator ({getattr(collator, '__name__', type(collator).__name__)}) makes"
    if not isinstance(batch, Mapping):
        raise SMDError(f"{of} a {type(batch).__name__}; expected a dict of tensors with 'pixel_values' and 'labels'.")
    labels = batch.get("labels")
    if labels is None:
        raise SMDError(
            f"{of} {', '.join(map(str, batch)) or 'nothing'}, without 'labels'; expected the class of each image there, int64, of "
            "shape (images,). Return it under this name."
        )
    fits = isinstance(labels, torch.Tensor) and labels.dtype == torch.int64 and labels.shape == (1,)
    if not fits:
        kind = (
            f"{labels.dtype} of shape {tuple(labels.shape)}"
            if isinstance(labels, torch.Tensor)
            else repr(type(labels))
        )
        raise SMDError(
            f"{of} labels of type {kind}; expected one class for each image, int64, of shape (images,). Return a tensor of class "
            "numbers: labels.long(), and labels.argmax(-1) of one-hot or mixed labels."
        )
    if not 0 <= int(labels) < num_labels:
        raise SMDError(
            f"{of} the label {int(labels)}, but the model has {num_labels} classes (0 to {num_labels - 1}). Map the labels to the "
            "model's classes (model.config.label2id) in the data_collator."
        )
