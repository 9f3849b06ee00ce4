"""Out-of-distribution images, without labels, split into fitness, selection and test."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..errors import SMDError
from ..keyed_random import keyed_generator
from .batches import ImageBatches
from .rows import ImageCollator, find_image_column


@dataclass(frozen=True)
class OODImages:
    """
    Out-of-distribution images in three disjoint parts, for the same purposes as the parts of the first data set.

    Args:
        fitness, selection, test ([`ImageBatches`]): score children, choose among finished candidates, and are reported on.
            `selection` is `fitness` where the first data set has no selection split.
    """

    fitness: ImageBatches
    selection: ImageBatches
    test: ImageBatches

    @property
    def sizes(self) -> dict[str, int]:
        """Images of each part; 0 for selection if the fitness images also select."""
        own = self.selection is not self.fitness
        return {
            "fitness": self.fitness.num_images,
            "selection": self.selection.num_images if own else 0,
            "test": self.test.num_images,
        }


def ood_images(
    dataset: Any, make_batches: Callable[[Any, np.ndarray, float], ImageBatches], selects: bool, seed: int
) -> OODImages:
    """
    Splits a data set at random into parts of equal size.

    Args:
        make_batches (`Callable`): from data set, rows and share of the cache to batches.
        selects (`bool`): whether there is a selection part; else there are two.
        seed (`int`): decides which image goes where.
    """
    count = 3 if selects else 2
    if len(dataset) < count:
        raise SMDError(
            f"ood_dataset has {len(dataset)} images, but it is split into {count} parts, for fitness, selection and test. Give at "
            f"least {count}, better a few hundred."
        )
    order = keyed_generator("out of distribution", seed).permutation(len(dataset))
    fitness, *selection, test = np.array_split(order, count)
    kept = make_batches(dataset, fitness, 1 / count)
    return OODImages(
        kept,
        make_batches(dataset, selection[0], 1 / count) if selection else kept,
        # Like the test images, these are read for the parent and again at the end.
        make_batches(dataset, test, 0.0),
    )


def ood_collator(collator: Callable, dataset: Any, image_column_name: str | None) -> tuple[Callable, str | None]:
    """
    The collator for a data set without labels, and its image column if the collator reads images.

    Args:
        image_column_name (`str`, *optional*): of the first data set; taken where the second has it.
    """
    if len(dataset) == 0:
        raise SMDError("ood_dataset is empty. Give images that are not of the model's classes.")
    return unlabelled_collator(collator, dataset, image_column_name)


def unlabelled_collator(
    collator: Callable, dataset: Any, image_column_name: str | None, label: int = 0
) -> tuple[Callable, str | None]:
    """
    A collator that does not look for labels in a data set, and its image column if the collator reads images.

    Args:
        image_column_name (`str`, *optional*): taken where the data set has it.
        label (`int`, *optional*, defaults to 0): the label of all images.
    """
    if not isinstance(collator, ImageCollator):
        return Unlabelled(collator, label), None
    column = find_image_column(dataset, image_column_name)
    return Unlabelled(replace(collator, image_column=column, label_column=None), label), column


@dataclass(frozen=True)
class Unlabelled:
    """
    A collator for rows without labels.

    Args:
        label (`int`, *optional*, defaults to 0): the label of all images, which has no meaning.

    Raises:
        `SMDError`: if it makes no tensors of the rows.
    """

    collator: Callable
    label: int = 0

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        columns = {name: value for name, value in self.collator(rows).items() if name != "labels"}
        return columns | {"labels": torch.full((len(rows),), self.label, dtype=torch.int64)}
