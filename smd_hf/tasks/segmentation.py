"""Semantic segmentation: a class for each pixel."""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.batches import Batch
from ..data.masks import MASK_COLUMNS, MaskCollator
from ..data.preparation import PreparedData
from ..data.rows import find_column, find_image_column
from ..errors import SMDError
from ..keyed_random import keyed_generator
from ..metrics.segmentation import METRICS, SegmentationMeasure, pixel_sums
from ..models.inputs import input_names
from ..models.load import num_channels
from ..models.pixel_head import PixelHeadInputs
from ..models.tasks import KINDS
from ..scoring.scores import Cell, Score
from .common import check_rows
from .pictures import ClassMap
from .protocol import GivenData, Loss

PIXELS = 1024
"""Pixels of an image that a Gauss-Newton step and the calibration of sigma look at. All pixels count for scores."""

HEAD_BALANCES = {"mean_iou": (0.0, 0.25, 0.5), "mean_accuracy": (0.0, 0.5, 1.0)}
"""By metric, the weights to try in fits of the head, of which the selection images choose."""


class SemanticSegmentation:
    """
    Scores are pixel cross-entropy and mIoU, at the size to which the image processor brings the masks.

    Predictions are logits of shape `(batch, classes, height, width)`, labels are classes of shape `(batch, height, width)`.
    """

    kind = KINDS["image-segmentation"]
    metrics = METRICS
    keeps_labels = keeps_predictions = False
    head_inputs = PixelHeadInputs
    ignore_index = 255
    classes = 0

    def configure(self, model: Any, args: EvolutionArguments) -> None:
        self.classes = model.config.num_labels
        self.ignore_index = getattr(model.config, "semantic_loss_ignore_index", 255)

    def prepare(self, model: Any, args: EvolutionArguments, given: GivenData) -> PreparedData:
        splits = check_rows(given, self.kind)
        if given.data_collator is not None:
            return PreparedData(given.data_collator, None, None, given.eval_dataset, None)
        reference = next(iter(splits.values()))
        mask = find_column(reference, "mask", args.label_column_name, MASK_COLUMNS)
        image = find_image_column(reference, args.image_column_name)
        if args.do_reduce_labels is not None:
            if not hasattr(given.processing_class, "do_reduce_labels"):
                raise SMDError(
                    f"do_reduce_labels is given, but {type(given.processing_class).__name__} has no such setting. Leave it out, and give "
                    f"masks whose values are the model's classes, or {self.ignore_index} for pixels without a label."
                )
            given.processing_class.do_reduce_labels = args.do_reduce_labels
        collator = MaskCollator(
            given.processing_class,
            image,
            mask,
            classes=self.classes,
            ignore_index=self.ignore_index,
            channels=num_channels(model),
            input_names=input_names(model),
        )
        return PreparedData(collator, image, None, given.eval_dataset, None, check_row=collator.problem)

    # ---- Reading of outputs ------------------------------------------------------------------------------------------

    def prediction(self, output: Any) -> torch.Tensor:
        return output.logits

    def width(self, model: Any) -> int:
        return PIXELS * self.classes

    def cell(self, prediction: torch.Tensor, labels: torch.Tensor, keep: bool) -> Cell:
        sums = pixel_sums(prediction, labels, self.ignore_index)
        return Cell(None, float(sums[:, 0].sum()), bool(torch.isfinite(prediction).all()), sums=sums)

    def flipped(self, parent: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
        return (parent.argmax(-1) != child.argmax(-1)).double().mean(-1)

    def sampled(self, prediction: torch.Tensor, batch: Batch) -> torch.Tensor:
        # As an image that is resized to the masks has them, at a few pixels.
        height, width = batch.labels.shape[-2:]
        rows, columns = self._pixels(batch)
        places = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1).float()
        grid = places.to(prediction.device).expand(len(prediction), 1, -1, -1)
        found = F.grid_sample(prediction.float(), grid, padding_mode="border", align_corners=False)
        return found[:, :, 0].transpose(1, 2).contiguous()

    def sampled_labels(self, batch: Batch) -> torch.Tensor:
        rows, columns = self._pixels(batch)
        return batch.labels[:, rows, columns]

    def _pixels(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns of the pixels that are looked at: the same for all variants and on any process."""
        height, width = batch.labels.shape[-2:]
        places = torch.from_numpy(keyed_generator("pixels", batch.number).integers(height * width, size=PIXELS))
        return places // width, places % width

    # ---- Loss and metrics --------------------------------------------------------------------------------------------

    def loss(self, args: EvolutionArguments) -> Loss:
        ignored, classes = self.ignore_index, self.classes
        balanced = args.fitness.removeprefix("eval_") == "mean_accuracy"

        def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            """The mean over the labelled pixels of each image, or over its classes, summed over images."""
            losses = F.cross_entropy(
                logits.transpose(1, 2),
                labels,
                ignore_index=ignored,
                reduction="none",
                label_smoothing=args.label_smoothing_factor,
            )
            known = labels != ignored
            if not balanced:
                return (losses.sum(-1) / known.sum(-1).clamp_min(1)).sum()
            # To the metric, each class counts the same, however many pixels it has.
            of_class = F.one_hot(labels.where(known, 0), classes).to(losses.dtype) * known[..., None]
            means = (losses[..., None] * of_class).sum(1) / of_class.sum(1).clamp_min(1)
            return (means.sum(-1) / (of_class.sum(1) > 0).sum(-1).clamp_min(1)).sum()

        return cross_entropy

    def balances(self, fitness: str) -> tuple[float, ...]:
        """Class weights to try in fits of the head; see [`~smd_hf.search.head.pixels.pixel_baselines`]."""
        return HEAD_BALANCES.get(fitness, (0.0,))

    def picture(self, prediction: torch.Tensor, labels: torch.Tensor) -> tuple[ClassMap, ClassMap]:
        truth = torch.where(labels == self.ignore_index, -1, labels)[0].cpu().numpy()
        found = F.interpolate(prediction.float(), labels.shape[-2:], mode="bilinear", align_corners=False)
        return ClassMap(truth), ClassMap(found.argmax(1)[0].cpu().numpy())

    def measured(self, score: Score) -> SegmentationMeasure:
        return SegmentationMeasure(np.asarray(score.sums))
