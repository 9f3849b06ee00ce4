"""What a variant got right: per batch, so that parts scored anywhere add up to the same bytes."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import fsum

import numpy as np
import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Cell:
    """
    One variant on one batch.

    Args:
        correct (`numpy.ndarray`, *optional*): which images it classified rightly, bool, of shape `(batch,)`; `None` for a task
            that does not classify images.
        nll_sum (`float`): summed loss, in float64: negative log-likelihood in nats for classification.
        finite (`bool`): whether all predictions were finite.
        logits (`numpy.ndarray`, *optional*): predictions, float32, of shape `(batch, width)`, where they were asked for: logits
            for classification, with a width of `num_labels`.
        sums (`numpy.ndarray`, *optional*): float64, of shape `(batch, columns)`: what the metrics of other tasks are computed
            from. Sums over images mean something: numbers of pixels, for example.
    """

    correct: np.ndarray | None
    nll_sum: float
    finite: bool
    logits: np.ndarray | None = None
    sums: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of images."""
        counted = self.sums if self.correct is None else self.correct
        assert counted is not None
        return len(counted)

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

    def weighing(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> "Cell":
        """The same, with the negative log-likelihood of each image times its weight: float64, of shape `(batch,)`."""
        losses = F.cross_entropy(logits.cpu().double(), labels.cpu(), reduction="none")
        return replace(self, nll_sum=float(losses @ weights))


@dataclass
class Score:
    """
    One variant on several batches.

    Args:
        ood ([`Score`], *optional*): of the same variant on out-of-distribution images, if they are scored.
    """

    cells: dict[int, Cell] = field(default_factory=dict)
    ood: "Score | None" = None

    def _in_order(self) -> Iterable[Cell]:
        return (self.cells[number] for number in sorted(self.cells))

    @property
    def num_images(self) -> int:
        return sum(map(len, self.cells.values()))

    @property
    def is_classified(self) -> bool:
        """Whether an image is right or wrong as a whole."""
        return all(cell.correct is not None for cell in self.cells.values())

    @property
    def correct(self) -> np.ndarray:
        """Which images it classified rightly, bool, of shape `(num_images,)`."""
        return np.concatenate([cell.correct for cell in self._in_order()])  # pyright: ignore

    @property
    def accuracy(self) -> float:
        return int(self.correct.sum()) / self.num_images

    @property
    def nll(self) -> float:
        """Mean loss of an image: negative log-likelihood in nats for classification; NaN where a prediction was not finite."""
        return fsum(cell.nll_sum for cell in self._in_order()) / self.num_images if self.finite else float("nan")

    @property
    def finite(self) -> bool:
        """Whether every prediction, and the loss of each batch, was finite, also on out-of-distribution images."""
        finite = all(cell.finite and np.isfinite(cell.nll_sum) for cell in self.cells.values())
        return finite and (self.ood is None or self.ood.finite)

    @property
    def logits(self) -> np.ndarray:
        """All predictions that were kept, float32, of shape `(num_images, width)`: logits for classification."""
        return np.concatenate([cell.logits for cell in self._in_order()])  # pyright: ignore

    @property
    def sums(self) -> np.ndarray:
        """What the metrics of other tasks are computed from, float64, of shape `(num_images, columns)`."""
        return np.concatenate([cell.sums for cell in self._in_order()])  # pyright: ignore
