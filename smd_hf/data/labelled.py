"""From images with labels that need not be a model's classes to batches of model inputs."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch

from .labels import sorted_names
from .rows import ImageCollator


@dataclass(eq=False)
class LabelledCollator:
    """
    Rows as a batch: the model's inputs, and `"labels"`: int64, of shape `(batch,)`. Equal labels have equal numbers.

    Args:
        image_column, label_column (`str`): the columns. A label is a number or a name.
        channels (`int`, *optional*, defaults to 3), input_names (collection of `str`, *optional*): as for
            [`~smd_hf.data.rows.ImageCollator`].
        noise (`int`, *optional*): the number of patches, for a model that masks patches in the order of a noise: they keep theirs.
    """

    processor: Any
    image_column: str
    label_column: str
    names: Iterable[str] = ()
    channels: int = 3
    input_names: Collection[str] | None = None
    noise: int | None = None
    _images: ImageCollator = field(init=False)

    def __post_init__(self) -> None:
        self._images = ImageCollator(
            self.processor, self.image_column, channels=self.channels, input_names=self.input_names
        )
        self._index = {name: place for place, name in enumerate(self.names)}

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self._images.inputs(rows)
        if self.noise is not None:
            batch["noise"] = torch.arange(self.noise, dtype=torch.float32).repeat(len(rows), 1)
        values = (row[self.label_column] for row in rows)
        labels = [self._index[value] if isinstance(value, str) else int(value) for value in values]
        return {**batch, "labels": torch.tensor(labels, dtype=torch.int64)}

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
