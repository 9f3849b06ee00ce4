"""From images with depth maps to batches of model inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from ..errors import SMDError
from .images import is_processed, to_image
from .rows import ImageCollator

DEPTH_COLUMNS = ("depth_map", "depth", "label", "labels", "depths", "depth_maps")
"""Usual names of the column of depth maps on the Hub."""

OUTSIDE = -1.0
"""In a batch of depth maps: beyond the edge of an image that is smaller than another one."""


@dataclass(eq=False)
class DepthCollator(ImageCollator):
    """
    Rows as a batch: the model's inputs, and `"labels"`, the depth maps: float32, of shape `(batch, height, width)`.

    Maps keep their size, because predictions are brought to it. In labels, 0 is an unknown depth, and smaller maps have
    `OUTSIDE` on the right and at the bottom.

    Args:
        label_column (`str`): the column of depth maps. A depth map is an image of one channel, or an array.
        scale (`float`, *optional*, defaults to 1): what maps are multiplied by: 0.001 for millimeters.
    """

    label_column: str = ""
    scale: float = 1.0

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        maps = [as_depth_map(row[self.label_column]).astype(np.float32) * np.float32(self.scale) for row in rows]
        height, width = (max(each.shape[axis] for each in maps) for axis in (0, 1))
        labels = np.full((len(maps), height, width), OUTSIDE, dtype=np.float32)
        for label, depth in zip(labels, maps):
            label[: depth.shape[0], : depth.shape[1]] = np.where(is_known(depth), depth, 0)
        return {**self.inputs(rows), "labels": torch.from_numpy(labels)}

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """What is wrong with the depth map of a row, as a sentence; `None` if nothing is."""
        try:
            depth = as_depth_map(row[self.label_column])
        except SMDError as error:
            return str(error)
        if not is_processed(row.get("pixel_values")):
            image = to_image(row[self.image_column], self.channels)
            if depth.shape != (image.height, image.width):
                return (
                    f"Its depth map has {depth.shape[1]} x {depth.shape[0]} pixels, and its image {image.width} x {image.height}. "
                    "Give a map of the image's size."
                )
        if (depth < 0).any():
            return (
                f"Its depth map holds the depth {depth[depth < 0].min():g}; expected positive numbers, and 0, NaN or infinity for "
                "pixels whose depth is not known."
            )
        if not is_known(depth).any():
            return "Its depth map has no pixel whose depth is known: all are 0, NaN or infinite."
        return None


def is_known(depth: Any) -> Any:
    """Which depths are known: the positive, finite ones."""
    return (depth > 0) & (depth < float("inf"))


def as_depth_map(value: Any) -> np.ndarray:
    """A depth map of shape `(height, width)`. Raises [`SMDError`] for anything else."""
    if value is None:
        raise SMDError("Its depth map is missing.")
    if isinstance(value, Mapping):
        value = datasets.Image().decode_example({"path": value.get("path"), "bytes": value.get("bytes")})
    mode = getattr(value, "mode", None)
    try:
        depth = np.asarray(value)
    except ValueError:  # a ragged list
        depth = np.empty(0, dtype=object)
    if depth.ndim == 3 and 1 in (depth.shape[0], depth.shape[-1]):
        depth = depth[0] if depth.shape[0] == 1 else depth[..., 0]
    if depth.ndim != 2 or depth.dtype.kind not in "iuf" or mode == "P":
        found = f"an image of mode {mode}" if mode else f"an array of shape {depth.shape} and type {depth.dtype}"
        raise SMDError(f"Its depth map is {found}; expected one channel of numbers, a depth for each pixel.")
    return depth
