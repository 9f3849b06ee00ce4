"""
The step of children and head together: the head is solved for exactly, in the coordinates that matter most to it.

Children change the logits by D c, the head by V phi, with phi the leading coordinates of the features and a constant. The step
minimises the loss's second-order model over both, c and V, so each child's step is what is worth taking when the head
follows (variable projection, Golub and Pereyra 1973). Conjugate gradients need products alone: those of the children are
summed while they are scored, those of the head are taken from features and probabilities. Nothing of the size of head x head
is made.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ..gauss_newton import GaussNewtonSums
from ..losses import CrossEntropy, Loss, hessian_product
from ..mutation import Child
from . import fit
from .fit import HeadFits
from .linear import chunks

MAX_CROSS_NUMBERS = 2**19
"""How many products of children and head are summed at once: directions x classes x coordinates."""

MAX_STEPS = 200
"""Limit on the steps of conjugate gradients."""

TOLERANCE = 1e-7
"""They end when the residual has so small a share of its first length."""


def num_coordinates(directions: int, classes: int, features: int) -> int:
    """How many coordinates of the features are coupled to the children: all, where the sums are small enough."""
    return max(0, min(features, MAX_CROSS_NUMBERS // max(1, directions * classes) - 1))


class JointSums(GaussNewtonSums):
    """
    [`GaussNewtonSums`], and how each child's change and the head's go together.

    The sum over images of (l'' D_i) phi', for each direction i, follows its row of H and g: float64, of shape
    `(directions, directions + 1 + classes * coordinates)`.

    Args:
        children (sequence of [`Child`]), loss ([`Loss`]): as for [`GaussNewtonSums`].
        classes (`numpy.ndarray`): the classes whose weights the head's step changes, int64.
        phi (dict of `int` to `torch.Tensor`): leading coordinates of the parent's features, by number of the batch: float32, of
            shape `(batch, coordinates)`.
    """

    def __init__(self, children: Sequence[Child], loss: Loss, classes: np.ndarray, phi: dict[int, torch.Tensor]):
        super().__init__(children, loss)
        self.classes = classes
        self.phi = phi
        [self.width] = {each.shape[1] for each in phi.values()}
        self.shape = (len(self.plus), len(self.plus) + 1 + len(classes) * self.width)

    def extra(self, curved: torch.Tensor, number: int, rows: slice) -> torch.Tensor:
        phi = self.phi[number][rows].to(curved.device, curved.dtype)
        return torch.einsum("mbk,bq->mkq", curved[..., self.classes], phi).flatten(1)

    def cross(self) -> np.ndarray:
        """Of shape `(directions, classes * coordinates)`."""
        assert self.total is not None
        return self.total[:, len(self.plus) + 1 :]


class HeadModel:
    """
    The second-order model of a fit's objective at a head, in its leading coordinates: sums over images, not means.

    Args:
        fits ([`HeadFits`]): the fit.
        numbers (`numpy.ndarray`): the head, as numbers of the fit.
        pull (`float`): strength of its pull.
        width (`int`): number of coordinates, with the constant if the head has a bias.
        images (`int`): how many images the sums are for.

    Attributes:
        gradient (`numpy.ndarray`): of shape `(classes * width,)`.
        diagonal (`numpy.ndarray`): roughly the diagonal of the curvature, of the same shape.
    """

    def __init__(self, fits: HeadFits, numbers: np.ndarray, pull: float, width: int, images: int):
        self.fits = fits
        self.share = images / len(fits.labels)
        self.phi = leading(fits.centred, width, None if fits.start.bias is not None else fits.offsets)
        self.weight, self.shift = fits.split(numbers)
        _, gradient = fits.objective(pull)(numbers)
        self.gradient = images * self._leading_numbers(gradient)
        has_bias = fits.start.bias is not None
        pulls = np.full(width, pull * fits.coordinates.scale)
        if has_bias:
            pulls[-1] = fit.BIAS_PULL
        self.pulls = images * pulls
        self._chances = self._all_chances() if isinstance(fits.loss, CrossEntropy) and fits.loss.plain else None
        second = (self.phi.double() ** 2).mean(0).numpy()
        self.diagonal = (images * np.outer(fits.spread(numbers)[fits.classes], second) + self.pulls).ravel()

    def product(self, step: np.ndarray) -> np.ndarray:
        """The curvature times a step, of shape `(classes * width,)`."""
        fits, rows_of = self.fits, step.reshape(len(self.fits.classes), -1)
        step32, total = torch.from_numpy(rows_of).float(), torch.zeros(rows_of.shape, dtype=torch.float64)
        for rows in chunks(len(self.phi), fits.num_labels):
            phi = self.phi[rows]
            change = phi @ step32.T
            if self._chances is not None:
                curved = self._chances[rows] * change
                curved -= self._chances[rows] * curved.sum(1, keepdim=True)
            else:
                wide = torch.zeros((len(phi), fits.num_labels), dtype=torch.float64)
                wide[:, fits.classes] = change.double()
                logits = fits.logits(self.weight, self.shift, rows)
                curved = hessian_product(fits.loss, logits.double(), fits.labels[rows], wide[None])[0][
                    :, fits.classes
                ].float()
            total += curved.T @ phi
        return (self.share * total.numpy() + self.pulls * rows_of).ravel()

    def numbers(self, step: np.ndarray) -> np.ndarray:
        """A step as numbers of the fit."""
        fits, rows_of = self.fits, step.reshape(len(self.fits.classes), -1)
        weight = np.zeros((len(fits.classes), self.weight.shape[1]))
        if fits.start.bias is None:
            weight[:, : rows_of.shape[1]] = rows_of
            return weight.ravel()
        weight[:, : rows_of.shape[1] - 1] = rows_of[:, :-1]
        shift = np.zeros(fits.num_labels)
        shift[fits.classes] = rows_of[:, -1]
        return np.concatenate([weight.ravel(), shift])

    def _leading_numbers(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of the fit in the order of a step."""
        weight, shift = self.fits.split(numbers)
        width = self.phi.shape[1]
        if self.fits.start.bias is None:
            return weight[:, :width].ravel()
        return np.column_stack([weight[:, : width - 1], shift[self.fits.classes]]).ravel()

    def _all_chances(self) -> torch.Tensor:
        """Probabilities of the classes with images: float32, of shape `(n, classes)`."""
        parts = [
            self.fits.logits(self.weight, self.shift, rows).softmax(-1)[:, self.fits.classes].float()
            for rows in chunks(len(self.phi), self.fits.num_labels)
        ]
        return torch.cat(parts)


