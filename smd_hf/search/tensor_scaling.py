"""
Children that scale whole tensors, beside those that add noise to coordinates.

A pretrained model that meets images from another source may be wrong in something as coarse as how strongly a layer answers,
or how sure its logits are. One number a tensor reaches that, where noise on single coordinates would have to find it by
chance.
"""

import numpy as np

from .subspaces import Decomposition


class WithScaling(Decomposition):
    """
    The directions of another decomposition, and before them some that multiply whole tensors by a number.

    Each of these has one tensor. Where there are more tensors than such directions, they have runs of neighbouring tensors,
    equally many or one more each, whose signs are drawn anew in every generation.

    Args:
        noise ([`Decomposition`]): whose directions add noise.
        scaling (`int`): how many directions scale; from 1 to as many as there are tensors.
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
    How many of the directions scale.

    Args:
        share (`float`): of the directions, in [0, 1).
        directions (`int`): of both kinds; one at the least adds noise.
        tensors (`int`): how many there are to scale; no two directions have the same.
    """
    return min(round(share * directions), directions - 1, tensors)
