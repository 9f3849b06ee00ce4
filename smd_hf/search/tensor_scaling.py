"""
Children that scale whole tensors instead of adding noise to coordinates.

On images from another source, a pretrained model may be wrong in something coarse: a layer responds too strongly, or the
logits are overconfident. One number per tensor corrects that. Noise on single coordinates would find it only by chance.
"""

import numpy as np

from .subspaces import Decomposition


class WithScaling(Decomposition):
    """
    Puts directions that multiply whole tensors by a number before the directions of another decomposition.

    Each of them scales one tensor. If there are more tensors, each scales a run of neighbouring tensors, and the runs differ
    by at most one tensor in length. The sign of each tensor is drawn anew in every generation.

    Args:
        scaling (`int`): number of directions that scale, from 1 to the number of tensors.
    """

    def __init__(self, noise: Decomposition, scaling: int):
        self.noise = noise
        self.scaling = scaling
        self.name = noise.name
        runs = np.array_split(np.arange(len(noise.space.sizes)), scaling)
        self._owner = [number for number, run in enumerate(runs) for _ in run]
        super().__init__(noise.space, scaling + noise.directions, seed=noise.seed, static=noise.static)

    def own_density(self) -> float:
        return self.noise.density

    def scales(self, direction: int) -> bool:
        return direction < self.scaling

    def indices(self, generation: int, direction: int, tensor: int) -> np.ndarray | None:
        if not self.scales(direction):
            return self.noise.indices(generation, direction - self.scaling, tensor)
        return None if self._owner[tensor] == direction else np.empty(0, dtype=np.int64)

    def count_in(self, generation: int, direction: int, tensor: int) -> int:
        if not self.scales(direction):
            return self.noise.count_in(generation, direction - self.scaling, tensor)
        return super().count_in(generation, direction, tensor)

    def noise_key(self, direction: int) -> int | None:
        return self.noise.noise_key(direction - self.scaling)


def scaling_directions(share: float, directions: int, tensors: int) -> int:
    """
    The number of directions that scale.

    Args:
        share (`float`): share of the directions that should scale, in [0, 1).
        directions (`int`): number of all directions. At least one adds noise.
        tensors (`int`): number of tensors. No two directions scale the same one.
    """
    return min(round(share * directions), directions - 1, tensors)
