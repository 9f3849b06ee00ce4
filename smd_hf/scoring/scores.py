"""What a variant got right: per batch, so that parts scored anywhere add up to the same bytes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import fsum

import numpy as np
import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Cell:
    """
    One variant on one batch.

    Args:
        correct (`numpy.ndarray`): which images it classified rightly, bool, of shape `(batch,)`.
        nll_sum (`float`): summed negative log-likelihood in nats, in float64.
        finite (`bool`): whether all logits were finite.
        logits (`numpy.ndarray`, *optional*): float32, of shape `(batch, num_labels)`, where they were asked for.
    """

    correct: np.ndarray
    nll_sum: float
    finite: bool
    logits: np.ndarray | None = None

    @classmethod
    def from_logits(cls, logits: torch.Tensor, labels: torch.Tensor, keep_logits: bool = False) -> "Cell":
        """From floating-point logits of shape `(batch, num_labels)` and labels of shape `(batch,)`, on any device."""
        logits, labels = logits.cpu(), labels.cpu()
        return cls(
            correct=(logits.argmax(-1) == labels).numpy(),
            nll_sum=float(F.cross_entropy(logits.double(), labels, reduction="sum")),
            finite=bool(torch.isfinite(logits).all()),
            logits=logits.float().numpy() if keep_logits else None,
        )


@dataclass
class Score:
    """
    One variant on several batches.

    Args:
        cells (`dict` of `int` to [`Cell`]): by number of the batch.
        ood ([`Score`], *optional*): of the same variant on out-of-distribution images, if they are scored.
    """

    cells: dict[int, Cell] = field(default_factory=dict)
    ood: "Score | None" = None

    def _in_order(self) -> Iterable[Cell]:
        return (self.cells[number] for number in sorted(self.cells))

    @property
    def num_images(self) -> int:
        return sum(len(cell.correct) for cell in self.cells.values())

    @property
    def correct(self) -> np.ndarray:
        """Which images it classified rightly, bool, of shape `(num_images,)`."""
        return np.concatenate([cell.correct for cell in self._in_order()])

    @property
    def accuracy(self) -> float:
        return int(self.correct.sum()) / self.num_images

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, in nats; NaN where a logit was not finite."""
        return fsum(cell.nll_sum for cell in self._in_order()) / self.num_images if self.finite else float("nan")

    @property
    def finite(self) -> bool:
        """Whether every logit, and the loss of each batch, was finite, also on out-of-distribution images."""
        finite = all(cell.finite and np.isfinite(cell.nll_sum) for cell in self.cells.values())
        return finite and (self.ood is None or self.ood.finite)

    @property
    def logits(self) -> np.ndarray:
        """All logits, float32, of shape `(num_images, num_labels)`."""
        return np.concatenate([cell.logits for cell in self._in_order()])  # pyright: ignore
