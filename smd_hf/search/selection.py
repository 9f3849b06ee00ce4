"""Chooses the next parent: scores what a recombination proposes, round by round, and takes the fittest."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from ..parallel.processes import Processes
from ..scoring.scores import Score
from .recombination import Candidate

KEEP_PARENT = Candidate("parent", ())


@dataclass(frozen=True)
class ScoredCandidate:
    """A candidate with its score and fitness on the selection split."""

    candidate: Candidate
    score: Score
    fitness: float


def score_proposals(
    proposals: Generator[list[Candidate], list[float], None],
    score: Callable[[list[Candidate]], list[ScoredCandidate]],
    processes: Processes,
) -> list[ScoredCandidate]:
    """
    Scores the candidates of all rounds of [`Recombination.propose`] and sends it their fitness.

    All processes follow the first one's proposals: different machines may solve equations to different last bits.
    """

    def shared(candidates: list[Candidate] | None) -> list[Candidate] | None:
        [first, *_] = processes.gather(lambda: candidates)
        return first

    scored: list[ScoredCandidate] = []
    proposed = shared(next(proposals, None))
    while proposed is not None:
        latest = score(proposed)
        scored += latest
        try:
            proposed = proposals.send([each.fitness for each in latest])
        except StopIteration:
            proposed = None
        proposed = shared(proposed)
    return scored


def fittest(candidates: Sequence[ScoredCandidate], prefers_children: bool = False) -> ScoredCandidate:
    """
    The fittest candidate. The first wins a tie, which is the parent if it is a candidate.

    Args:
        candidates (sequence of [`ScoredCandidate`]): at least one.
        prefers_children (`bool`, *optional*, defaults to `False`): the parent loses a tie.
    """
    best = candidates[int(np.argmax([each.fitness for each in candidates]))]
    if prefers_children and best.candidate is KEEP_PARENT:
        equals = (each for each in candidates if each is not best and each.fitness == best.fitness)
        return next(equals, best)
    return best


def discordance(candidates: Sequence[ScoredCandidate]) -> float | None:
    """
    The share of selection images on which exactly one of parent and candidate is right, mean over the candidates. `None` if
    the parent is no candidate, or the only one, or images are not classified.
    """
    [first, *others] = candidates
    if first.candidate is not KEEP_PARENT or not others:
        return None
    if not first.score.is_classified:
        return None
    return float(np.mean([np.mean(first.score.correct != other.score.correct) for other in others]))
