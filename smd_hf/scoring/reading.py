"""How a model's output becomes what is scored: one tensor of predictions, and a cell of what they got right."""

from typing import Any, Protocol

import torch

from ..data.batches import Batch
from ..remote_code.members_smd_ensemble import logits_of
from .scores import Cell


class Reading(Protocol):
    """
    What a task of the Hub reads in a model's output. The first dimension of every tensor is the image.

    Attributes:
        keeps_labels (`bool`): whether labels are one class an image, and are kept beside the scores. Other tasks put all
            that their metrics need into the cells.
        keeps_predictions (`bool`): whether metrics need the predictions beside what is counted in cells.
    """

    keeps_labels: bool
    keeps_predictions: bool

    def prediction(self, output: Any) -> torch.Tensor:
        """The part of the output of a forward pass that is scored, as one tensor."""
        ...

    def width(self, model: Any) -> int:
        """How many numbers an image has in the predictions that a cell keeps."""
        ...

    def cell(self, prediction: torch.Tensor, labels: torch.Tensor, keep: bool) -> Cell:
        """What one variant got right on one batch; with `keep`, its predictions too."""
        ...

    def flipped(self, parent: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
        """The share of each image's predictions that a child changes, of shape `(batch,)`."""
        ...

    def sampled(self, prediction: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The predictions whose loss a Gauss-Newton step lowers: all, or some of each image."""
        ...

    def sampled_labels(self, batch: Batch) -> torch.Tensor:
        """The labels of [`Reading.sampled`]."""
        ...


class SamplesAll:
    """The part of a [`Reading`] where all predictions are few enough to be summed over."""

    def sampled(self, prediction: torch.Tensor, batch: Batch) -> torch.Tensor:
        return prediction

    def sampled_labels(self, batch: Batch) -> torch.Tensor:
        return batch.labels


class ReadsClasses(SamplesAll):
    """Image classification: logits of shape `(batch, num_labels)`, and one class an image."""

    keeps_labels = keeps_predictions = True

    def prediction(self, output: Any) -> torch.Tensor:
        return logits_of(output)

    def width(self, model: Any) -> int:
        return model.config.num_labels

    def cell(self, prediction: torch.Tensor, labels: torch.Tensor, keep: bool) -> Cell:
        return Cell.from_logits(prediction, labels, keep)

    def flipped(self, parent: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
        return (parent.argmax(-1) != child.argmax(-1)).double()
