"""From images with any number of labels each to batches of model inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from ..errors import SMDError
from ..messages import did_you_mean
from .labels import some
from .rows import ImageCollator

LABEL_SET_COLUMNS = ("labels", "label", "classes", "tags", "categories")
"""Usual names of the column of lists."""


@dataclass(eq=False)
class LabelSetCollator(ImageCollator):
    """
    Rows as a batch: the model's inputs, and `"labels"`, float32 of shape `(batch, labels)`: 1 for a label that is there, else 0.

    Args:
        names (sequence of `str`): the model's labels, in order.
        columns (sequence of `str`): one column of lists of labels, or the columns of 0 and 1, one a label.
        classes (sequence of `int`, *optional*): the model's label of each label of the data set, where these are numbers: of a
            `ClassLabel`, or of each of several columns. By default numbers are the model's.
    """

    names: Sequence[str] = ()
    columns: Sequence[str] = ()
    classes: Sequence[int] | None = None
    are_columns: bool = False

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        batch = self.inputs(rows)
        targets = torch.zeros(len(rows), len(self.names))
        for place, row in enumerate(rows):
            targets[place, self._labels(row)] = 1.0
        return {**batch, "labels": targets}

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """What is wrong with the labels of a row, as a sentence; `None` if nothing is."""
        try:
            self._labels(row)
        except SMDError as error:
            return str(error)
        return None

    def _labels(self, row: Mapping[str, Any]) -> list[int]:
        """The model's labels of a row."""
        if self.are_columns:
            return [place for name, place in zip(self.columns, self.classes or ()) if _is_set(name, row[name])]
        value = row[self.columns[0]]
        if isinstance(value, np.ndarray | torch.Tensor):
            value = value.tolist()
        if not isinstance(value, list | tuple):
            raise SMDError(
                f"Its {self.columns[0]} are {value!r:.80}; expected a list of labels, and an empty one for an image that has none."
            )
        kinds = {type(each).__name__ for each in value}
        if len(kinds) > 1 or kinds - {"int", "str"}:
            raise SMDError(
                f"Its {self.columns[0]} are {value!r:.80}, which mixes or holds {', '.join(sorted(kinds))}; expected a list of names, or "
                "one of numbers."
            )
        return [self._class(each) for each in value]

    def _class(self, value: int | str) -> int:
        if isinstance(value, str):
            if value not in self._index:
                raise SMDError(
                    f"It has the label {value!r}, which is none of the model's {len(self.names)} labels ({some(self.names)})."
                    f"{did_you_mean(value, self.names)}"
                )
            return self._index[value]
        count = len(self.names if self.classes is None else self.classes)
        if not 0 <= value < count:
            raise SMDError(f"It has the label {value}; there are {count} labels, 0 to {count - 1}.")
        return value if self.classes is None else self.classes[value]


def _is_set(name: str, value: Any) -> bool:
    if isinstance(value, str) or value not in (0, 1):
        raise SMDError(f"Its column {name} holds {value!r:.40}; expected 1 if the image has this label, and 0 if not.")
    return bool(value)


def declared_names(dataset: Any, column: str) -> list[str] | None:
    """The names of the numbers in a column of lists, where it is a sequence of `ClassLabel`."""
    feature = dataset.features.get(column) if isinstance(dataset, datasets.Dataset) else None
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    inner = getattr(feature, "feature", feature)
    return list(inner.names) if isinstance(inner, datasets.ClassLabel) else None


def model_classes(names: Sequence[str], of_model: Sequence[str], what: str) -> list[int]:
    """
    The model's label of each label of the data set: by name, or in order if the model's labels have no names.

    Args:
        of_model (sequence of `str`): of the model, in order.

    Raises:
        `SMDError`: for a name that the model does not know.
    """
    index = {name: place for place, name in enumerate(of_model)}
    unknown = [name for name in names if name not in index]
    if not unknown:
        return [index[name] for name in names]
    if list(of_model) == [f"LABEL_{place}" for place in range(len(of_model))] and len(names) == len(of_model):
        return list(range(len(names)))
    raise SMDError(
        f"{what} {some(map(repr, unknown))} {'is' if len(unknown) == 1 else 'are'} none of the model's {len(of_model)} labels "
        f"({some(of_model)}).{did_you_mean(unknown[0], of_model)} Rename them as in the model's config.json (id2label), or choose a model "
        "that was trained with these labels."
    )
