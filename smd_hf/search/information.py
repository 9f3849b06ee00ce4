"""
Fitness, loss and guard for images without labels.

Information is the entropy of the mean prediction minus the mean entropy of predictions, in nats: the mutual information of image and
class as the model sees it. It is high where the model is sure of each image and uses all classes (Krause et al. 2010, Liang et al. 2020,
arXiv 2002.08546). A model can raise it by being more confident and no better, so the guard holds the classes that it predicts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from transformers.utils import logging

from ..scoring.scores import Score
from .fitness import Fitness

logger = logging.get_logger(__name__)

NAME = "information"

AGREEMENT = 0.9
"""The share of the selection images for which a candidate has to predict the class that the model predicted before the first generation."""

VARIETY = 0.8
"""The share of that model's variety of predicted classes that a candidate has to keep."""


def information(logits: np.ndarray) -> float:
    """
    The mutual information of image and class, in nats.

    Args:
        logits (`numpy.ndarray`): of shape `(n, num_labels)`.
    """
    chances = torch.from_numpy(logits).double().softmax(-1)
    of_mean, of_each = (torch.special.entr(each).sum(-1) for each in (chances.mean(0), chances))
    return float(of_mean - of_each.mean())


class InformationFitness(Fitness):
    """The information of a variant's predictions. Labels have no effect."""

    def __init__(self):
        self.name = NAME
        self.compute_metrics = None
        self.needs_logits, self.needs_ood, self.greater_is_better = True, False, True

    def value(self, score: Score, labels: np.ndarray, metrics: object = None) -> float:
        return information(score.logits)


class InformationLoss:
    """
    A loss whose sum over images has the gradient of minus their information: the entropy of a prediction plus its cross term with the
    mean prediction, which is held fixed over a step.
    """

    def __init__(self):
        self._log_mean: torch.Tensor | None = None

    def prepare(self, logits: np.ndarray) -> None:
        """Takes the mean prediction from the parent's logits of all images, of shape `(n, num_labels)`."""
        self._log_mean = torch.from_numpy(logits).double().softmax(-1).mean(0).clamp_min(1e-30).log()

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert self._log_mean is not None
        log_chances = logits.log_softmax(-1)
        return (log_chances.exp() * (self._log_mean.to(logits.device) - log_chances)).sum()


@dataclass
class Guard:
    """
    Refuses candidates that predict other classes than the model did before the first generation.

    Args:
        before (`numpy.ndarray`): the classes that it predicted for the selection images, int64, of shape `(n,)`.

    Attributes:
        refused (list of `str`): why, for each candidate that was refused since [`Guard.begin`].
    """

    before: np.ndarray

    def __post_init__(self) -> None:
        self.refused: list[str] = []

    def begin(self) -> None:
        self.refused = []

    def __call__(self, score: Score) -> bool:
        """Whether a candidate is let through, by its score on the selection images."""
        if not score.finite:
            return False
        now = score.logits.argmax(-1)
        agreement = float((now == self.before).mean())
        kept = _variety(now) / _variety(self.before)
        if agreement < AGREEMENT:
            self.refused.append(
                f"it agrees with the model before the first generation on {agreement:.0%} of the images"
            )
        elif kept < VARIETY:
            self.refused.append(f"it keeps {kept:.0%} of the variety of predicted classes")
        return agreement >= AGREEMENT and kept >= VARIETY

    def tell(self, generation: int, candidates: int) -> None:
        """Says so where all candidates of a generation were refused."""
        if candidates and len(self.refused) == candidates:
            logger.warning(
                f"Generation {generation + 1}: all {candidates} candidates were refused, and the parent stays. Of the last one: "
                f"{self.refused[-1]}; expected at least {AGREEMENT:.0%} agreement and {VARIETY:.0%} of the variety. Without labels, "
                "larger changes are more often a collapse than a gain."
            )


def _variety(classes: np.ndarray) -> float:
    """The effective number of classes: exp of the entropy of their shares."""
    shares = np.unique(classes, return_counts=True)[1] / len(classes)
    return float(np.exp(-(shares * np.log(shares)).sum()))
