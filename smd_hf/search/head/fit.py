"""
Fits a linear head on features: a convex problem, pulled towards the head that the model has.

Minimises mean loss(features @ W' + b, labels) + pull / 2 * scale * |W - W0|^2 + BIAS_PULL / 2 * |b - b0|^2, by L-BFGS in
float64. The scale is the mean squared length of the features, an upper bound of the curvature, so that a pull means the same
for all models. With a strong pull, only the bias is fitted.
Features are read in chunks, and nothing of the size of head x head is made.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize

from ..losses import Loss

CHUNK_NUMBERS = 2**24
"""How many features or logits are held in float64 at once."""

HISTORY = 10
"""Corrections that L-BFGS remembers. Each takes twice the memory of a head."""

BIAS_PULL = 1e-4
"""Strength of the pull to the old bias, which keeps the bias of a class without an image finite."""

STEPS = 300
"""Limit on the steps of L-BFGS."""


@dataclass(frozen=True)
class LinearHead:
    """
    A linear head.

    Args:
        weight (`numpy.ndarray`): float64, of shape `(num_labels, num_features)`.
        bias (`numpy.ndarray`, *optional*): float64, of shape `(num_labels,)`. `None` for a layer without one.
    """

    weight: np.ndarray
    bias: np.ndarray | None

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Logits of features `(n, num_features)`: float32, of shape `(n, num_labels)`."""
        parts = [self._logits(features[rows]).astype(np.float32) for rows in chunks(features, len(self.weight))]
        return np.concatenate(parts)

    def _logits(self, features: np.ndarray) -> np.ndarray:
        logits = features.astype(np.float64) @ self.weight.T
        return logits if self.bias is None else logits + self.bias

    def scaled(self, factor: float) -> "LinearHead":
        """The head whose logits are `factor` times these."""
        return LinearHead(factor * self.weight, None if self.bias is None else factor * self.bias)


def chunks(features: np.ndarray, num_labels: int) -> list[slice]:
    """Slices of the images that fit into memory in float64."""
    size = max(1, CHUNK_NUMBERS // max(features.shape[1], num_labels))
    return [slice(start, start + size) for start in range(0, len(features), size)]


def feature_scale(features: np.ndarray) -> float:
    """The mean squared length of the features; 1 if all are zero."""
    scale = float(np.mean(np.einsum("ij,ij->i", features, features, dtype=np.float64)))
    return scale if scale > 0 else 1.0


def value_and_gradient(
    head: LinearHead, features: np.ndarray, labels: np.ndarray, loss: Loss
) -> tuple[float, LinearHead]:
    """
    The mean loss of a head, and its gradient with respect to weight and bias.

    Args:
        head ([`LinearHead`]): the head.
        features (`numpy.ndarray`): of shape `(n, num_features)`.
        labels (`numpy.ndarray`): int64, of shape `(n,)`.
        loss ([`Loss`]): maps logits in float64 and labels to a sum.
    """
    value, weight, bias = 0.0, np.zeros_like(head.weight), np.zeros(len(head.weight))
    for rows in chunks(features, len(head.weight)):
        part = features[rows].astype(np.float64)
        total, slope = _loss_and_slope(loss, head._logits(part), labels[rows])
        value += total
        weight += slope.T @ part
        bias += slope.sum(0)
    count = len(features)
    return value / count, LinearHead(weight / count, None if head.bias is None else bias / count)


def _loss_and_slope(loss: Loss, logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The sum of the loss over some images, and its gradient with respect to their logits."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = torch.from_numpy(logits).requires_grad_()
        total = loss(leaf, torch.from_numpy(labels))
        [slope] = torch.autograd.grad(total, leaf)
    return float(total.detach()), slope.numpy()


def fit_head(
    start: LinearHead,
    features: np.ndarray,
    labels: np.ndarray,
    loss: Loss,
    pull: float,
    first_guess: LinearHead | None = None,
) -> LinearHead:
    """
    Fits weight and bias.

    Args:
        start ([`LinearHead`]): the head that the fit is pulled to.
        features (`numpy.ndarray`): of shape `(n, num_features)`.
        labels (`numpy.ndarray`): int64, of shape `(n,)`.
        loss ([`Loss`]): maps logits and labels to a sum.
        pull (`float`): strength of the pull of the weight, greater than 0, in units of the features' scale.
        first_guess ([`LinearHead`], *optional*): where the search begins. Defaults to `start`.
    """
    origin, size, scale = _flat(start), start.weight.size, feature_scale(features)
    strength = np.full(len(origin), BIAS_PULL)
    strength[:size] = pull * scale
    # In these units, weight and bias have curvatures of one order, which L-BFGS needs.
    unit = np.ones(len(origin))
    unit[:size] = (scale * (1 + pull)) ** -0.5

    def objective(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        away = unit * numbers
        value, gradient = value_and_gradient(_head(origin + away, start), features, labels, loss)
        return value + float(away @ (strength * away)) / 2, unit * (_flat(gradient) + strength * away)

    first = (_flat(first_guess or start) - origin) / unit
    return _head(origin + unit * _minimised(objective, first), start)


def fit_bias(start: LinearHead, features: np.ndarray, labels: np.ndarray, loss: Loss) -> LinearHead:
    """Fits the bias alone: the class prior. Takes the arguments of [`fit_head`]; the head must have a bias."""
    assert start.bias is not None
    given, origin = start.logits(features), start.bias

    def objective(bias: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = 0.0, np.zeros_like(origin)
        for rows in chunks(features, len(origin)):
            total, slope = _loss_and_slope(loss, given[rows].astype(np.float64) + (bias - origin), labels[rows])
            value += total
            gradient += slope.sum(0)
        away, count = bias - origin, len(features)
        return value / count + BIAS_PULL / 2 * float(away @ away), gradient / count + BIAS_PULL * away

    return LinearHead(start.weight, _minimised(objective, origin))


def fit_temperature(start: LinearHead, features: np.ndarray, labels: np.ndarray, loss: Loss) -> float:
    """The factor, between 1/20 and 20, by which the logits have the least loss. Takes the arguments of [`fit_head`]."""
    given = start.logits(features)

    def objective(log_factor: np.ndarray) -> tuple[float, np.ndarray]:
        factor, value, gradient = float(np.exp(log_factor[0])), 0.0, 0.0
        for rows in chunks(features, given.shape[1]):
            part = given[rows].astype(np.float64)
            total, slope = _loss_and_slope(loss, factor * part, labels[rows])
            value += total
            gradient += float((slope * part).sum())
        return value / len(features), np.array([factor * gradient / len(features)])

    limit = float(np.log(20))
    found = minimize(objective, np.zeros(1), jac=True, method="L-BFGS-B", bounds=[(-limit, limit)])
    return float(np.exp(found.x[0]))


def _minimised(objective, first: np.ndarray) -> np.ndarray:
    options = {"maxiter": STEPS, "maxcor": HISTORY, "ftol": 1e-7, "gtol": 1e-6}
    return minimize(objective, first, jac=True, method="L-BFGS-B", options=options).x


def _flat(head: LinearHead) -> np.ndarray:
    return head.weight.ravel() if head.bias is None else np.concatenate([head.weight.ravel(), head.bias])


def _head(numbers: np.ndarray, like: LinearHead) -> LinearHead:
    size = like.weight.size
    return LinearHead(numbers[:size].reshape(like.weight.shape), None if like.bias is None else numbers[size:])
