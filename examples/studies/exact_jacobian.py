"""
What limits `adapt`: few directions a generation, or the step itself? The same generations, with the exact Jacobian of the norms.

A generation of `adapt` measures the loss along one direction a child. Here, products with the Jacobian of all weights of the norms and
with its transpose take the place of the children: Lanczos' method finds the step that Gauss-Newton takes in the span of all of
them. Images, lengths, selection, and what is done with the head are those of `adapt`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from baselines import PASSES_OF_A_GRADIENT, Coordinates, Images
from torch import nn
from torch.func import functional_call, jvp
from torch.nn import functional as F

from smd_hf.search.gauss_newton import STEPS

DAMPING = tuple(10.0**power for power in range(-5, 1))
"""Values to try, in units of the greatest curvature that was found."""

PASSES_OF_A_PRODUCT = 2 + PASSES_OF_A_GRADIENT
"""A forward pass with a tangent, and a forward and a backward pass, in forward passes."""


@dataclass
class Curvature:
    """
    Gradient and Gauss-Newton curvature of the mean cross-entropy of images, in coordinates of the chosen weights.

    Args:
        model (`torch.nn.Module`): in eval mode, with logits.
        coordinates ([`Coordinates`]): its weights as a vector, in units of their tensors' standard deviations.
        images ([`Images`]): those of a generation.
        batch_size (`int`): images a batch.
    """

    model: nn.Module
    coordinates: Coordinates
    images: Images
    batch_size: int

    def __post_init__(self) -> None:
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self.names = [names[id(parameter)] for parameter in self.coordinates.parameters]
        self.model.requires_grad_(False)

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(*(each.split(self.batch_size) for each in (self.images.pixels, self.images.labels)))

    def _logits(self, pixels: torch.Tensor) -> Callable[..., torch.Tensor]:
        def logits(*weights: torch.Tensor) -> torch.Tensor:
            return functional_call(self.model, dict(zip(self.names, weights)), kwargs={"pixel_values": pixels}).logits

        return logits

    def _transposed(self, logits: Callable[..., torch.Tensor], cotangent: Callable) -> torch.Tensor:
        """J' times a cotangent, which is made from the logits, as a vector of coordinates."""
        weights = [each.detach().clone().requires_grad_() for each in self.coordinates.parameters]
        found = logits(*weights)
        slopes = torch.autograd.grad(found, weights, cotangent(found.detach()))
        return self.coordinates.scale * torch.cat([each.flatten() for each in slopes])

    def gradient(self) -> torch.Tensor:
        total = torch.zeros(len(self.coordinates), dtype=torch.float64)
        for pixels, labels in self._batches():

            def slope(found: torch.Tensor, labels: torch.Tensor = labels) -> torch.Tensor:
                return found.softmax(-1) - F.one_hot(labels, found.shape[-1])

            total += self._transposed(self._logits(pixels), slope).cpu()
        return total / len(self.images.labels)

    def product(self, direction: torch.Tensor) -> torch.Tensor:
        """J' (diag p - p p') J times a vector of coordinates."""
        sizes = [each.numel() for each in self.coordinates.parameters]
        scaled = self.coordinates.scale * direction.to(self.coordinates.scale)
        weights = [each.detach() for each in self.coordinates.parameters]
        tangents = [part.view_as(each) for part, each in zip(scaled.split(sizes), weights)]
        total = torch.zeros(len(self.coordinates), dtype=torch.float64)
        for pixels, _ in self._batches():
            logits = self._logits(pixels)
            with torch.no_grad():
                _, change = jvp(logits, tuple(weights), tuple(tangents))

            def curved(found: torch.Tensor, change: torch.Tensor = change) -> torch.Tensor:
                shares = found.softmax(-1)
                return shares * (change - (shares * change).sum(-1, keepdim=True))

            total += self._transposed(logits, curved).cpu()
        return total / len(self.images.labels)


def krylov_steps(
    product: Callable[[torch.Tensor], torch.Tensor], gradient: torch.Tensor, products: int
) -> dict[float, torch.Tensor]:
    """
    The solutions c of (H + lambda I) c = -g in the Krylov space of H and g, by Lanczos' method with full orthogonalisation.

    Args:
        product (`Callable`): H times a vector.
        gradient (`torch.Tensor`): g, float64, of shape `(d,)`.
        products (`int`): how often it may be called.

    Returns:
        dict of `float` to `torch.Tensor`: the steps by damping, whose unit is the greatest eigenvalue found.
    """
    basis = [gradient / gradient.norm()]
    rows = []
    for _ in range(products):
        image = product(basis[-1])
        rows.append(image)
        for _ in range(2):
            for each in basis:
                image = image - (each @ image) * each
        if image.norm() < 1e-10 * rows[-1].norm():
            break
        basis.append(image / image.norm())
    space = torch.stack(basis[: len(rows)])
    projected = space @ torch.stack(rows).T
    values, vectors = torch.linalg.eigh((projected + projected.T) / 2)
    rotated = vectors.T @ (space @ gradient)
    unit = float(values.max())
    return {damping: -(vectors @ (rotated / (values.clamp_min(0) + damping * unit))) @ space for damping in DAMPING}


def generation(
    model: nn.Module, images: Images, patterns: list[str], loss: Callable[[], float], products: int, batch_size: int
) -> float:
    """
    Takes the step that the selection images like best, or none.

    Args:
        loss (`Callable`): of the model as it is, on the selection images.

    Returns:
        `float`: the cost, in images passed forward.
    """
    coordinates = Coordinates(model, patterns)
    curvature = Curvature(model, coordinates, images, batch_size)
    before = loss()
    steps = krylov_steps(curvature.product, curvature.gradient(), products)

    def loss_at(step: torch.Tensor) -> float:
        coordinates.set(step.to(coordinates.scale))
        return float(np.nan_to_num(loss(), nan=np.inf))

    tried = {damping: loss_at(step) for damping, step in steps.items()}
    best = min(tried, key=lambda damping: tried[damping])
    found = {1.0: tried[best]} | {length: loss_at(length * steps[best]) for length in STEPS}
    length = min(found, key=lambda each: found[each])
    coordinates.set((length if found[length] < before else 0.0) * steps[best].to(coordinates.scale))
    print(f"loss {before:.4f}, then {found[length]:.4f}: damping {best:g}, length {length:g}", flush=True)
    return len(images.labels) * (PASSES_OF_A_GRADIENT + products * PASSES_OF_A_PRODUCT)
