"""
Subspaces: decides which child changes which coordinates.

A population of N children explores `directions` subspaces of the mutable coordinates (N, or N/2 if children come in mirrored
pairs). A decomposition gives each direction its coordinates, tensor by tensor, from keyed random numbers. It never holds an
array as large as the children times the parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import SMDError
from ..keyed_random import keyed_generator
from ..models.blocks import contiguous_runs
from .kept_arrays import KeptArrays

MIN_COST = 0.1
"""The lowest cost that counts: no block gets more than ten times as many children as the most expensive one."""


@dataclass(frozen=True)
class ParameterSpace:
    """
    The mutable parameters of a model, in a fixed order.

    Args:
        names (`tuple[str, ...]`): names in memory, from `model.named_parameters()`.
        keys (`tuple[str, ...]`): names in a saved checkpoint. They key the random numbers, because they do not change when a
            release of transformers renames modules.
        sizes (`tuple[int, ...]`): number of coordinates of each parameter.
        blocks (`tuple[int, ...]`): depth of each parameter's block, from 0.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    sizes: tuple[int, ...]
    blocks: tuple[int, ...]

    @property
    def total(self) -> int:
        """The number of mutable coordinates."""
        return sum(self.sizes)


class Decomposition(ABC):
    """
    Gives each direction its coordinates.

    Args:
        directions (`int`): number of subspaces, at least 1.
        density (`float`, *optional*): share of the mutable coordinates that a direction changes, in (0, 1].
        seed (`int`, *optional*, defaults to 0): keys the masks.
        static (`bool`, *optional*, defaults to `False`): the same masks in every generation.

    Raises:
        `SMDError`: if the decomposition does not support the density or the number of directions.
    """

    name: str
    """Its name in the arguments."""

    def __init__(
        self,
        space: ParameterSpace,
        directions: int,
        density: float | None = None,
        seed: int = 0,
        static: bool = False,
    ):
        self.space = space
        self.directions = directions
        self.seed = seed
        self.static = static
        self.density = self.check_density(density)
        self.offsets = np.concatenate([[0], np.cumsum(space.sizes)]).astype(np.int64)

    def check_density(self, density: float | None) -> float:
        """Returns the density to use. `None` stands for the decomposition's default. Raises [`SMDError`] if it cannot be used."""
        own = self.own_density()
        if density is not None and not np.isclose(density, own, rtol=1e-6):
            raise SMDError(
                f"density={density} does not fit decomposition='{self.name}': its children change a share of {own:.6g} of the "
                "coordinates. Leave density out, or choose decomposition='random', which supports any density."
            )
        return own

    @abstractmethod
    def own_density(self) -> float:
        """The decomposition's default density."""

    @abstractmethod
    def indices(self, generation: int, direction: int, tensor: int) -> np.ndarray | None:
        """
        The coordinates of one tensor that a direction changes.

        Args:
            generation (`int`), direction (`int`): count from 0.

        Returns:
            `numpy.ndarray` or `None`: sorted flat indices, int64, of shape `(k,)`, possibly empty; `None` for all.
        """

    def noise_key(self, direction: int) -> int | None:
        """
        The key of the dense noise that the direction takes its values from.

        Directions with the same key share one dense noise. `None`: the direction draws noise for its own coordinates only.
        """
        return None

    def scales(self, direction: int) -> bool:
        """Whether the direction multiplies its tensors by a number instead of adding noise."""
        return False

    def count(self, generation: int, direction: int) -> int:
        """The number of coordinates that the direction changes."""
        return sum(self.count_in(generation, direction, tensor) for tensor in range(len(self.space.sizes)))

    def count_in(self, generation: int, direction: int, tensor: int) -> int:
        """The number of coordinates of one tensor that the direction changes."""
        indices = self.indices(generation, direction, tensor)
        return self.space.sizes[tensor] if indices is None else len(indices)

    def mask_generation(self, generation: int) -> int:
        """The generation that keys the masks: always 0 if subspaces are static."""
        return 0 if self.static else generation


class Dense(Decomposition):
    """Every direction changes every coordinate, as in ordinary evolution strategies: the control."""

    name = "dense"

    def own_density(self) -> float:
        return 1.0

    def indices(self, generation: int, direction: int, tensor: int) -> None:
        return None


