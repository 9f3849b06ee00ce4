"""The losses that a Gauss-Newton step can lower. They are differentiated with respect to the logits, not the weights."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F
from transformers.modeling_outputs import ImageClassifierOutput

from ..arguments import choices
from ..arguments.choices import names
from ..errors import SMDError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps logits `(batch, num_labels)` in float64 and labels `(batch,)` to the sum of the images' losses."""

LOSSES = names(choices.Loss)


class CrossEntropy:
    """
    Negative log-likelihood.

    Args:
        label_smoothing (`float`, *optional*, defaults to 0): share of each label that is spread evenly over all classes.

    Attributes:
        plain (`bool`): without class weights, so that [`CrossEntropy.value_and_slope`] holds.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None):
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.plain = class_weights is None

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=self.label_smoothing)

    def value_and_slope(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
        """The sum and its gradient with respect to logits in float32, where it is `plain`. Overwrites the logits."""
        smoothing, classes = self.label_smoothing, logits.shape[1]
        logits -= logits.amax(1, keepdim=True)
        right = logits.gather(1, labels[:, None])
        total = -(1 - smoothing) * right.double().sum()
        if smoothing:
            total -= smoothing / classes * logits.sum(dtype=torch.float64)
        chances = logits.exp_()
        sums = chances.sum(1, keepdim=True)
        total += sums.double().log().sum()
        chances /= sums
        if smoothing:
            chances -= smoothing / classes
        chances.scatter_add_(1, labels[:, None], torch.full_like(right, smoothing - 1))
        return float(total), chances


cross_entropy = CrossEntropy


def focal(gamma: float = 2.0) -> Loss:
    """Focal loss, -(1 - p)^gamma log p of the right class (Lin et al. 2017): easy images count less."""

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        log_p = logits.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
        return -((1 - log_p.exp()) ** gamma * log_p).sum()

    return loss


def expected_cost(cost_matrix: Sequence[Sequence[float]] | np.ndarray) -> Loss:
    """
    The expected cost of a prediction drawn from the model's probabilities.

    Args:
        cost_matrix (array of shape `(num_labels, num_labels)`): entry [i, j] is the cost of predicting class j for an image of
            class i.

    Raises:
        `SMDError`: if it is not a square matrix of finite numbers.
    """
    costs = np.asarray(cost_matrix, dtype=np.float64)
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1] or not np.isfinite(costs).all():
        raise SMDError(
            f"The cost matrix has shape {costs.shape} or entries that are not finite. Expected finite numbers of shape "
            "(num_labels, num_labels)."
        )

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows = torch.from_numpy(costs).to(logits.device, logits.dtype)[labels]
        return (logits.softmax(-1) * rows).sum()

    return loss


def ordinal(num_labels: int) -> Loss:
    """The expected distance |i - j| between the predicted and the right class, for ordered classes."""
    places = np.arange(num_labels)
    return expected_cost(np.abs(places[:, None] - places[None, :]))


def from_compute_loss_func(compute_loss_func: Callable) -> Loss:
    """Wraps Trainer's `compute_loss_func(outputs, labels, num_items_in_batch)`. With `num_items_in_batch=1` it is a sum."""

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return compute_loss_func(ImageClassifierOutput(logits=logits), labels, num_items_in_batch=1)

    return loss


def make_loss(
    name: str,
    num_labels: int,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    cost_matrix: Sequence[Sequence[float]] | None = None,
) -> Loss:
    """
    Builds a loss by name.

    Args:
        label_smoothing (`float`, *optional*, defaults to 0): for `cross_entropy`.
        class_weights (sequence of `float`, *optional*): for `cross_entropy`, of shape `(num_labels,)`.
        cost_matrix (*optional*): for `expected_cost`, of shape `(num_labels, num_labels)`.

    Raises:
        `SMDError`: if an argument does not fit the number of labels.
    """
    if class_weights is not None and len(class_weights) != num_labels:
        raise SMDError(f"class_weights has {len(class_weights)} numbers, but the model has {num_labels} labels.")
    if name == "cross_entropy":
        return cross_entropy(label_smoothing, class_weights)
    if name == "focal":
        return focal()
    if name == "ordinal":
        return ordinal(num_labels)
    if cost_matrix is None or np.shape(cost_matrix) != (num_labels, num_labels):
        raise SMDError(
            f"loss='expected_cost' needs a cost_matrix of shape ({num_labels}, {num_labels}): entry [i, j] is the cost of "
            "predicting class j for an image of class i."
        )
    return expected_cost(cost_matrix)


def slope_and_products(
    loss: Loss, logits: torch.Tensor, labels: torch.Tensor, changes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The loss's gradient with respect to the logits, and its Hessian times each change.

    Args:
        loss ([`Loss`]): the loss to differentiate.
        logits (`torch.Tensor`): of shape `(batch, num_labels)`.
        labels (`torch.Tensor`): of shape `(batch,)`.
        changes (`torch.Tensor`): of shape `(directions, batch, num_labels)`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: the gradient with the shape of the logits, and the products with the shape of the
        changes.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf, changes = logits.clone().requires_grad_(), changes.clone()
        [slope] = torch.autograd.grad(loss(leaf, labels.clone()), leaf, create_graph=True)
        curved = [torch.autograd.grad(slope, leaf, change, retain_graph=True)[0] for change in changes]
    return slope.detach(), torch.stack(curved)
