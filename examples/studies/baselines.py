"""
What `budget.py` compares evolution with, each as a generator of steps: a temperature, plain evolution strategies, MeZO-style
SPSA and SGD.

Every `next()` makes one step, leaves the new weights in the model and gives the number of images that the step cost, counted
as forward passes. Step sizes are arguments (`rate`); they fall linearly to 0 over a `total` of such images, where it is given.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from smd_hf.data.batches import ImageBatches
from smd_hf.search.mutation import tensor_scale
from smd_hf.search.parameter_space import parameter_space

Loss = Callable[[torch.Tensor], float]
"""Of a vector of coordinates, on one minibatch."""

Forward = Callable[[torch.Tensor], torch.Tensor]
"""From pixels to logits, by the weights that the model has now."""

PASSES_OF_A_GRADIENT = 3
"""Forward and backward through an image, in forward passes: the usual count, two for the backward pass."""


@dataclass
class Images:
    """
    Training images in memory, decoded and transformed.

    Args:
        pixels (`torch.Tensor`): of shape `(n, channels, height, width)`.
        labels (`torch.Tensor`): int64, of shape `(n,)`.
    """

    pixels: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def read(cls, batches: ImageBatches, device: torch.device) -> "Images":
        parts = [(batch.inputs(device, torch.float32)["pixel_values"], batch.labels.to(device)) for batch in batches]
        return cls(*(torch.cat(columns) for columns in zip(*parts)))

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Without end, in a new order each time round; what does not fill a minibatch is left out that time."""
        size = min(size, len(self.labels))
        while True:
            order = torch.randperm(len(self.labels), generator=generator).to(self.labels.device)
            for rows in order[: len(order) // size * size].split(size):
                yield self.pixels[rows], self.labels[rows]


class Coordinates:
    """
    The chosen weights as one vector z: each is its first value plus z times the standard deviation of its tensor.

    So that a step has the same units as a child of relative sigma, for all that the baselines do with it.

    Args:
        model (`torch.nn.Module`): whose weights are set.
        patterns (sequence of `str`): which, as in `mutable_parameters`.
    """

    def __init__(self, model: nn.Module, patterns: Sequence[str]):
        parameters = dict(model.named_parameters())
        self.parameters = [parameters[name] for name in parameter_space(model, list(patterns)).names]
        self.start = parameters_to_vector(self.parameters).detach().clone()
        self.scale = torch.cat([each.new_full((each.numel(),), tensor_scale(each)) for each in self.parameters])

    def __len__(self) -> int:
        return len(self.start)

    @torch.no_grad()
    def set(self, z: torch.Tensor) -> None:
        """Puts the weights at z into the model, where they are: what has compiled it knows where that is."""
        values = (self.start + self.scale * z).split([each.numel() for each in self.parameters])
        for parameter, new in zip(self.parameters, values):
            parameter.copy_(new.view_as(parameter))

    def noise(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(len(self), generator=generator).to(self.start.device)


def centred_ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks of values, from -0.5 for the lowest to 0.5 for the highest."""
    return values.argsort().argsort().to(values.dtype) / (len(values) - 1) - 0.5


def strategies_update(loss: Loss, z: torch.Tensor, noise: torch.Tensor, sigma: float, rate: float) -> torch.Tensor:
    """
    One update of OpenAI's evolution strategies (Salimans et al. 2017, arXiv 1703.03864), mirrored, with centred ranks.

    Args:
        loss (`Callable`): of a vector like `z`.
        z (`torch.Tensor` of shape `(d,)`), noise (`torch.Tensor` of shape `(pairs, d)`): where, and which directions.
        sigma (`float`), rate (`float`): z + rate / (n sigma) sum F_i eps_i, over all n = 2 pairs.
    """
    losses = torch.tensor([loss(z + sign * sigma * each) for each in noise for sign in (1, -1)], dtype=torch.float64)
    fitness = centred_ranks(-losses).to(z)
    return z + rate / (len(losses) * sigma) * ((fitness[::2] - fitness[1::2]) @ noise)


def spsa_update(loss: Loss, z: torch.Tensor, noise: torch.Tensor, sigma: float, rate: float) -> torch.Tensor:
    """One step against the measured slope along one direction, `noise` of shape `(d,)` (MeZO, arXiv 2305.17333, algorithm 1)."""
    slope = (loss(z + sigma * noise) - loss(z - sigma * noise)) / (2 * sigma)
    return z - rate * slope * noise


def decayed(rate: float, spent: int, total: float | None) -> float:
    """The rate after `spent` images."""
    return rate if total is None else rate * max(0.0, 1 - spent / total)


def _forward_steps(
    model: nn.Module,
    coordinates: Coordinates,
    minibatches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    update: Callable[[Loss, torch.Tensor, float], torch.Tensor],
    passes: int,
    rate: float,
    total: float | None,
    forward: Forward | None,
) -> Iterator[int]:
    """Steps by an update of z from losses on one minibatch, each of which it is passed through so often."""
    forward = forward or (lambda pixels: model(pixel_values=pixels).logits)
    z = torch.zeros_like(coordinates.start)
    spent = 0
    for pixels, labels in minibatches:

        @torch.no_grad()
        def loss(z: torch.Tensor, pixels: torch.Tensor = pixels, labels: torch.Tensor = labels) -> float:
            coordinates.set(z)
            return float(F.cross_entropy(forward(pixels).double(), labels))

        z = update(loss, z, decayed(rate, spent, total))
        coordinates.set(z)
        spent += passes * len(labels)
        yield passes * len(labels)


@torch.no_grad()
def restated(model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]]) -> nn.Module:
    """The model, in eval mode, with the statistics of its BatchNorm layers taken from these batches of its inputs."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for inputs in batches if norms else ():
        model(**inputs)
    return model.eval()


@torch.no_grad()
def temperature(model: nn.Module, images: Images, *, seed: int = 0, total: float | None = None) -> Iterator[int]:
    """One step: all logits times the number that is best for the NLL (Guo et al. 2017), put into the weights of a linear head."""
    pixels, labels = images.pixels, images.labels
    logits = torch.cat([model.eval()(pixel_values=batch).logits.double() for batch in pixels.split(256)])

    def loss(exponent: float) -> float:
        return float(F.cross_entropy(logits * math.exp(exponent), labels))

    factor = math.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x)
    parameters = dict(model.named_parameters())
    for name in parameter_space(model, ["head"]).names:
        parameters[name].mul_(factor)
    yield len(labels)


def evolution_strategies(
    model: nn.Module,
    images: Images,
    *,
    parameters: Sequence[str],
    rate: float,
    sigma: float = 0.1,
    pairs: int = 8,
    batch_size: int = 128,
    seed: int = 0,
    total: float | None = None,
    forward: Forward | None = None,
) -> Iterator[int]:
    """Dense evolution strategies; all children of a step see the same minibatch. `forward` makes the model's logits, if not the model."""
    generator = torch.Generator().manual_seed(seed)
    coordinates = Coordinates(model.eval(), parameters)

    def update(loss: Loss, z: torch.Tensor, rate: float) -> torch.Tensor:
        noise = torch.stack([coordinates.noise(generator) for _ in range(pairs)])
        return strategies_update(loss, z, noise, sigma, rate)

    minibatches = images.minibatches(batch_size, generator)
    return _forward_steps(model, coordinates, minibatches, update, 2 * pairs, rate, total, forward)


def spsa(
    model: nn.Module,
    images: Images,
    *,
    parameters: Sequence[str],
    rate: float,
    sigma: float = 0.03,
    batch_size: int = 128,
    seed: int = 0,
    total: float | None = None,
    forward: Forward | None = None,
) -> Iterator[int]:
    """MeZO: simultaneous perturbation, two passes over a minibatch a step. `forward` makes the model's logits, if not the model."""
    generator = torch.Generator().manual_seed(seed)
    coordinates = Coordinates(model.eval(), parameters)

    def update(loss: Loss, z: torch.Tensor, rate: float) -> torch.Tensor:
        return spsa_update(loss, z, coordinates.noise(generator), sigma, rate)

    minibatches = images.minibatches(batch_size, generator)
    return _forward_steps(model, coordinates, minibatches, update, 2, rate, total, forward)


def sgd(
    model: nn.Module,
    images: Images,
    *,
    parameters: Sequence[str],
    rate: float,
    momentum: float = 0.9,
    batch_size: int = 64,
    seed: int = 0,
    total: float | None = None,
) -> Iterator[int]:
    """Gradient training with frozen BatchNorm statistics and no augmentation: the images are those that evolution sees."""
    generator = torch.Generator().manual_seed(seed)
    names = parameter_space(model.eval(), list(parameters)).names
    model.requires_grad_(False)
    chosen = [model.get_parameter(name).requires_grad_() for name in names]
    optimizer = torch.optim.SGD(chosen, lr=rate, momentum=momentum)
    spent = 0
    for pixels, labels in images.minibatches(batch_size, generator):
        optimizer.param_groups[0]["lr"] = decayed(rate, spent, total)
        F.cross_entropy(model(pixel_values=pixels).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        spent += PASSES_OF_A_GRADIENT * len(labels)
        yield PASSES_OF_A_GRADIENT * len(labels)
