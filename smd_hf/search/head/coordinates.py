"""Features in coordinates in which the curvature of a head's loss is nearly diagonal: centred, along their principal axes."""

import numpy as np
import torch

from .linear import chunks


class Coordinates:
    """
    Features along their principal axes.

    The logits of a head are the same in these coordinates: features @ W' + b = centred @ (W axes)' + (b + W mean).

    Args:
        features (`numpy.ndarray`): float32, of shape `(n, num_features)`.

    Attributes:
        mean (`numpy.ndarray`): float64, of shape `(num_features,)`.
        axes (`numpy.ndarray`): float64, orthogonal, of shape `(num_features, num_features)`, the axis of the greatest variance
            first.
        variances (`numpy.ndarray`): float64, of shape `(num_features,)`, along the axes.
        scale (`float`): the mean squared length of the features; 1 if all are zero.
    """

    def __init__(self, features: np.ndarray):
        count, width = features.shape
        self.mean = features.mean(0, dtype=np.float64)
        second = torch.zeros((width, width), dtype=torch.float64)
        for rows in chunks(count, width):
            part = torch.from_numpy(features[rows] - self.mean)
            second += part.T @ part
        variances, axes = np.linalg.eigh(second.numpy() / count)
        self.variances = np.maximum(variances[::-1], 0.0)
        self.axes = axes[:, ::-1].copy()
        scale = float(self.variances.sum() + self.mean @ self.mean)
        self.scale = scale if scale > 0 else 1.0

    def of(self, features: np.ndarray) -> torch.Tensor:
        """Features in these coordinates, centred: float32, of the shape of the features."""
        axes = torch.from_numpy(self.axes).float()
        found = torch.empty(features.shape, dtype=torch.float32)
        for rows in chunks(*features.shape):
            found[rows] = torch.from_numpy((features[rows] - self.mean).astype(np.float32)) @ axes
        return found
