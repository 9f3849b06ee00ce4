"""
Recombination: scored children become candidates for the next parent.

A candidate is theta + sum of coefficient x (child - theta). A strategy proposes candidates; which of them is taken is
decided on the selection split, with the parent among them where elitism is on.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import SMDError
from .mutation import Child
from .selection import ScoredChild, ranked


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

    @abstractmethod
    def candidates(self, children: Sequence[ScoredChild]) -> list[Candidate]:
        """The candidates, none where every child failed; `children` are all of a generation, in their order."""


class Best(Recombination):
    """Each of the `top_k` fittest children is a candidate: selection scores them again on images new to them."""

    name = "best"

    def candidates(self, children: Sequence[ScoredChild]) -> list[Candidate]:
        return [
            Candidate(f"child {scored.child.index}", ((scored.child, 1.0),))
            for scored in ranked(children)[: self.top_k]
        ]


class TopKMean(Recombination):
    """The mean of the weights of the `top_k` fittest children is the one candidate."""

    name = "top_k_mean"

    def candidates(self, children: Sequence[ScoredChild]) -> list[Candidate]:
        top = sorted(ranked(children)[: self.top_k], key=lambda scored: scored.child.index)
        if not top:
            return []
        share = 1 / len(top)
        return [Candidate(f"mean of {len(top)}", tuple((scored.child, share) for scored in top))]


RECOMBINATIONS: dict[str, type[Recombination]] = {kind.name: kind for kind in (Best, TopKMean)}


def make_recombination(name: str, top_k: int) -> Recombination:
    """The strategy of that name: one of `RECOMBINATIONS`; [`SMDError`] for another."""
    if name not in RECOMBINATIONS:
        raise SMDError(f"recombination='{name}' is not one of {', '.join(RECOMBINATIONS)}.")
    return RECOMBINATIONS[name](top_k)
