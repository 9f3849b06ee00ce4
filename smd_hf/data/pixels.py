"""Pixel values in a quarter of the memory: the uint8 that they came from, where decoding them is exact."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

Formula = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]

# The orders in which image processors rescale and normalise: they round differently in the last bit.
FORMULAS: tuple[Formula, ...] = (
    lambda pixels, mean, std, rescale: (pixels * rescale).sub_(mean).div_(std),
    lambda pixels, mean, std, rescale: (pixels / (1 / rescale)).sub_(mean).div_(std),
    lambda pixels, mean, std, rescale: (pixels - mean * (1 / rescale)).div_(std * (1 / rescale)),
)


_CHOOSING = threading.Lock()


class PixelCodec:
    """
    Encodes normalised pixel values as uint8, and decodes them bit for bit.

    Args:
        mean, std (sequence of `float`): of each channel, by which the processor normalises.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], rescale: float):
        self.mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
        self.rescale = rescale
        self._formula: Formula | None = None

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """
        The uint8 from which [`PixelCodec.decode`] gives these values, bit for bit; `None` where there is none.

        Args:
            pixel_values (`torch.Tensor`): float32, of shape `(batch, channels, height, width)`, on the CPU.
        """
        if (
            pixel_values.ndim != 4
            or pixel_values.dtype != torch.float32
            or len(self.mean) not in (1, pixel_values.shape[1])
        ):
            return None
        pixels = ((pixel_values * self.std + self.mean) / self.rescale).round_().clamp_(0, 255).to(torch.uint8)
        chosen = self._formula
        for formula in FORMULAS if chosen is None else (chosen,):
            if torch.equal(formula(pixels, self.mean, self.std, self.rescale), pixel_values):
                return pixels if chosen is not None or self._agreed(formula) else self.encode(pixel_values)
        return None

    def _agreed(self, formula: Formula) -> bool:
        """Whether all batches use this formula: threads may have found different ones for the first batches."""
        with _CHOOSING:
            self._formula = self._formula or formula
            return self._formula is formula

    def decode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised float32 pixel values from uint8, on the device of the latter."""
        assert self._formula is not None  # encode comes first
        return self._formula(pixels, self.mean.to(pixels.device), self.std.to(pixels.device), self.rescale)


def codec_for(processor: Any) -> PixelCodec | None:
    """The codec of an image processor of transformers, or of timm's wrapper; `None` where it has no known normalisation."""
    processor = getattr(processor, "image_processor", processor)
    config = getattr(processor, "data_config", None)
    if config is not None:
        return PixelCodec(config["mean"], config["std"], 1 / 255)
    if not getattr(processor, "do_rescale", False):
        return None
    if not getattr(processor, "do_normalize", False):
        return PixelCodec([0.0], [1.0], processor.rescale_factor)
    return PixelCodec(processor.image_mean, processor.image_std, processor.rescale_factor)