class Random(Decomposition):
    """An independent random mask for each direction, with an exact count over all tensors."""

    name = "random"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._last_counts: tuple[tuple[int, int], np.ndarray] | None = None

    def own_density(self) -> float:
        return 1 / 16

    def check_density(self, density: float | None) -> float:
        density = self.own_density() if density is None else density
        if round(density * self.space.total) < 1:
            raise SMDError(
                f"density={density} is too low: a child would change none of the {self.space.total} mutable coordinates. Raise "
                f"it to at least {1 / self.space.total:.2g}, or make more parameters mutable."
            )
        return density

    def counts(self, generation: int, direction: int) -> np.ndarray:
        """
        The number of coordinates of each tensor that the direction changes.

        Systematic sampling makes the counts add up to exactly round(density x total), and every coordinate equally likely.
        """
        key = (self.mask_generation(generation), direction)
        if self._last_counts is None or self._last_counts[0] != key:
            total = round(self.density * self.space.total)
            start = keyed_generator("count", self.seed, *key).random()
            ends = np.floor(self.offsets * (total / self.space.total) + start)
            ends[-1] = total
            self._last_counts = (key, np.diff(ends).astype(np.int64))
        return self._last_counts[1]

    def indices(self, generation: int, direction: int, tensor: int) -> np.ndarray | None:
        count, size = self.count_in(generation, direction, tensor), self.space.sizes[tensor]
        if count == size:
            return None
        generation = self.mask_generation(generation)
        generator = keyed_generator("mask", self.seed, generation, direction, self.space.keys[tensor])
        return np.sort(generator.choice(size, count, replace=False, shuffle=False))

    def count_in(self, generation: int, direction: int, tensor: int) -> int:
        return int(self.counts(generation, direction)[tensor])


