"""A linear head as numbers."""

from dataclasses import dataclass

import numpy as np
import torch

CHUNK_NUMBERS = 2**22
"""How many features or logits are held in float64 at once."""


@dataclass(frozen=True)
class LinearHead:
    """
    A linear head.

    Args:
        weight (`numpy.ndarray`): float64, of shape `(num_labels, num_features)`.
        bias (`numpy.ndarray`, *optional*): float64, of shape `(num_labels,)`. `None` for a layer without one.
    """

    weight: np.ndarray
    bias: np.ndarray | None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Weight and, if there is one, bias, by their names in a layer."""
        return {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Logits of features `(n, num_features)`: float32, of shape `(n, num_labels)`."""
        weight = torch.from_numpy(self.weight)
        bias = 0.0 if self.bias is None else torch.from_numpy(self.bias)
        found = torch.empty((len(features), len(self.weight)), dtype=torch.float32)
        for rows in chunks(len(features), max(self.weight.shape)):
            found[rows] = torch.from_numpy(features[rows]).double() @ weight.T + bias
        return found.numpy()

    def scaled(self, factor: float) -> "LinearHead":
        """The head whose logits are `factor` times these."""
        return LinearHead(factor * self.weight, None if self.bias is None else factor * self.bias)


def chunks(num_images: int, width: int) -> list[slice]:
    """Slices of the images whose rows of so many numbers fit into memory in float64."""
    size = max(1, CHUNK_NUMBERS // max(width, 1))
    return [slice(start, start + size) for start in range(0, num_images, size)]
