"""From images with labels that need not be a model's classes to batches of model inputs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from .labels import sorted_names
from .rows import ImageCollator


@dataclass(eq=False)
class LabelledCollator(ImageCollator):
    """
    Rows as a batch: the model's inputs, and `"labels"`: int64, of shape `(batch,)`. Equal labels have equal numbers.

    Args:
        noise (`int`, *optional*): the number of patches, for a model that masks patches in the order of a noise: they keep theirs.
    """

    label_column: str = ""
    noise: int | None = None

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        if self.noise is not None:
            batch["noise"] = torch.arange(self.noise, dtype=torch.float32).repeat(len(rows), 1)
        return batch

    def _label(self, value: Any) -> int:
        return self._index[value] if isinstance(value, str) else int(value)

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """What is wrong with the label of a row, as a sentence; `None` if nothing is."""
        value = row.get(self.label_column)
        if value is None:
            return "Its label is missing."
        if isinstance(value, str) or (isinstance(value, (int, np.integer)) and not isinstance(value, bool)):
            return None
        return f"Its label is {value!r}; expected one number or name, the same for images that belong together."


def labels_of(dataset: Any, column: str) -> list[Any]:
    """The labels of a data set as they are, whatever they are."""
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] is None and column in dataset.column_names:
        return list(dataset[column])
    return [dataset[row].get(column) for row in range(len(dataset))]


def names_of(splits: Iterable[Any], column: str) -> list[str]:
    """All labels of the splits that are names, sorted."""
    return sorted_names(
        list({value for split in splits for value in labels_of(split, column) if isinstance(value, str)})
    )
