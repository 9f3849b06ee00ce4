"""Object detection: boxes, each with a class and a score."""

from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.boxes import OBJECT_COLUMNS, ONE_SIZE, BoxCollator, find_objects
from ..data.preparation import PreparedData
from ..data.rows import find_column, find_image_column
from ..errors import SMDError
from ..metrics.detection import (
    DETECTIONS,
    METRICS,
    DetectionMeasure,
    best_detections,
    kept_detections,
    object_counts,
)
from ..metrics.set_loss import SetLoss, corners
from ..models.inputs import input_names
from ..models.load import num_channels
from ..models.query_head import QueryHeadInputs
from ..models.tasks import KINDS
from ..scoring.reading import SamplesAll
from ..scoring.scores import Cell, Score
from .common import check_rows, leave_gauss_newton_out
from .pictures import Boxes
from .protocol import GivenData, Loss

logger = logging.get_logger(__name__)

OTHERS = "Choose a detector like DETR, YOLOS, RT-DETR, D-FINE or RF-DETR."
WATCHED = 20
"""The most confident queries of an image, by which sigma is calibrated."""
UNSCORED = {
    "pp_ocr": "marks regions of text in a map of pixels and has no boxes of queries, so there is nothing that mAP could score",
    "pp_doclayout": "reads the order of a page's parts beside their boxes, and mAP would not see it change",
}
"""By the beginning of their model type: detectors that are refused."""
DRAWN = 0.5
"""Detections of at least this confidence are drawn, as transformers' pipeline returns them by default."""
SAME_BOX = 0.5
"""A query has moved on if its boxes overlap less than this, as intersection over union."""


class ObjectDetection(SamplesAll):
    """
    Scores are mean average precision and the set loss that DETR is trained by.

    Predictions are of shape `(batch, queries, columns + 4)`: logits, and boxes as shares of the image. Labels are of shape
    `(batch, most, 5)`: see [`~smd_hf.data.boxes.BoxCollator`].
    """

    kind = KINDS["object-detection"]
    metrics = METRICS
    keeps_labels, keeps_predictions = False, True
    head_inputs = QueryHeadInputs
    set_loss = SetLoss(0)

    def configure(self, model: Any, args: EvolutionArguments) -> None:
        for start, reason in UNSCORED.items():
            if str(model.config.model_type).startswith(start):
                raise SMDError(f"The model is a {type(model).__name__}, which {reason}. {OTHERS}")
        self.set_loss = SetLoss.of(model.config)
        if hasattr(args, "recombination"):
            leave_gauss_newton_out(args, self)

    def prepare(self, model: Any, args: EvolutionArguments, given: GivenData) -> PreparedData:
        splits = check_rows(given, self.kind)
        if given.data_collator is not None:
            return PreparedData(given.data_collator, None, None, given.eval_dataset, None)
        reference = next(iter(splits.values()))
        column = find_column(reference, "object", args.label_column_name, OBJECT_COLUMNS)
        image = find_image_column(reference, args.image_column_name)
        collator = BoxCollator(
            given.processing_class,
            image,
            find_objects(reference, column, model.config.id2label),
            channels=num_channels(model),
            input_names=input_names(model),
        )
        if args.per_device_eval_batch_size > 1 and (sizes := collator.sizes_differ(splits.values())):
            args.per_device_eval_batch_size = 1
            logger.warning(
                f"The image processor brings images to several sizes (height x width: {sizes}), and padding them to one would change what "
                f"the model finds. So images are scored one at a time (per_device_eval_batch_size=1). For larger batches, {ONE_SIZE}."
            )
        return PreparedData(collator, image, None, given.eval_dataset, None, check_row=collator.problem)

    # ---- Reading of outputs ------------------------------------------------------------------------------------------

    def prediction(self, output: Any) -> torch.Tensor:
        if not hasattr(output, "pred_boxes"):
            raise SMDError(
                f"The model returns {type(output).__name__}, which has no boxes of queries (pred_boxes). {OTHERS}"
            )
        return torch.cat([output.logits, output.pred_boxes], dim=-1)

    def width(self, model: Any) -> int:
        return 3 * DETECTIONS

    def cell(self, prediction: torch.Tensor, labels: torch.Tensor, keep: bool) -> Cell:
        losses = self.set_loss(prediction, labels)
        classes = self.set_loss.classes
        sums = np.concatenate([losses[:, None], object_counts(labels, classes)], axis=1)
        return Cell(
            correct=None,
            nll_sum=float(losses.sum()),
            finite=bool(torch.isfinite(prediction).all()),
            logits=kept_detections(prediction, labels, classes) if keep else None,
            sums=sums,
        )

    def flipped(self, parent: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
        """Of the parent's most confident queries, the share whose class changes, or whose box moves away."""
        best = self.set_loss.confidence(parent).topk(min(WATCHED, parent.shape[1]), dim=1).indices
        index = best[..., None].expand(-1, -1, parent.shape[-1])
        parent, child = parent.gather(1, index), child.gather(1, index)
        renamed = parent[..., :-4].argmax(-1) != child[..., :-4].argmax(-1)
        first, second = corners(parent[..., -4:]), corners(child[..., -4:])
        sides = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
        common = sides.clamp_min(0).prod(-1)
        areas = sum((each[..., 2:] - each[..., :2]).prod(-1) for each in (first, second))
        return (renamed | (common < SAME_BOX * (areas - common))).double().mean(-1)

    # ---- Loss and metrics --------------------------------------------------------------------------------------------

    def loss(self, args: EvolutionArguments) -> Loss:
        raise SMDError(
            "recombination='gauss_newton' takes a step by the slope and curvature of the loss in the outputs, and the loss of a detector "
            "has none that holds over a step: which query answers for which object is decided anew whenever the outputs change, and mAP "
            "depends on the order of scores alone. Choose recombination='top_k_sum', 'best', 'top_k_mean' or 'greedy_soup'."
        )

    def picture(self, prediction: torch.Tensor, labels: torch.Tensor) -> tuple[Boxes, Boxes]:
        objects = labels[0][labels[0, :, 0] >= 0].cpu()
        truth = Boxes(corners(objects[:, 1:]).numpy(), objects[:, 0].long().numpy())
        scores, classes, boxes = (each[0].cpu() for each in best_detections(prediction.float(), self.set_loss.classes))
        sure = scores >= DRAWN
        return truth, Boxes(corners(boxes[sure]).numpy(), classes[sure].numpy(), scores[sure].numpy())

    def measured(self, score: Score) -> DetectionMeasure:
        return DetectionMeasure(score.logits, score.sums)
