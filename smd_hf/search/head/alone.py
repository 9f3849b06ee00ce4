"""The head of a model fitted by itself, without a run around it."""

from ...data.batches import ImageBatches
from ...models.linear_head import HeadInputs
from ...scoring.evaluator import Evaluator
from ..losses import cross_entropy
from .baselines import Baseline, baselines, best_of, measured_on
from .features import features_of
from .fit import HeadFits
from .linear import LinearHead


def fit_head(
    evaluator: Evaluator, head: HeadInputs, learn: ImageBatches, choose: ImageBatches, whole: bool = True
) -> Baseline:
    """
    Fits the head on features of one pass, by cross-entropy, and puts the best into the model: see [`baselines`].

    Args:
        learn, choose ([`ImageBatches`]): images that heads are fitted on, and others that choose among them by the NLL.
        whole (`bool`, *optional*, defaults to `True`): also fits the whole head. Else class prior and temperature alone, as before
            generations that score on the same images.

    Returns:
        [`Baseline`]: the best one, which may be the head as it was.
    """
    known, unseen = (features_of(evaluator, head, batches) for batches in (learn, choose))
    fits = HeadFits(LinearHead(*head.numbers()), *known, cross_entropy())
    fitness = measured_on(unseen, evaluator.reading, lambda score, _: -score.nll)
    best = best_of(baselines(fits, fitness, whole=whole))
    head.write(best.head.weight, best.head.bias)
    return best
