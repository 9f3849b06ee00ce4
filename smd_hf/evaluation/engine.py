"""Scores of variants of one model: the batch loop, with batches outside and variants inside."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..mutation import MakeChanges, applied
from .images import Batch, ImageBatches


@dataclass
class Variant:
    """
    One thing to score: the model with some changes.

    Args:
        name (`str`): for messages.
        changes (`Callable`): gives the changes, as often as it is called; nothing for the parent itself.
    """

    name: str
    changes: MakeChanges = field(default=lambda: ())


@dataclass
class Score:
    """
    What a variant got right.

    Args:
        num_images (`int`): how many images it saw.
        nll_sum (`float`): summed negative log-likelihood, in nats.
        finite (`bool`): whether all its logits were finite.
        correct_batches (list of `numpy.ndarray`): of each batch, which images it classified rightly.
        logit_batches (list of `numpy.ndarray`, *optional*): logits of each batch, where they were asked for.
    """

    num_images: int = 0
    nll_sum: float = 0.0
    finite: bool = True
    correct_batches: list[np.ndarray] = field(default_factory=list)
    logit_batches: list[np.ndarray] | None = None

    @property
    def correct(self) -> np.ndarray:
        """Which images it classified rightly, bool, of shape `(num_images,)`."""
        return np.concatenate(self.correct_batches)

    @property
    def logits(self) -> np.ndarray:
        """All logits, float32, of shape `(num_images, num_labels)`."""
        return np.concatenate(self.logit_batches)

    @property
    def accuracy(self) -> float:
        return int(self.correct.sum()) / self.num_images

    @property
    def nll(self) -> float:
        return self.nll_sum / self.num_images


class Evaluator:
    """
    Scores variants of a model by forward passes; the model is the parent again whenever a call returns or raises.

    Args:
        model (`torch.nn.Module`): takes `pixel_values` and returns an output with `logits`; put into eval mode.
        device (`torch.device`): where the model is.
        autocast (`Callable`, *optional*): makes the context of each forward pass, for mixed precision.

    Attributes:
        images_forwarded (`int`): images that have gone through the model so far, over all variants.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.model = model
        self.device = device
        self.autocast = autocast
        self.parameters: Mapping[str, nn.Parameter] = dict(model.named_parameters())
        self.images_forwarded = 0

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of one batch, float32 or wider, of shape `(batch, num_labels)`, on the model's device."""
        pixel_values = batch.pixel_values.to(self.device, self.model.dtype, non_blocking=True)
        with torch.inference_mode(), self.autocast():
            logits = self.model(pixel_values=pixel_values).logits
        self.images_forwarded += len(pixel_values)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def score(
        self,
        variants: list[Variant],
        batches: ImageBatches,
        keep_logits: bool = False,
        on_scored: Callable[[int, Score], None] | None = None,
    ) -> list[Score]:
        """
        Scores of several variants on the same images.

        Args:
            variants (list of [`Variant`]): what to score.
            batches ([`ImageBatches`]): the images; each is decoded once for all variants.
            keep_logits (`bool`, *optional*, defaults to `False`): also keeps every variant's logits.
            on_scored (`Callable`, *optional*): called with a variant's number and its score so far whenever it has been
                through a group of batches: with its whole score in the last group.

        Returns:
            list of [`Score`], one a variant and in their order. NLL is summed in float64, over batches
            in their order.
        """
        self.model.eval()
        scores = [Score(logit_batches=[] if keep_logits else None) for _ in variants]
        for group in batches.groups():
            for number, (variant, score) in enumerate(zip(variants, scores)):
                with applied(self.parameters, variant.changes()):
                    for batch in group:
                        self._add(score, batch, self.forward(batch))
                if on_scored is not None:
                    on_scored(number, score)
        return scores

    def _add(self, score: Score, batch: Batch, logits: torch.Tensor) -> None:
        labels = batch.labels.to(self.device)
        score.num_images += len(labels)
        score.correct_batches.append((logits.argmax(-1) == labels).cpu().numpy())
        score.nll_sum += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
        score.finite = score.finite and bool(torch.isfinite(logits).all())
        if score.logit_batches is not None:
            score.logit_batches.append(logits.float().cpu().numpy())

    def logits(self, batches: ImageBatches, changes: MakeChanges = tuple) -> np.ndarray:
        """Logits of the model, or of one variant of it: float32, of shape `(num_images, num_labels)`."""
        [score] = self.score([Variant("model", changes)], batches, keep_logits=True)
        return score.logits
