"""The head of a model fitted by itself, without a run around it."""

from ...data.batches import ImageBatches
from ...models.linear_head import HeadInputs
from ...scoring.evaluator import Evaluator
from ..losses import Loss, cross_entropy
from .baselines import Baseline, baselines, measured_on
from .features import features_of
from .fit import HeadFits
from .linear import LinearHead


def head_baselines(
    evaluator: Evaluator, head: HeadInputs, learn: ImageBatches, choose: ImageBatches, loss: Loss | None = None
) -> list[Baseline]:
    """
    What one pass over the features gives: see [`baselines`]. `head.write(best.head.weight, best.head.bias)` puts one into the model.

    Args:
        learn, choose ([`ImageBatches`]): images that heads are fitted on, and others that measure them by their NLL.
        loss ([`Loss`], *optional*, defaults to cross-entropy): what the fits lower.
    """
    known, unseen = (features_of(evaluator, head, batches) for batches in (learn, choose))
    fits = HeadFits(LinearHead(*head.numbers()), *known, loss or cross_entropy())
    return baselines(fits, measured_on(unseen, evaluator.reading, lambda score, _: -score.nll))
