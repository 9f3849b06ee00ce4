"""
Metrics of depth estimation, from pixels whose depth is known.

A metric model predicts meters, and is scored as it is. A relative model predicts depth, or its inverse, up to scale and shift: each
of its predictions is first aligned to the image's known depths by the least squares scale and shift (Ranftl et al. 2020).
"""

from collections.abc import Callable

import numpy as np
import torch

from .resampling import Metric

NONE, DEPTH, INVERSE = "none", "depth", "inverse_depth"
"""What a prediction is: depth in the unit of the labels, depth up to scale and shift, or inverse depth up to scale and shift."""

NEAREST = 1e-3
"""Smaller depths count as this one, so that there is a logarithm; in meters, if labels are."""
DELTA = 1.25
"""A pixel is right if its depth is off by less than this factor."""

LOSSES = {
    NONE: "squared error of log depth",
    DEPTH: "relative squared error of aligned depth",
    INVERSE: "relative squared error of aligned inverse depth",
}


def depth_metrics(alignment: str) -> tuple[Metric, ...]:
    """The metrics, the most important first; `alignment` decides on the loss."""
    return (
        Metric("abs_rel", "absolute relative error (%)", 100, 2, greater_is_better=False),
        Metric("rmse", "RMSE (unit of the labels)", 1, 4, greater_is_better=False, hub_name="rmse"),
        Metric("delta1", "pixels within a factor of 1.25 (%)", 100, 2),
        Metric("loss", LOSSES[alignment], 1, 4, greater_is_better=False),
    )


def fitted(prediction: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """
    The predictions times the scale plus the shift that make them nearest to the targets, by least squares over the known pixels.

    Args:
        prediction, target (`torch.Tensor`): of shape `(..., pixels)`.
        known (`torch.Tensor`): 1 for pixels that count and 0 for others, of the same shape and type.
    """
    count = known.sum(-1, keepdim=True).clamp_min(1)
    mean = (prediction * known).sum(-1, keepdim=True) / count
    goal = (target * known).sum(-1, keepdim=True) / count
    apart = (prediction - mean) * known
    spread = (apart * apart).sum(-1, keepdim=True)
    # A constant prediction has no scale.
    scale = (apart * (target - goal)).sum(-1, keepdim=True) / spread.clamp_min(1e-30)
    return goal + scale * (prediction - mean)


def depth_loss(alignment: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """
    The loss of each image, from predictions and depths of shape `(..., pixels)`, where a depth of 0 is unknown.

    It is differentiable in the predictions, also through scale and shift. With an alignment, the squared error is divided by the mean
    square of what is predicted, so that images of near and far scenes count alike.
    """

    def loss(prediction: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        known = (depth > 0).to(prediction.dtype)
        safe = torch.where(depth > 0, depth, 1.0).to(prediction.dtype)
        if alignment == NONE:
            return _mean((prediction.clamp_min(NEAREST).log() - safe.log()) ** 2, known)
        target = 1 / safe if alignment == INVERSE else safe
        error = _mean((fitted(prediction, target, known) - target) ** 2, known)
        return error / _mean(target**2, known).clamp_min(1e-30)

    return loss


def _mean(numbers: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    return (numbers * known).sum(-1) / known.sum(-1).clamp_min(1)


def depth_of(prediction: torch.Tensor, depth: torch.Tensor, alignment: str) -> torch.Tensor:
    """
    The predicted depth of an image's known pixels, of shape `(pixels,)`, aligned if need be.

    Aligned inverse depth may fall to 0 and below: such pixels get the image's greatest known depth.
    """
    if alignment != NONE:
        target = 1 / depth if alignment == INVERSE else depth
        prediction = fitted(prediction, target, torch.ones_like(prediction))
    if alignment == INVERSE:
        return 1 / torch.maximum(prediction, 1 / depth.max())
    return prediction.clamp_min(NEAREST)


def depth_sums(prediction: torch.Tensor, depth: torch.Tensor, alignment: str) -> list[float]:
    """
    What the metrics need of one image: loss, absolute relative error, RMSE, and the share of pixels within `DELTA`.

    Args:
        prediction, depth (`torch.Tensor`): of its known pixels, float64, of shape `(pixels,)`.
    """
    if not len(depth):
        return [0.0] * 4
    found = depth_of(prediction, depth, alignment)
    off = torch.maximum(found / depth, depth / found)
    numbers = torch.stack(
        [
            depth_loss(alignment)(prediction, depth),
            ((found - depth).abs() / depth).mean(),
            ((found - depth) ** 2).mean().sqrt(),
            (off < DELTA).to(depth.dtype).mean(),
        ]
    )
    return numbers.tolist()


class DepthMeasure:
    """The metrics of one model, each the mean over images: see [`~smd_hf.metrics.resampling.Measured`]."""

    def __init__(self, sums: np.ndarray):
        self.sums = sums

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        means = weights @ self.sums / weights.sum(-1, keepdims=True)
        return dict(zip(("loss", "abs_rel", "rmse", "delta1"), means.T))
