"""Running statistics of normalisation layers (BatchNorm, and the frozen BatchNorm of detectors): found, re-estimated, and put back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

MEAN, VARIANCE = "running_mean", "running_var"


class Moments(NamedTuple):
    """
    What goes into a layer, over images and pixels.

    Args:
        count (`int`): of how many numbers a channel.
        mean, variance (`numpy.ndarray`): float64, of shape `(channels,)`; the variance divides by `count`.
    """

    count: int
    mean: np.ndarray
    variance: np.ndarray


class NormStatistics:
    """
    The layers of a model that normalise by running statistics.

    Args:
        model (`torch.nn.Module`): in eval mode.

    Attributes:
        layers (dict of `str` to `torch.nn.Module`): by name. Empty for a model without such layers.
    """

    def __init__(self, model: nn.Module):
        self.layers: dict[str, Any] = {
            name: layer for name, layer in model.named_modules() if _has(layer, MEAN) and _has(layer, VARIANCE)
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The statistics as they are, float64 and of shape `(channels,)`, by the names of their buffers."""
        return {
            f"{name}.{part}": getattr(layer, part).detach().cpu().double().numpy().copy()
            for name, layer in self.layers.items()
            for part in (MEAN, VARIANCE)
        }

    @torch.no_grad()
    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Puts statistics into the model, in place and in the dtype of the model."""
        for name, array in arrays.items():
            layer, _, part = name.rpartition(".")
            tensor = getattr(self.layers[layer], part)
            tensor.copy_(torch.from_numpy(array).to(tensor.dtype))  # not every device has float64

    @contextmanager
    def by_batch(self) -> Iterator[dict[str, list[Moments]]]:
        """
        Within the context, each layer normalises by the statistics of the batch that it is given, so that layers behind it see what
        they would see after the change. When it ends, the dict that is returned has, by the layer's name, the moments of each call.

        Nothing else is as in training: dropout and stochastic depth stay off. Afterwards the model is as it was.
        """
        before = {
            (name, part): getattr(layer, part).clone()
            for name, layer in self.layers.items()
            for part in (MEAN, VARIANCE)
        }
        found: list[tuple[str, int, torch.Tensor, torch.Tensor]] = []
        seen: dict[str, list[Moments]] = {}

        def hook(name: str):
            @torch.no_grad()
            def normalise_by_batch(layer: Any, args: tuple[Any, ...]) -> None:
                inputs = args[0].float()
                others = [place for place in range(inputs.ndim) if place != 1]
                # On the CPU, this takes a third of the time of torch.var_mean.
                mean = inputs.mean(others, keepdim=True)
                variance = (inputs - mean).square_().mean(others)
                mean = mean.flatten()
                getattr(layer, MEAN).copy_(mean)
                getattr(layer, VARIANCE).copy_(variance)
                count = inputs.numel() // max(1, inputs.shape[1])
                found.append((name, count, mean, variance))

            return normalise_by_batch

        hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in self.layers.items()]
        try:
            yield seen
        finally:
            for each in hooks:
                each.remove()
            with torch.no_grad():
                for (name, part), tensor in before.items():
                    getattr(self.layers[name], part).copy_(tensor)
            # Not in the hooks: kept amid what a pass frees, they would leave holes too small for the next pass.
            for name, count, *moments in found:
                mean, variance = (each.cpu().double().numpy() for each in moments)
                seen.setdefault(name, []).append(Moments(count, mean, variance))


def _has(layer: nn.Module, part: str) -> bool:
    tensor = dict(layer.named_buffers(recurse=False)).get(part)
    return tensor is not None and tensor.is_floating_point()


def pooled(batches: Sequence[Mapping[str, Sequence[Moments]]]) -> dict[str, np.ndarray]:
    """
    The statistics of all images from those of batches, added up in their order: the variance is the mean variance within batches
    and the variance of their means.

    Args:
        batches (sequence of mapping): of each batch, the moments by the layer's name.

    Returns:
        dict of `str` to `numpy.ndarray`: by the names of the buffers, as [`NormStatistics.arrays`] has them. A layer that no batch has
        reached, or that was given one number a channel, is left out.
    """
    found = {}
    for name in dict.fromkeys(name for batch in batches for name in batch):
        parts = [each for batch in batches for each in batch.get(name, ())]
        counts = np.array([each.count for each in parts], dtype=np.float64)
        means, variances = (np.stack([getattr(each, part) for each in parts]) for part in ("mean", "variance"))
        if counts.sum() < 2:
            continue
        shares = (counts / counts.sum())[:, None]
        mean = (shares * means).sum(axis=0)
        found[f"{name}.{MEAN}"] = mean
        found[f"{name}.{VARIANCE}"] = (shares * (variances + (means - mean) ** 2)).sum(axis=0)
    return found


def mixed(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
    """`before`, with `share` of the way to `after` gone. Variances are mixed, not standard deviations."""
    return {name: (1 - share) * before[name] + share * array for name, array in after.items()}
