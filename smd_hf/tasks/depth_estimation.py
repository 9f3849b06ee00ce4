"""Depth estimation: a depth for each pixel."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.batches import Batch
from ..data.depth_maps import DEPTH_COLUMNS, OUTSIDE, DepthCollator, as_depth_map, is_known
from ..data.preparation import PreparedData
from ..data.rows import find_column, find_image_column
from ..errors import SMDError
from ..keyed_random import keyed_generator
from ..metrics.depth import DEPTH, INVERSE, NONE, DepthMeasure, depth_loss, depth_metrics, depth_sums
from ..models.inputs import input_names
from ..models.load import num_channels
from ..models.tasks import KINDS
from ..scoring.scores import Cell, Score
from ..scoring.sums import device_of_sums
from .common import check_rows, leave_ensemble_out
from .pictures import DepthMap
from .protocol import GivenData, Loss

logger = logging.get_logger(__name__)

PIXELS = 1024
"""Pixels of an image that a Gauss-Newton step looks at. All known pixels count for scores."""

NOTES = {
    NONE: "Predictions were taken as depth in the unit of the labels, without any alignment.",
    DEPTH: "The model predicts depth up to scale and shift. Each prediction was aligned to the image's known depths by the least "
    "squares scale and shift.",
    INVERSE: "The model predicts inverse depth up to scale and shift. Each prediction was aligned to the image's known inverse depths "
    "by the least squares scale and shift, and then inverted, up to the image's greatest known depth.",
}


class DepthEstimation:
    """
    Scores are errors of depth, at the size of the depth maps.

    Predictions are of shape `(batch, height, width)`, as the model makes them. Labels are depths of shape `(batch, height, width)`:
    see [`~smd_hf.data.depth_maps.DepthCollator`].

    Attributes:
        alignment (`str`): `"none"` for a model of metric depth, else what is aligned: `"depth"` or `"inverse_depth"`.
    """

    kind = KINDS["depth-estimation"]
    keeps_labels = keeps_predictions = False
    alignment = NONE
    processor: Any = None

    def configure(self, model: Any, args: EvolutionArguments) -> None:
        self.alignment = getattr(args, "depth_alignment", None) or alignment_of(model.config)
        if isinstance(args, EvolutionArguments) and getattr(model.config, "use_fov_model", False):
            leave_ensemble_out(args, model, "it predicts depth and the field of view together")

    @property
    def metrics(self):
        return depth_metrics(self.alignment)

    @property
    def notes(self) -> tuple[str, ...]:
        return (NOTES[self.alignment],)

    def prepare(self, model: Any, args: EvolutionArguments, given: GivenData) -> PreparedData:
        splits = check_rows(given, self.kind, needs_processor=given.data_collator is None)
        self.processor = given.processing_class
        if self.processor is not None and not hasattr(self.processor, "post_process_depth_estimation"):
            raise SMDError(
                f"The image processor ({type(self.processor).__name__}) has no post_process_depth_estimation, by which a pipeline brings "
                "predictions to the size of the image. Use the image processor that belongs to the model, such as DPTImageProcessor."
            )
        if given.data_collator is not None:
            return PreparedData(given.data_collator, None, None, given.eval_dataset, None)
        reference = next(iter(splits.values()))
        column = find_column(reference, "depth", args.label_column_name, DEPTH_COLUMNS)
        image = find_image_column(reference, args.image_column_name)
        if args.depth_scale is not None and not 0 < args.depth_scale < float("inf"):
            raise SMDError(
                f"depth_scale is {args.depth_scale:g}; expected a positive number, such as 0.001 for millimeters."
            )
        if args.depth_scale is None and self.alignment == NONE:
            _warn_of_integers(reference[0].get(column))
        collator = DepthCollator(
            self.processor,
            image,
            column,
            scale=1.0 if args.depth_scale is None else args.depth_scale,
            channels=num_channels(model),
            input_names=input_names(model),
        )
        return PreparedData(collator, image, None, given.eval_dataset, None, check_row=collator.problem)

    # ---- Reading of outputs ------------------------------------------------------------------------------------------

    def prediction(self, output: Any) -> torch.Tensor:
        depth = output.predicted_depth
        field_of_view = getattr(output, "field_of_view", None)
        if field_of_view is None:
            return depth
        # DepthPro predicts inverse depth for an image that is as wide as its focal length is long.
        return depth * (2 * torch.tan(torch.deg2rad(field_of_view) / 2)).reshape(-1, 1, 1)

    def width(self, model: Any) -> int:
        return PIXELS

    def cell(self, prediction: torch.Tensor, labels: torch.Tensor, keep: bool) -> Cell:
        rows = []
        for single, label in zip(prediction, labels):
            depth = cropped(label)
            found, depth = self.resized(single, depth.shape), depth.to(prediction.device)
            known = is_known(depth)
            device = device_of_sums(depth.device)
            found, depth = (each[known].to(device).double() for each in (found, depth))
            rows.append(depth_sums(found, depth, self.alignment))
        sums = np.array(rows, dtype=np.float64).reshape(len(prediction), 4)
        return Cell(None, float(sums[:, 0].sum()), bool(torch.isfinite(prediction).all()), sums=sums)

    def resized(self, prediction: torch.Tensor, size: Any) -> torch.Tensor:
        """One image's prediction in the size of its depth map, as `pipeline` brings it to the size of the image."""
        prediction, size = prediction[None].float(), tuple(size)
        if self.processor is None:
            return F.interpolate(prediction[None], size, mode="bicubic", align_corners=False)[0, 0]
        output = SimpleNamespace(predicted_depth=prediction, field_of_view=None)
        # By place, as in the pipeline: ZoeDepth calls the sizes otherwise.
        [found] = self.processor.post_process_depth_estimation(output, [size])
        return found["predicted_depth"].reshape(size)

    def flipped(self, parent: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
        """The mean change of a pixel, in units of its own depth, or of the range of a relative prediction; 1 at most."""
        first, second = (each.float().flatten(1) for each in (parent, child))
        reach = first.abs() if self.alignment == NONE else first.amax(1, True) - first.amin(1, True)
        return ((second - first).abs() / reach.clamp_min(1e-12)).clamp_max(1).double().mean(-1)

    def sampled(self, prediction: torch.Tensor, batch: Batch) -> torch.Tensor:
        rows = []
        for single, label, place in zip(prediction, batch.labels, self._places(batch)):
            found = self.resized(single, cropped(label).shape)
            rows.append(found.flatten()[place.to(found.device)])
        return torch.stack(rows)

    def sampled_labels(self, batch: Batch) -> torch.Tensor:
        depths = [cropped(label).flatten()[place] for label, place in zip(batch.labels, self._places(batch))]
        return torch.stack([torch.where(is_known(each), each, 0.0) for each in depths])

    def _places(self, batch: Batch) -> list[torch.Tensor]:
        """Of each image, which of its known pixels are looked at: the same for all variants and on any process."""
        drawn = keyed_generator("depth pixels", batch.number).random(PIXELS)
        places = []
        for label in batch.labels:
            known = is_known(cropped(label)).flatten().nonzero()[:, 0]
            known = known if len(known) else torch.zeros(1, dtype=torch.int64, device=label.device)
            places.append(known[torch.from_numpy((drawn * len(known)).astype(np.int64)).to(known.device)])
        return places

    # ---- Loss and metrics --------------------------------------------------------------------------------------------

    def loss(self, args: EvolutionArguments) -> Loss:
        of_images = depth_loss(self.alignment)
        return lambda predictions, depths: of_images(predictions, depths).sum()

    def picture(self, prediction: torch.Tensor, labels: torch.Tensor) -> tuple[DepthMap, DepthMap]:
        depth = cropped(labels[0])
        found = self.resized(prediction[0], depth.shape).cpu().numpy()
        truth = torch.where(is_known(depth), depth, float("nan")).double().cpu().numpy()
        if self.alignment == INVERSE:
            truth = 1 / truth
        # Only depths in a unit can be compared by one scale of colors.
        limits = (float(np.nanmin(truth)), float(np.nanmax(truth))) if self.alignment == NONE else None
        return DepthMap(truth, limits), DepthMap(found, limits)

    def measured(self, score: Score) -> DepthMeasure:
        return DepthMeasure(score.sums)


def alignment_of(config: Any) -> str:
    """What the predictions of a model mean, by its configuration."""
    kind = getattr(config, "depth_estimation_type", None)
    if config.model_type == "prompt_depth_anything":
        # Without a prompt, as in a pipeline, it predicts depth between 0 and 1.
        return DEPTH
    if config.model_type == "dpt":
        backbone = getattr(config.backbone_config, "model_type", None)
        # MiDaS predicts inverse depth; DINOv2's heads for NYU and KITTI predict meters.
        return NONE if backbone == "dinov2" else INVERSE
    return INVERSE if kind == "relative" else NONE


def cropped(label: torch.Tensor) -> torch.Tensor:
    """A depth map of a batch without what lies beyond the image's edge."""
    return label[: int((label[:, 0] != OUTSIDE).sum()), : int((label[0] != OUTSIDE).sum())]


def _warn_of_integers(value: Any) -> None:
    try:
        depth = as_depth_map(value)
    except SMDError:  # reported with its index, when rows are checked
        return
    if depth.dtype.kind in "iu":
        logger.warning(
            f"The depth maps hold integers (up to {depth.max()} in the first), and the model predicts depth in its own unit, usually "
            "meters: they were compared as they are. Set depth_scale if the maps have another unit: 0.001 for millimeters."
        )
