"""
Recombination: scored children become candidates for the next parent.

A candidate is theta + sum of coefficient x (child - theta). A strategy proposes candidates, round by round; each is scored
on the selection split, and the best of all rounds is taken, with the parent among them where elitism is on.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from .fitness import ScoredChild, ranked
from .mutation import Child


@dataclass(frozen=True)
class Candidate:
    """
    A finished proposal for the next parent.

    Args:
        name (`str`): what it is, for the log.
        parts (tuple of ([`Child`], `float`)): the children it is made of, with their coefficients.
    """

    name: str
    parts: tuple[tuple[Child, float], ...]


class Recombination(ABC):
    """
    A strategy that turns scored children into candidates.

    Args:
        top_k (`int`): how many of the fittest children count.
    """

    name: str
    """How arguments name it."""

    def __init__(self, top_k: int):
        self.top_k = top_k

    def sums(self, children: Sequence[Child]) -> Any | None:
        """
        What is to be summed over batches while children are scored, if anything.

        A callable from the logits of parent and children and the labels of a batch to an array; the sum over all batches
        becomes its `total`, and it is passed to [`Recombination.propose`].
        """
        return None

    def most_candidates(self, num_children: int) -> int:
        """How many candidates of so many children there can be, in all rounds."""
        return min(self.top_k, num_children)

    @abstractmethod
    def propose(
        self, children: Sequence[ScoredChild], sums: Any | None = None
    ) -> Generator[list[Candidate], list[float], None]:
        """
        Yields candidates round by round; each `yield` gives their fitness on the selection split, in their order.

        Args:
            children (sequence of [`ScoredChild`]): all of a generation, in their order.
            sums (*optional*): what [`Recombination.sums`] gave, with its `total`.
        """


class Best(Recombination):
    """Each of the `top_k` fittest children is a candidate: selection scores them again on images new to them."""

    name = "best"

    def candidates(self, children: Sequence[ScoredChild]) -> list[Candidate]:
        """The fittest children as they are."""
        return [
            Candidate(f"child {scored.child.index}", ((scored.child, 1.0),))
            for scored in ranked(children)[: self.top_k]
        ]

    def propose(
        self, children: Sequence[ScoredChild], sums: Any | None = None
    ) -> Generator[list[Candidate], list[float], None]:
        yield self.candidates(children)


class TopKMean(Recombination):
    """The mean of the weights of the `top_k` fittest children is the one candidate."""

    name = "top_k_mean"

    def most_candidates(self, num_children: int) -> int:
        return 1

    def propose(
        self, children: Sequence[ScoredChild], sums: Any | None = None
    ) -> Generator[list[Candidate], list[float], None]:
        top = [scored.child for scored in ranked(children)[: self.top_k]]
        yield [mean_of(top)] if top else []


class GreedySoup(Recombination):
    """
    The greedy soup of Wortsman et al. (2022): from the fittest of the `top_k` children down, each goes into the mean of the
    weights if the mean is then no worse on the selection split.
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
    by_index = sorted(children, key=lambda child: child.index)
    name = f"mean of {', '.join(str(child.index) for child in by_index)}"
    return Candidate(name, tuple((child, 1 / len(children)) for child in by_index))
