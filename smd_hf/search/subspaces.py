"""
Subspaces: which child may change which coordinates.

A population of N children explores `directions` subspaces of the mutable coordinates (N, or N/2 where children come in
mirrored pairs). A decomposition is a rule that gives each direction its coordinates, tensor by tensor, from keyed random
numbers: nothing of the size of children times parameters is ever held.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import SMDError
from ..keyed_random import keyed_generator
from ..models.blocks import contiguous_runs

MIN_COST = 0.1
"""No block gets more than ten times the children of the costliest one, however cheap it is to score."""


@dataclass(frozen=True)
class ParameterSpace:
    """
    The mutable parameters of a model, in a fixed order.

    Args:
        names (`tuple[str, ...]`): the names in memory, as `model.named_parameters()` gives them.
        keys (`tuple[str, ...]`): the names in a saved checkpoint, which key the random numbers: they outlive a release of
            transformers that renames modules.
        sizes (`tuple[int, ...]`): the number of coordinates of each.
        blocks (`tuple[int, ...]`): for each, the position in depth of the block it belongs to, from 0.
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
        space (`ParameterSpace`): the mutable parameters.
        directions (`int`): how many subspaces there are, at least 1.
        density (`float`, *optional*): share of the mutable coordinates that a direction changes, in (0, 1].
        seed (`int`, *optional*, defaults to 0): keys the masks.
        static (`bool`, *optional*, defaults to `False`): the same masks in every generation.

    Raises:
        `SMDError`: if the density, or the number of directions, is not one that the decomposition can have.
    """

    name: str
    """How arguments name it."""

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
        """The density in force for the one that was asked for (`None`: the decomposition's own)."""
        own = self.own_density()
        if density is not None and not np.isclose(density, own, rtol=1e-6):
            raise SMDError(
                f"density={density} does not go with decomposition='{self.name}', whose children change a share of "
                f"{own:.6g} of the coordinates. Leave density out, or take decomposition='random', which has any density."
            )
        return own

    @abstractmethod
    def own_density(self) -> float:
        """The density that the decomposition has by itself."""

    @abstractmethod
    def indices(self, generation: int, direction: int, tensor: int) -> np.ndarray | None:
        """
        The coordinates of one tensor that a direction changes.

        Args:
            generation (`int`), direction (`int`): from 0.
            tensor (`int`): the tensor's position in the space.

        Returns:
            `numpy.ndarray` or `None`: increasing flat indices, int64, of shape `(k,)`, possibly empty; `None` for all.
        """

    def noise_key(self, direction: int) -> int | None:
        """
        Whose dense noise the direction takes its part of.

        `None`: its own, drawn for its coordinates alone. Else directions with the same number share one dense noise.
        """
        return None

    def scales(self, direction: int) -> bool:
        """Whether the direction multiplies its tensors by a number; else it adds noise to its coordinates."""
        return False

    def count(self, generation: int, direction: int) -> int:
        """How many coordinates the direction changes."""
        return sum(self.count_in(generation, direction, tensor) for tensor in range(len(self.space.sizes)))

    def count_in(self, generation: int, direction: int, tensor: int) -> int:
        """How many coordinates of one tensor the direction changes."""
        indices = self.indices(generation, direction, tensor)
        return self.space.sizes[tensor] if indices is None else len(indices)

    def mask_generation(self, generation: int) -> int:
        """The generation which keys the masks: always the first where subspaces are static."""
        return 0 if self.static else generation


class Dense(Decomposition):
    """Every direction changes every coordinate: the control, ordinary evolution strategies."""

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
                f"density={density} leaves a child no coordinate of the {self.space.total} mutable ones. Raise it to "
                f"{1 / self.space.total:.2g} at the least, or make more parameters mutable."
            )
        return density

    def counts(self, generation: int, direction: int) -> np.ndarray:
        """
        How many coordinates of each tensor the direction changes: systematic sampling, so that the counts add up to
        round(density x total) exactly and every coordinate of every tensor is as likely as any other.
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
    A dense noise cut into disjoint masks whose union is everything, `parts` of them to each noise.

    Coordinates are dealt out in a random order, one after another through all tensors, so that the shares differ by one
    coordinate at most.
    """

    parts: int

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._last_order: tuple[tuple[int, int, int], np.ndarray] | None = None

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
        """The order in which one tensor's coordinates are dealt; kept for the other parts of the same cut."""
        key = (generation, cut, tensor)
        if self._last_order is None or self._last_order[0] != key:
            size = self.space.sizes[tensor]
            order = np.arange(size, dtype=np.int32 if size < 2**31 else np.int64)
            keyed_generator("mask", self.seed, generation, cut, self.space.keys[tensor]).shuffle(order)
            self._last_order = (key, order)
        return self._last_order[1]

    def _first(self, direction: int, tensor: int) -> int:
        """The first place in the order that is dealt to the direction, given all that earlier tensors were dealt."""
        return int((direction - self.offsets[tensor]) % self.parts)


