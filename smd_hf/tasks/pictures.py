"""What a model predicts for an image, in a form that can be drawn beside the image: classes, depths or boxes."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch


@dataclass(frozen=True)
class ClassMap:
    """
    A class for each pixel.

    Args:
        classes (`numpy.ndarray`): int64, of shape `(height, width)`; -1 for pixels without a label.
    """

    classes: np.ndarray


@dataclass(frozen=True)
class DepthMap:
    """
    A number for each pixel: a depth, or an inverse depth.

    Args:
        values (`numpy.ndarray`): floats of shape `(height, width)`; NaN where none is known.
        limits (tuple of two `float`, *optional*): the range of the colors. By default that of the values, for depths without a unit.
    """

    values: np.ndarray
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Boxes:
    """
    Objects of an image.

    Args:
        corners (`numpy.ndarray`): left, top, right and bottom as shares of the image, of shape `(n, 4)`.
        classes (`numpy.ndarray`): int64, of shape `(n,)`.
        scores (`numpy.ndarray`, *optional*): confidences of predicted boxes, of shape `(n,)`.
    """

    corners: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None


Picture = ClassMap | DepthMap | Boxes


@runtime_checkable
class Pictured(Protocol):
    """A task whose predictions can be drawn."""

    def picture(self, prediction: torch.Tensor, labels: torch.Tensor) -> tuple[Picture, Picture]:
        """
        The truth and the prediction for one image.

        Args:
            prediction (`torch.Tensor`): as [`~smd_hf.scoring.reading.Reading.prediction`] gives it, for a batch of one image.
            labels (`torch.Tensor`): of that batch.
        """
        ...
