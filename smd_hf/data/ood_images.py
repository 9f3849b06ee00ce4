"""Images of another distribution than the model's: dealt out to fitness, selection and test, without labels."""

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
    The second data set in three disjoint parts, for the same purposes as those of the first.

    Args:
        fitness, selection, test ([`ImageBatches`]): score children, choose among finished candidates, and are reported on.
            `selection` is `fitness` where the first data set has no selection split.
    """

    fitness: ImageBatches
    selection: ImageBatches
    test: ImageBatches

    @property
    def sizes(self) -> dict[str, int]:
        """How many images each part has; none for selection where the fitness images choose."""
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
    Deals a data set out into parts of equal size, by a random order that the seed decides.

    Args:
        make_batches (`Callable`): from data set, rows and share of the cache to batches.
        selects (`bool`): whether there is a selection part; else there are two.
        seed (`int`): decides which image goes where.
    """
    count = 3 if selects else 2
    if len(dataset) < count:
        raise SMDError(
            f"ood_dataset has {len(dataset)} images, but it is dealt out to {count} parts: for fitness, selection and test. Give "
            f"{count} at the least, and better some hundreds."
        )
    order = keyed_generator("out of distribution", seed).permutation(len(dataset))
    fitness, *selection, test = np.array_split(order, count)
    kept = make_batches(dataset, fitness, 1 / count)
    return OODImages(
        kept,
        make_batches(dataset, selection[0], 1 / count) if selection else kept,
        # As those of the first data set: read for the parent, and once more at the end.
        make_batches(dataset, test, 0.0),
    )


def ood_collator(collator: Callable, dataset: Any, image_column_name: str | None) -> tuple[Callable, str | None]:
    """
    What makes batches of a data set without labels, and its image column where it has images.

    Args:
        image_column_name (`str`, *optional*): of the first data set; taken where the second has it.
    """
    if len(dataset) == 0:
        raise SMDError("ood_dataset is empty. Give images that are not of the model's classes.")
    if not isinstance(collator, ImageCollator):
        return Unlabelled(collator), None
    column = find_image_column(dataset, image_column_name)
    return Unlabelled(replace(collator, image_column=column, label_column=None)), column


@dataclass(frozen=True)
class Unlabelled:
    """
    Batches whose labels, 0 for all, are of no meaning.

    Raises:
        `SMDError`: if it makes no tensors of the rows.
    """

    collator: Callable

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        columns = {name: value for name, value in self.collator(rows).items() if name != "labels"}
        return columns | {"labels": torch.zeros(len(rows), dtype=torch.int64)}