class Partition(Cut):
    """One dense noise, cut into as many masks as there are directions."""

    name = "partition"

    def __init__(self, space: ParameterSpace, directions: int, *args, **kwargs):
        if directions > space.total:
            raise SMDError(
                f"A partition gives each child at least one coordinate of its own, but {directions} children are asked for "
                f"and {space.total} coordinates are mutable. Lower population_size or make more parameters mutable."
            )
        self.parts = directions
        super().__init__(space, directions, *args, **kwargs)


class Antirandom(Cut):
    """Pairs of directions: a random half of the coordinates and the other half, of one dense noise a pair."""

    name = "antirandom"
    parts = 2

    def __init__(self, space: ParameterSpace, directions: int, *args, **kwargs):
        if directions % 2:
            raise SMDError(
                f"decomposition='antirandom' makes children in pairs, a mask and its complement, but {directions} "
                "subspaces are asked for. Choose an even population_size (a multiple of four with mirrored=True)."
            )
        super().__init__(space, directions, *args, **kwargs)


class Blocks(Decomposition):
    """
    Disjoint in depth: a direction changes weights of one contiguous run of blocks only, all of them or a random share.

    With fewer directions than blocks, runs hold about as many coordinates each and each has one direction. With more, every
    block is a run, and runs have equally many directions, where that does not come out even one more for the last, which are
    the cheapest to score. Or, where costs are given, directions are drawn inversely to what they cost to score, by systematic
    sampling in each generation: a run has its exact share over generations, and never a whole direction more or less.

    `density` is the share of the *run's* coordinates that is changed, 1 by default.

    Args:
        suffix_costs (sequence of `float`, *optional*): for each block of the space, what part of a full pass it takes from
            there to the logits, in (0, 1]. Costs below `MIN_COST` count as that.
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
        """Which run of blocks a direction changes, by its number in depth."""
        if not self._by_cost:
            return (direction - self.directions) % len(self._ends)  # rounds of all the runs, but for the first
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
    The decomposition of that name.

    Args:
        name (`str`): one of `DECOMPOSITIONS`: `dense`, `random`, `antirandom`, `partition` or `blocks`.
        space (`ParameterSpace`), directions (`int`), density (`float`, *optional*), seed (`int`), static (`bool`): as for
            [`Decomposition`].
        suffix_costs (sequence of `float`, *optional*): as for [`Blocks`], the only one that takes them.

    Raises:
        `SMDError`: for a name that is none of them, a density outside (0, 1], or one that does not go with the name.
    """
    if name not in DECOMPOSITIONS:
        raise SMDError(f"decomposition='{name}' is not one of {', '.join(DECOMPOSITIONS)}.")
    if density is not None and not 0 < density <= 1:
        raise SMDError(
            f"density={density} is outside (0, 1]: it is the share of the coordinates that a child changes."
        )
    costs = {} if suffix_costs is None else {"suffix_costs": suffix_costs}
    return DECOMPOSITIONS[name](space, directions, density, seed, static, **costs)
