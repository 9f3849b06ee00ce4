"""From images with segmentation masks to batches of model inputs."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ..errors import SMDError
from .images import to_image
from .rows import ImageCollator

MASK_COLUMNS = ("label", "annotation", "mask", "segmentation_mask", "labels", "annotations", "semantic_segmentation")
"""Usual names of the column of masks, as in transformers' example script and on the Hub."""


@dataclass(eq=False)
class MaskCollator(ImageCollator):
    """
    Rows as a batch: the model's inputs, and `"labels"`, the masks: int64, of shape `(batch, height, width)`.

    The image processor brings images and masks to one size. Where it takes no masks, they are resized to its images by the
    nearest pixel.

    Args:
        label_column (`str`): the column of masks. A mask is an image of one channel, or an array, of classes.
        classes (`int`): of the model.
        ignore_index (`int`, *optional*, defaults to 255): the value of pixels that do not count.
    """

    label_column: str = ""
    classes: int = 0
    ignore_index: int = 255

    @cached_property
    def _takes_masks(self) -> bool:
        return "segmentation_maps" in inspect.signature(self.processor.preprocess).parameters

    @property
    def _reduces(self) -> bool:
        """Whether 0 is no class, and class k of the masks is class k - 1 of the model."""
        return bool(getattr(self.processor, "do_reduce_labels", False))

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        masks = [as_mask(row[self.label_column]) for row in rows]
        if self._takes_masks:
            batch = self.inputs(rows, segmentation_maps=masks)
            labels = batch["labels"]
            batch["labels"] = (labels if isinstance(labels, torch.Tensor) else torch.stack(list(labels))).long()
            return batch
        batch = self.inputs(rows)
        size = batch["pixel_values"].shape[-2:]
        tensors = (torch.from_numpy(mask.astype(np.float32))[None, None] for mask in masks)
        resized = torch.cat([F.interpolate(mask, size, mode="nearest-exact")[:, 0] for mask in tensors]).long()
        return {**batch, "labels": resized}

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """What is wrong with the mask of a row, as a sentence; `None` if nothing is."""
        try:
            mask = as_mask(row[self.label_column])
        except SMDError as error:
            return str(error)
        image = to_image(row[self.image_column], self.channels)
        if mask.shape != (image.height, image.width):
            return (
                f"Its mask has {mask.shape[1]} x {mask.shape[0]} pixels, and its image {image.width} x {image.height}. Give a mask "
                "of the image's size."
            )
        first, classes = (1, self.classes + 1) if self._reduces else (0, self.classes)
        allowed = {self.ignore_index} | ({0} if self._reduces else set())
        wrong = [value for value in np.unique(mask).tolist() if not first <= value < classes and value not in allowed]
        if wrong:
            hint = "" if self._reduces else " If 0 is the background and no class of the model, set do_reduce_labels."
            return (
                f"Its mask holds the value {wrong[0]}; the model has {self.classes} classes, {first} to {classes - 1} in a mask, and "
                f"{self.ignore_index} stands for pixels without a label.{hint}"
            )
        return None


def as_mask(value: Any) -> np.ndarray:
    """A mask of shape `(height, width)`, of integers. Raises [`SMDError`] for anything else."""
    if value is None:
        raise SMDError("Its mask is missing.")
    if isinstance(value, Mapping):
        value = datasets.Image().decode_example({"path": value.get("path"), "bytes": value.get("bytes")})
    kind = value.mode if isinstance(value, Image.Image) else None
    mask = np.array(value)
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer):
        found = f"an image of mode {kind}" if kind else f"an array of shape {mask.shape} and type {mask.dtype}"
        raise SMDError(f"Its mask is {found}; expected one channel of integers, a class for each pixel.")
    return mask
