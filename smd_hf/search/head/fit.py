"""
Fits a linear head on features: a convex problem, pulled towards the head that the model has.

Minimises mean loss(features @ W' + b, labels) + pull / 2 * scale * |W - W0|^2 + BIAS_PULL / 2 * |b - b0|^2. The scale is the mean
squared length of the features, an upper bound of the curvature, so that a pull means the same for all models. Of W, only the
rows of classes that have an image change: without one, nothing says where they should go.

L-BFGS searches along the principal axes of the features, each in units of its own curvature. So it needs tens of steps
where it needed hundreds. Products and losses are taken in float32, and their sums over images in float64. Features are read
in chunks, and nothing of the size of head x head is made.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import minimize

from ...parallel.threads import one_thread
from ..losses import CrossEntropy, Loss
from .coordinates import Coordinates
from .linear import LinearHead, chunks

HISTORY = 10
"""Corrections that L-BFGS remembers. Each takes twice the memory of a head."""

BIAS_PULL = 1e-6
"""Strength of the pull to the old bias, which keeps the bias of a class without an image finite, unless another is given."""

STEPS = 300
"""Limit on the steps of L-BFGS."""

TOLERANCE = 1e-6
"""A fit ends when a step lowers the loss by less, as a share of it."""

SMALL = 2**20
"""Logits of all images up to which one thread is fastest. Several would mostly wait for each other, above all on a busy machine."""


class HeadFits:
    """
    Fits heads on the same features.

    Args:
        features (`numpy.ndarray`): float32, of shape `(n, num_features)`.
        labels (`numpy.ndarray`): classes, int64, of shape `(n,)`; or for several labels an image 0 and 1, of shape
            `(n, num_labels)`.
        added (`numpy.ndarray`, *optional*): what the model adds to the head's logits, float32, of shape `(n, 1)`.

    Attributes:
        bias_pull (`float`): strength of the pull to the bias of `start`.
        centred (`torch.Tensor`): the features in these coordinates, float32, of shape `(n, num_axes)`.
        classes (`numpy.ndarray`): the classes that have an image, int64.
    """

    def __init__(
        self,
        start: LinearHead,
        features: np.ndarray,
        labels: np.ndarray,
        loss: Loss,
        added: np.ndarray | None = None,
    ):
        self.start = start
        self.labels = torch.from_numpy(labels)
        self.loss = loss
        self.bias_pull = BIAS_PULL
        self.coordinates = Coordinates(features)
        self.centred = self.coordinates.of(features)
        self.added = torch.zeros(len(features), 1) if added is None else torch.from_numpy(added)
        self._first = torch.from_numpy(start.logits(features)).add_(self.added)
        # How the logits of `start` follow from the first ones: copies of all would take hundreds of megabytes each.
        self._moves: tuple[Callable[[torch.Tensor, slice], torch.Tensor], ...] = ()
        self.classes = np.unique(labels) if labels.ndim == 1 else np.flatnonzero(labels.any(0))
        # What a weight along each axis adds to the bias, which is fitted for centred features.
        self.offsets = self.coordinates.mean @ self.coordinates.axes

    @property
    def num_labels(self) -> int:
        return len(self.start.weight)

    def given(self, rows: slice) -> torch.Tensor:
        """Logits of `start` for some images, with what is added: float32, of shape `(images, num_labels)`. Not to be changed."""
        logits = self._first[rows]
        for move in self._moves:
            logits = move(logits, rows)
        return logits

    def _chunks(self) -> list[slice]:
        return chunks(len(self.labels), self.num_labels)

    def beside(self, bias: np.ndarray, pull: float) -> "HeadFits":
        """The same fits, begun from and pulled towards another bias. The head must have one."""
        assert self.start.bias is not None
        other, away = copy.copy(self), torch.from_numpy(bias - self.start.bias).float()
        other.start = LinearHead(self.start.weight, bias)
        other._moves = (*self._moves, lambda logits, rows: logits + away)
        other.bias_pull = pull
        return other

    def lowering(self, loss: Loss) -> "HeadFits":
        """The same fits by another loss."""
        other = copy.copy(self)
        other.loss = loss
        return other

    def scaled(self, factor: float) -> "HeadFits":
        """The same fits, begun from and pulled towards the head times a factor."""
        other = copy.copy(self)
        other.start = self.start.scaled(factor)
        added = self.added
        other._moves = (*self._moves, lambda logits, rows: factor * (logits - added[rows]) + added[rows])
        return other

    def temperature(self) -> float:
        """The factor, between 1/20 and 20, at which the logits have the least loss: one over the temperature."""

        def objective(log_factor: np.ndarray) -> tuple[float, np.ndarray]:
            factor, value, gradient = float(np.exp(log_factor[0])), 0.0, 0.0
            for rows in self._chunks():
                part = self.given(rows) - self.added[rows]
                total, slope = self._loss_and_slope(factor * part + self.added[rows], rows)
                value += total
                gradient += float((slope * part).sum(dtype=torch.float64))
            return value / len(self.labels), np.array([factor * gradient / len(self.labels)])

        limit = float(np.log(20))
        with one_thread(self._first.numel() <= SMALL):
            found = minimize(objective, np.zeros(1), jac=True, method="L-BFGS-B", bounds=[(-limit, limit)])
        return float(np.exp(found.x[0]))

    def class_prior(self) -> LinearHead:
        """The head with the bias fitted alone. It must have one."""
        assert self.start.bias is not None
        count = len(self.labels)

        def objective(numbers: np.ndarray) -> tuple[float, np.ndarray]:
            away = unit * numbers
            value, gradient = 0.0, np.zeros_like(away)
            for rows in self._chunks():
                total, slope = self._loss_and_slope(self.given(rows) + torch.from_numpy(away).float(), rows)
                value += total
                gradient += slope.sum(0, dtype=torch.float64).numpy()
            value = value / count + self.bias_pull / 2 * float(away @ away)
            return value, unit * (gradient / count + self.bias_pull * away)

        shares, target = self._shares()
        # Where the shares of cross-entropy would be right at once if images were alike.
        first = np.log(np.maximum(target, 1e-6)) - np.log(np.maximum(shares, 1e-6))
        unit = np.maximum(target, 1e-5) ** -0.5
        return LinearHead(self.start.weight, self.start.bias + unit * self._minimised(objective, first / unit))

    def _shares(self) -> tuple[np.ndarray, np.ndarray]:
        """The shares of the classes in the predictions of the first head, and in the labels."""
        shares = torch.zeros(self.num_labels, dtype=torch.float64)
        for rows in self._chunks():
            shares += self._chances(self.given(rows)).sum(0, dtype=torch.float64)
        count = len(self.labels)
        if self.labels.ndim == 2:
            return shares.numpy() / count, self.labels.double().mean(0).numpy()
        return shares.numpy() / count, torch.bincount(self.labels, minlength=self.num_labels).numpy() / count

    def _chances(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(-1) if self.labels.ndim == 1 else logits.sigmoid()

    def head(self, pull: float, first_guess: LinearHead | None = None) -> LinearHead:
        """
        The fitted head.

        Args:
            pull (`float`): strength of the pull of the weight, greater than 0, in units of the features' scale.
            first_guess ([`LinearHead`], *optional*): where the search begins. Defaults to `start`. It has the weights of `start`
                for classes without an image.
        """
        first = self.numbers(first_guess or self.start)
        unit, objective = self._units(first, pull * self.coordinates.scale), self.objective(pull)

        def scaled(numbers: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = objective(unit * numbers)
            return value, unit * gradient

        return self.of_numbers(unit * self._minimised(scaled, first / unit))

    def _minimised(self, objective: Callable, first: np.ndarray) -> np.ndarray:
        """Where L-BFGS ends that begins at `first`. The objective gives a value and its gradient."""
        options = {"maxiter": STEPS, "maxcor": HISTORY, "ftol": TOLERANCE, "gtol": 1e-7}
        with one_thread(self._first.numel() <= SMALL):
            return minimize(objective, first, jac=True, method="L-BFGS-B", options=options).x

    # ---- A head as numbers: its difference from the first one, for centred features along their axes ------------------

    def objective(self, pull: float) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
        """What [`HeadFits.head`] minimises, of a head that is given as numbers: its value and gradient."""
        size, strength = len(self.classes) * len(self.offsets), pull * self.coordinates.scale

        def objective(away: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.value_and_gradient(away)
            weight, shift = away[:size], self._bias_of(away)
            value += (strength * float(weight @ weight) + self.bias_pull * float(shift @ shift)) / 2
            gradient[:size] += strength * weight
            if self.start.bias is not None:
                gradient[size:] += self.bias_pull * shift
                gradient[:size] -= self.bias_pull * np.outer(shift[self.classes], self.offsets).ravel()
            return value, gradient

        return objective

    def value_and_gradient(self, away: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean loss of a head that is given as numbers, and its gradient."""
        classes, count = self.classes, len(self.labels)
        weight, shift = self.split(away)
        value, by_weight = 0.0, torch.zeros(weight.shape, dtype=torch.float64)
        by_shift = torch.zeros(self.num_labels, dtype=torch.float64)
        for rows in chunks(count, max(self.num_labels, weight.shape[1])):
            total, slope = self._loss_and_slope(self.logits(weight, shift, rows), rows)
            value += total
            by_weight += slope[:, classes].T @ self.centred[rows]
            by_shift += slope.sum(0, dtype=torch.float64)
        gradient = by_weight.numpy().ravel()
        if self.start.bias is None:
            # The mean of the features moves logits too.
            gradient = gradient + np.outer(by_shift.numpy()[classes], self.offsets).ravel()
            return value / count, gradient / count
        return value / count, np.concatenate([gradient, by_shift.numpy()]) / count

    def split(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights along the axes, of the classes with images, and what is added to the logits of centred features."""
        size = len(self.classes) * len(self.offsets)
        weight = numbers[:size].reshape(len(self.classes), -1)
        if self.start.bias is not None:
            return weight, numbers[size:]
        shift = np.zeros(self.num_labels)
        shift[self.classes] = weight @ self.offsets
        return weight, shift

    def _bias_of(self, numbers: np.ndarray) -> np.ndarray:
        """How far the bias is from the old one."""
        weight, shift = self.split(numbers)
        bias = shift.copy()
        bias[self.classes] -= weight @ self.offsets
        return bias

    def numbers(self, head: LinearHead) -> np.ndarray:
        weight = (head.weight - self.start.weight)[self.classes] @ self.coordinates.axes
        if head.bias is None or self.start.bias is None:
            return weight.ravel()
        shift = head.bias - self.start.bias
        shift[self.classes] += weight @ self.offsets
        return np.concatenate([weight.ravel(), shift])

    def of_numbers(self, numbers: np.ndarray) -> LinearHead:
        """The head that numbers stand for."""
        weight = np.zeros_like(self.start.weight)
        weight[self.classes] = self.split(numbers)[0] @ self.coordinates.axes.T
        bias = None if self.start.bias is None else self.start.bias + self._bias_of(numbers)
        return LinearHead(self.start.weight + weight, bias)

    def _loss_and_slope(self, logits: torch.Tensor, rows: slice) -> tuple[float, torch.Tensor]:
        """The sum of the loss over some images, and its gradient with respect to their logits, in float32."""
        if isinstance(self.loss, CrossEntropy) and self.loss.plain:
            return self.loss.value_and_slope(logits, self.labels[rows])
        total, slope = loss_and_slope(self.loss, logits.double(), self.labels[rows])
        return total, slope.float()

    def logits(self, weight: np.ndarray, shift: np.ndarray, rows: slice) -> torch.Tensor:
        """Logits of some images, float32, for a head that [`HeadFits.split`] gives."""
        logits = self.given(rows) + torch.from_numpy(shift).float()
        change = self.centred[rows] @ torch.from_numpy(weight).float().T
        if len(self.classes) == self.num_labels:
            return logits.add_(change)
        return logits.index_add_(1, torch.from_numpy(self.classes), change)

    def spread(self, away: np.ndarray) -> np.ndarray:
        """The mean of p (1 - p) for each class: the curvature of cross-entropy in its logit. Of shape `(num_labels,)`."""
        weight, shift = self.split(away)
        spread = torch.zeros(self.num_labels, dtype=torch.float64)
        for rows in chunks(len(self.labels), max(self.num_labels, weight.shape[1])):
            chances = self._chances(self.logits(weight, shift, rows))
            spread += (chances - chances * chances).sum(0, dtype=torch.float64)
        return np.maximum(spread.numpy() / len(self.labels), 1e-6)

    def _units(self, away: np.ndarray, strength: float) -> np.ndarray:
        """One over the square root of the curvature of cross-entropy in each number, as far as it is that of an average image."""
        spread = self.spread(away)
        second = self.coordinates.variances + (self.offsets**2 if self.start.bias is None else 0.0)
        units = (np.outer(spread[self.classes], second) + strength) ** -0.5
        if self.start.bias is None:
            return units.ravel()
        return np.concatenate([units.ravel(), (spread + self.bias_pull) ** -0.5])


def loss_and_slope(loss: Loss, logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The sum of the loss over some images, and its gradient with respect to their logits."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = logits.clone().requires_grad_()
        total = loss(leaf, labels.clone())
        [slope] = torch.autograd.grad(total, leaf)
    return float(total.detach()), slope
