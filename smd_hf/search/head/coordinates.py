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
        axes (`numpy.ndarray`): float64, orthonormal, of shape `(num_features, num_axes)`, the axis of the greatest variance first. There
            are as many as features, or, with fewer images, one more than images: these span the features and their mean.
        variances (`numpy.ndarray`): float64, of shape `(num_axes,)`, along the axes.
        scale (`float`): the mean squared length of the features; 1 if all are zero.
    """

    def __init__(self, features: np.ndarray):
        count, width = features.shape
        self.mean = features.mean(0, dtype=np.float64)
        basis = None
        if count + 1 < width:
            # No fit leaves the span of the features and their mean. With few images, axes of all else would take most of the time.
            basis = torch.linalg.qr(torch.from_numpy(np.vstack([self.mean, features - self.mean]).T)).Q
        size = width if basis is None else basis.shape[1]
        second = torch.zeros((size, size), dtype=torch.float64)
        for rows in chunks(count, width):
            part = torch.from_numpy(features[rows] - self.mean)
            part = part if basis is None else part @ basis
            second += part.T @ part
        variances, axes = np.linalg.eigh(second.numpy() / count)
        self.variances = np.maximum(variances[::-1], 0.0)
        self.axes = axes[:, ::-1].copy() if basis is None else basis.numpy() @ axes[:, ::-1]
        scale = float(self.variances.sum() + self.mean @ self.mean)
        self.scale = scale if scale > 0 else 1.0

    def of(self, features: np.ndarray) -> torch.Tensor:
        """Features `(n, num_features)` in these coordinates, centred: float32, of shape `(n, num_axes)`."""
        axes = torch.from_numpy(self.axes).float()
        found = torch.empty((len(features), axes.shape[1]), dtype=torch.float32)
        for rows in chunks(*features.shape):
            found[rows] = torch.from_numpy((features[rows] - self.mean).astype(np.float32)) @ axes
        return found
