"""
Recombination: turns scored children into candidates for the next parent.

A candidate is theta + sum of coefficient x (child - theta). A recombination proposes candidates in rounds. Each candidate is
scored on the selection split, and the best of all rounds becomes the parent. With elitism, the parent is a candidate too.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .fitness import ScoredChild, ranked
from .mutation import Child


@dataclass(frozen=True)
class Candidate:
    """
    A candidate for the next parent.

    Args:
        name (`str`): for logs and records.
        parts (tuple of ([`Child`], `float`)): the children that it combines, with their coefficients.
    """

    name: str
    parts: tuple[tuple[Child, float], ...]


class Recombination(ABC):
    """
    Turns scored children into candidates.

    Args:
        top_k (`int`): how many of the fittest children are used.
    """

    name: str
    """Its name in the arguments."""

    def __init__(self, top_k: int):
        self.top_k = top_k

    def prepare(self, parent_logits: Callable[[], np.ndarray]) -> None:
        """
        Takes what it needs to know of the parent before children are scored.

        Args:
            parent_logits (`Callable`): scores the parent on the fitness images, which is a pass.
        """
        return None

    def sums(self, children: Sequence[Child]) -> Any | None:
        """
        Sums to take over batches while children are scored; `None` if none are needed.

        Returns a callable. It maps a batch's logits (of the parent and the children) and labels to an array. The sum over
        all batches is stored as its `total`, and the callable is passed to [`Recombination.propose`].
        """
        return None

    def most_candidates(self, num_children: int) -> int:
        """The greatest number of candidates, over all rounds, for a number of children."""
        return min(self.top_k, num_children)

    @abstractmethod
    def propose(
        self, children: Sequence[ScoredChild], sums: Any | None = None
    ) -> Generator[list[Candidate], list[float], None]:
        """
        Yields candidates in rounds. Each `yield` returns their fitness on the selection split, in the same order.

        Args:
            children (sequence of [`ScoredChild`]): all children of a generation, by index.
            sums (*optional*): the result of [`Recombination.sums`], with its `total`.
        """


class Best(Recombination):
    """Each of the `top_k` fittest children is a candidate. Selection scores them again, on other images."""

    name = "best"

    def candidates(self, children: Sequence[ScoredChild]) -> list[Candidate]:
        """The fittest children, unchanged."""
        return [
            Candidate(f"child {scored.child.index}", ((scored.child, 1.0),))
            for scored in ranked(children)[: self.top_k]
        ]

    def propose(
        self, children: Sequence[ScoredChild], sums: Any | None = None
    ) -> Generator[list[Candidate], list[float], None]:
        yield self.candidates(children)


class TopKMean(Recombination):
    """The only candidate is the mean of the weights of the `top_k` fittest children."""

    name = "top_k_mean"

    def most_candidates(self, num_children: int) -> int:
        return 1

    def propose(
        self, children: Sequence[ScoredChild], sums: Any | None = None
    ) -> Generator[list[Candidate], list[float], None]:
        top = [scored.child for scored in ranked(children)[: self.top_k]]
        yield [mean_of(top)] if top else []


class TopKSum(Recombination):
    """
    The candidates are sums of the changes of the fittest 1, 2, 4, ... and `top_k` children.

    As long as changes are small, what children of different subspaces gain adds up, while a mean divides it by their number.
    """

    name = "top_k_sum"

    def most_candidates(self, num_children: int) -> int:
        return len(_sizes(min(self.top_k, num_children)))

    def propose(
        self, children: Sequence[ScoredChild], sums: Any | None = None
    ) -> Generator[list[Candidate], list[float], None]:
        top = [scored.child for scored in ranked(children)[: self.top_k]]
        sums_of_several = (
            _weighted(f"sum of the fittest {size}", top[:size], 1.0) for size in _sizes(len(top)) if size > 1
        )
        yield [*Best(1).candidates(children), *sums_of_several]


def _sizes(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({2**power for power in range(most.bit_length())} | ({most} if most else set()))


class GreedySoup(Recombination):
    """
    The greedy soup of Wortsman et al. (2022).

    Goes through the `top_k` children, the fittest first, and adds each to the mean of the weights if the new mean is no worse
    on the selection split.
    """

    name = "greedy_soup"

    def propose(
        self, children: Sequence[ScoredChild], sums: Any | None = None
    ) -> Generator[list[Candidate], list[float], None]:
        soup: list[Child] = []
        best = float("-inf")
        for scored in ranked(children)[: self.top_k]:
            [fitness] = yield [mean_of([*soup, scored.child])]
            if fitness >= best:
                best = fitness
                soup.append(scored.child)


def mean_of(children: Sequence[Child]) -> Candidate:
    """The mean of the children's weights."""
    indices = sorted(child.index for child in children)
    return _weighted(f"mean of {', '.join(map(str, indices))}", children, 1 / len(children))


def _weighted(name: str, children: Sequence[Child], coefficient: float) -> Candidate:
    """All children with the same coefficient."""
    by_index = sorted(children, key=lambda child: child.index)
    return Candidate(name, tuple((child, coefficient) for child in by_index))