class Cut(Decomposition):
    """
    Cuts each dense noise into `parts` disjoint masks that cover all coordinates.

    Coordinates are dealt out in random order, one after another through all tensors. The masks differ by at most one
    coordinate in size.
    """

    parts: int

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._orders = KeptArrays()

    def own_density(self) -> float:
        return 1 / self.parts

    def noise_key(self, direction: int) -> int:
        return direction // self.parts

    def indices(self, generation: int, direction: int, tensor: int) -> np.ndarray | None:
        if self.parts == 1:
            return None
        order = self._order(self.mask_generation(generation), direction // self.parts, tensor)
        return np.sort(order[self._first(direction, tensor) :: self.parts]).astype(np.int64)

    def count_in(self, generation: int, direction: int, tensor: int) -> int:
        return len(range(self._first(direction, tensor), self.space.sizes[tensor], self.parts))

    def _order(self, generation: int, cut: int, tensor: int) -> np.ndarray:
        """The order in which one tensor's coordinates are dealt, kept for the other parts of the same cut."""

        def make() -> np.ndarray:
            size = self.space.sizes[tensor]
            order = np.arange(size, dtype=np.int32 if size < 2**31 else np.int64)
            keyed_generator("mask", self.seed, generation, cut, self.space.keys[tensor]).shuffle(order)
            return order

        return self._orders.get((generation, cut), tensor, make)

    def _first(self, direction: int, tensor: int) -> int:
        """The first place in the order that the direction gets, after the coordinates of all earlier tensors were dealt."""
        return int((direction - self.offsets[tensor]) % self.parts)


class Partition(Cut):
    """Cuts one dense noise into as many masks as there are directions."""

    name = "partition"

    def __init__(self, space: ParameterSpace, directions: int, *args, **kwargs):
        if directions > space.total:
            raise SMDError(
                f"A partition gives each child at least one coordinate, but there are {directions} children and only "
                f"{space.total} mutable coordinates. Lower population_size or make more parameters mutable."
            )
        self.parts = directions
        super().__init__(space, directions, *args, **kwargs)


class Antirandom(Cut):
    """Directions come in pairs with one dense noise: a random half of the coordinates, and the other half."""

    name = "antirandom"
    parts = 2

    def __init__(self, space: ParameterSpace, directions: int, *args, **kwargs):
        if directions % 2:
            raise SMDError(
                f"decomposition='antirandom' makes children in pairs (a mask and its complement), but {directions} is an odd "
                "number of subspaces. Choose an even population_size (a multiple of four with mirrored=True)."
            )
        super().__init__(space, directions, *args, **kwargs)


class Blocks(Decomposition):
    """
    Disjoint in depth: each direction changes one contiguous run of blocks, all of its weights or a random share.

    With fewer directions than blocks, each direction has its own run, and the runs have about the same number of coordinates.
    With more directions than blocks, each block is a run, and directions are shared out evenly. If they do not divide evenly,
    the last runs get one more, because they are the cheapest to score. If costs are given, directions are shared out in
    inverse proportion to the cost instead, by systematic sampling in each generation. A run then gets its exact share over
    the generations, and in each generation less than one direction more or less.

    `density` is the share of the *run's* coordinates to change. It defaults to 1.

    Args:
        suffix_costs (sequence of `float`, *optional*): for each block of the space, the cost of a pass from there to the
            logits, as a share of a full pass, in (0, 1]. Lower costs than `MIN_COST` count as `MIN_COST`.
    """

    name = "blocks"

    def __init__(
        self,
        space: ParameterSpace,
        directions: int,
        *args,
        suffix_costs: Sequence[float] | None = None,
        **kwargs,
    ):
        block_sizes = np.bincount(space.blocks, weights=space.sizes).astype(np.int64)
        mutable_blocks = np.flatnonzero(block_sizes)
        runs = contiguous_runs(block_sizes[mutable_blocks].tolist(), min(directions, len(mutable_blocks)))
        run_of_block = {int(mutable_blocks[position]): number for number, run in enumerate(runs) for position in run}
        self.run_of_tensor = [run_of_block[block] for block in space.blocks]
        costs = [1.0 if suffix_costs is None else suffix_costs[mutable_blocks[run[0]]] for run in runs]
        weights = [1 / max(cost, MIN_COST) for cost in costs]
        self._by_cost = suffix_costs is not None and directions > len(runs)
        self._ends = np.cumsum(weights) * (directions / np.sum(weights))
        self._last_start: tuple[int, float] | None = None
        super().__init__(space, directions, *args, **kwargs)

    def own_density(self) -> float:
        return 1.0

    def check_density(self, density: float | None) -> float:
        return self.own_density() if density is None else density

    def indices(self, generation: int, direction: int, tensor: int) -> np.ndarray | None:
        if self.run_of_tensor[tensor] != self.run(generation, direction):
            return np.empty(0, dtype=np.int64)
        size, count = self.space.sizes[tensor], self.count_in(generation, direction, tensor)
        if count == size:
            return None
        key = (self.seed, self.mask_generation(generation), direction, self.space.keys[tensor])
        return np.sort(keyed_generator("mask", *key).choice(size, count, replace=False, shuffle=False))

    def count_in(self, generation: int, direction: int, tensor: int) -> int:
        if self.run_of_tensor[tensor] != self.run(generation, direction):
            return 0
        return max(1, round(self.density * self.space.sizes[tensor]))

    def run(self, generation: int, direction: int) -> int:
        """The run of blocks that a direction changes, numbered by depth."""
        if not self._by_cost:
            return (direction - self.directions) % len(self._ends)  # all rounds but the first are complete
        generation = self.mask_generation(generation)
        if self._last_start is None or self._last_start[0] != generation:
            self._last_start = (generation, keyed_generator("allocation", self.seed, generation).random())
        run = np.searchsorted(self._ends, direction + self._last_start[1], side="right")
        return min(int(run), len(self._ends) - 1)  # the last end may fall short of `directions` by rounding


DECOMPOSITIONS: dict[str, type[Decomposition]] = {
    kind.name: kind for kind in (Dense, Random, Antirandom, Partition, Blocks)
}


def make_decomposition(
    name: str,
    space: ParameterSpace,
    directions: int,
    density: float | None = None,
    seed: int = 0,
    static: bool = False,
    suffix_costs: Sequence[float] | None = None,
) -> Decomposition:
    """
    Builds a decomposition by name.

    Args:
        name (`str`): one of `DECOMPOSITIONS`: `dense`, `random`, `antirandom`, `partition` or `blocks`.
        space (`ParameterSpace`), directions (`int`), density (`float`, *optional*), seed (`int`), static (`bool`): as for
            [`Decomposition`].

    Raises:
        `SMDError`: if the decomposition does not support the density.
    """
    costs = {} if suffix_costs is None else {"suffix_costs": suffix_costs}
    return DECOMPOSITIONS[name](space, directions, density, seed, static, **costs)
