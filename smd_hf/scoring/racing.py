"""Racing: the worse half of the children leaves after each round, each round on more of the same images."""

from collections.abc import Callable, Sequence

import numpy as np

from ..data.batches import ImageBatches
from .evaluator import Evaluator, Variant
from .scores import Score


def rounds(num_children: int, num_batches: int, survivors: int) -> list[int]:
    """
    After how many batches each round ends, the last of them after all.

    With R halvings from `num_children` down to `survivors`, round r of 0 ... R - 1 ends at the share 2^(r - R - 1) of the
    batches (at least one): 64 children and 8 survivors cost 14 passes over the data instead of 64.

    Args:
        num_children (`int`), num_batches (`int`), survivors (`int`): each 1 or more.
    """
    halvings = max(0, int(np.log2(num_children / survivors)))
    ends = sorted({max(1, num_batches >> (halvings + 1 - number)) for number in range(halvings)} | {num_batches})
    return ends


def race(
    evaluator: Evaluator,
    variants: Sequence[Variant],
    batches: ImageBatches,
    survivors: int,
    keep_logits: bool = False,
    on_scored: Callable[[int, Score], None] | None = None,
) -> list[Score]:
    """
    Scores by successive halving (Jamieson and Talwalkar 2016) on the mean negative log-likelihood, paired: in each round all
    that are left have seen the same images.

    Args:
        evaluator ([`Evaluator`]), batches ([`ImageBatches`]), keep_logits (`bool`): as for [`Evaluator.score`]. The images
            must be in an order whose every beginning is a fair sample.
        variants (sequence of [`Variant`]): the parent, which stays to the end, and children.
        survivors (`int`): fewer children than this are never left, but where a child's logits are not finite.
        on_scored (`Callable`, *optional*): called with the number and the score of a variant whose race is over.

    Returns:
        list of [`Score`], one a variant: on all images for those that came through, on fewer for those that did not.
    """
    scores = [Score() for _ in variants]
    running = list(range(len(variants)))
    ends = rounds(len(variants) - 1, len(batches), survivors)
    for start, end in zip([0, *ends], ends):
        parts = evaluator.score(
            [variants[number] for number in running], batches, keep_logits, numbers=range(start, end), coarse=True
        )
        for number, part in zip(running, parts):
            scores[number].cells.update(part.cells)
        if end == len(batches):
            break
        left = max(survivors, len(running) // 2)  # of the children, rounded up: the parent runs with them
        alive = sorted((number for number in running[1:] if scores[number].finite), key=lambda n: (scores[n].nll, n))
        over = set(running[1:]) - set(alive[:left])
        running = [number for number in running if number not in over]
        if on_scored is not None:
            for number in sorted(over):
                on_scored(number, scores[number])
    if on_scored is not None:
        for number in running:
            on_scored(number, scores[number])
    return scores