def leading(centred: torch.Tensor, width: int, offsets: np.ndarray | None = None) -> torch.Tensor:
    """
    Leading coordinates of features as the head's step sees them: with a constant, or not centred if the head has no bias.

    Args:
        centred (`torch.Tensor`): coordinates of features, float32, of shape `(n, num_features)`.
        width (`int`): how many, with the constant.
        offsets (`numpy.ndarray`, *optional*): the coordinates of the mean, for a head without a bias.
    """
    if offsets is not None:
        return centred[:, :width] + torch.from_numpy(offsets[:width]).float()
    return torch.cat([centred[:, : width - 1], torch.ones(len(centred), 1)], 1)


def joint_step(
    curvature: np.ndarray, gradient: np.ndarray, cross: np.ndarray, head: HeadModel, damping: float
) -> tuple[np.ndarray, np.ndarray]:
    """
    Solves for the step of children and head, by conjugate gradients.

    Args:
        curvature (`numpy.ndarray`): H of the children, positive semidefinite, of shape `(n, n)`.
        gradient (`numpy.ndarray`): g of the children, of shape `(n,)`.
        cross (`numpy.ndarray`): of shape `(n, classes * width)`.
        head ([`HeadModel`]): its own part. Its damping is its pull.
        damping (`float`): of the children alone: added to the diagonal of H, greater than 0.

    Returns:
        `tuple` of two `numpy.ndarray`: steps of the children, `(n,)`, and of the head, `(classes * width,)`.
    """
    count = len(gradient)
    damped = curvature + damping * np.eye(count)
    inverse = np.linalg.inv(damped)

    def product(step: np.ndarray) -> np.ndarray:
        c, v = step[:count], step[count:]
        return np.concatenate([damped @ c + cross @ v, cross.T @ c + head.product(v)])

    def preconditioned(residual: np.ndarray) -> np.ndarray:
        return np.concatenate([inverse @ residual[:count], residual[count:] / head.diagonal])

    step = conjugate_gradients(product, preconditioned, -np.concatenate([gradient, head.gradient]))
    return step[:count], step[count:]


def conjugate_gradients(product, preconditioned, right: np.ndarray) -> np.ndarray:
    """Solves product(x) = right; ends early where the matrix is not positive, at the step so far."""
    step, residual = np.zeros_like(right), right
    towards = direction = preconditioned(residual)
    size = first = float(residual @ towards)
    for _ in range(MAX_STEPS):
        if not size > TOLERANCE**2 * first:
            break
        image = product(direction)
        bend = float(direction @ image)
        if not bend > 0:
            break
        step = step + size / bend * direction
        residual = residual - size / bend * image
        towards = preconditioned(residual)
        before, size = size, float(residual @ towards)
        direction = towards + size / before * direction
    return step
