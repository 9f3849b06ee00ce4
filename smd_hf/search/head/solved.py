"""The head of a run that solves for it: fitted anew on the features of each next parent, and a part of every step."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from ...data.batches import Batch, ImageBatches
from ...models.linear_head import HeadInputs
from ...scoring.changes import Change
from ...scoring.evaluator import Evaluator
from ..losses import Loss
from ..mutation import Child
from .baselines import HEAD
from .coordinates import Coordinates
from .features import features_of
from .fit import HeadFits
from .joint import HeadModel, JointSums, joint_step, leading, num_coordinates
from .linear import LinearHead

FIRST_PULL = 1e-4
"""Strength of the pull to the first head where no fit has chosen one."""

NEARBY = (10**0.5, 1.0, 10**-0.5)
"""The pulls to try in each generation, in units of the present one."""

LEAST_SHARE = 0.5
"""Share of the fitness images that a generation must leave to the head with which its children are scored."""


class SolvedHead:
    """
    Solves for the head while children change what comes before it.

    Features of all fitness images are passed through the present parent once. The step over children and head takes its
    curvature from them. Children are scored with a head that is fitted on the other images alone: a head knows its own by heart,
    and leaves the body little to learn from them. When a step has been chosen, its features are measured, and the head is
    fitted on them: these are the features of the next generation.

    Args:
        layer ([`HeadInputs`]): the head in the model.
        evaluator ([`Evaluator`]): passes images through the model, on all processes.
        batches ([`ImageBatches`]): all fitness images.
        loss ([`Loss`]): what fits and steps lower.

    Attributes:
        names (list of `str`): the head's parameters in the model.
        pull (`float`): strength of the pull to the first head.
        counting (`Callable`): passes batches on and counts them, for a progress bar.
    """

    def __init__(self, layer: HeadInputs, evaluator: Evaluator, batches: ImageBatches, loss: Loss):
        self.layer = layer
        self.evaluator = evaluator
        self.batches = batches
        self.loss = loss
        self.names = layer.parameter_names
        self.counting: Callable[[Iterable[Batch]], Iterable[Batch]] = iter
        self.begin()

    @property
    def first_process(self) -> bool:
        """Whether this process fits: one machine solves it, as another one may come to other last bits."""
        return self.evaluator.processes.process_index == 0

    def begin(self) -> None:
        """Begins a run: the head that the model has now is the first, which all fits are pulled to."""
        self.first = LinearHead(*self.layer.numbers())
        self.pull = FIRST_PULL
        self._forget()

    def _forget(self) -> None:
        self._features: tuple[np.ndarray, np.ndarray] | None = None
        self._next: tuple[np.ndarray, np.ndarray] | None = None
        self._coordinates: Coordinates | None = None
        self._held_out: LinearHead | None = None
        self._fits: HeadFits | None = None
        self._next_fits: HeadFits | None = None
        self.refitted: list[tuple[float, LinearHead]] = []

    def know(self, features: np.ndarray, labels: np.ndarray) -> None:
        """The features of all fitness images under the present parent, and their labels, where they have been measured."""
        self._features = features, labels

    # ---- The step ----------------------------------------------------------------------------------------------------

    def prepare(self, batches: ImageBatches) -> None:
        """
        Before children are scored: features of the present parent, which is in the model.

        Args:
            batches ([`ImageBatches`]): the fitness images of this generation, some of all.
        """
        if self._features is None:
            self.know(*features_of(self.evaluator, self.layer, self.batches, self.counting))
        assert self._features is not None
        features, labels = self._features
        if self._coordinates is None:
            # An eigenvector of another machine may point the other way.
            known = None if self._fits is None else self._fits.coordinates
            found = self.evaluator.processes.gather(
                lambda: (known or Coordinates(features)) if self.first_process else None
            )
            self._coordinates = found[0]
        if self._fits is None and self.first_process:
            self._fits = HeadFits(self.first, features, labels, self.loss, self._coordinates)
        place = {row: number for number, row in enumerate(self.batches.indices)}
        rows = [place[row] for row in batches.indices]
        size = batches.batch_size
        self._rows = {number: rows[number * size : (number + 1) * size] for number in range(len(batches))}
        others = np.setdiff1d(np.arange(len(labels)), rows)
        self._held_out = self._fitted_on(others) if len(others) >= LEAST_SHARE * len(labels) else None

    def _fitted_on(self, rows: np.ndarray) -> LinearHead:
        """The head, fitted on these images alone, with the present pull."""
        assert self._features is not None
        features, labels = (each[rows] for each in self._features)

        def fit() -> LinearHead | None:
            if not self.first_process:
                return None
            fits = HeadFits(self.first, features, labels, self.loss, self._coordinates)
            return fits.head(self.pull, self._guess(labels))

        [found, *_] = self.evaluator.processes.gather(fit)
        assert found is not None
        return found

    def while_scoring(self) -> list[tuple[str, Change]]:
        """The head with which the children of this generation are scored, as changes of the model's weights."""
        return [] if self._held_out is None else self.changes(self._held_out)

    def sums(self, children: Sequence[Child], loss: Loss) -> JointSums:
        """Sums over batches for the step of children and head."""
        assert self._features is not None and self._coordinates is not None
        features, labels = self._features
        classes, directions = np.unique(labels), len({child.direction for child in children})
        bias = self.first.bias is not None
        width = num_coordinates(directions, len(classes), features.shape[1]) + bias
        offsets = self._coordinates.mean @ self._coordinates.axes
        phi = {
            number: leading(self._coordinates.of(features[rows]), max(1, width), None if bias else offsets)
            for number, rows in self._rows.items()
        }
        return JointSums(children, loss, classes, phi)

    def steps(
        self, curvature: np.ndarray, gradient: np.ndarray, cross: np.ndarray, dampings: Sequence[float], width: int
    ) -> dict[float, tuple[np.ndarray, Callable[[float], LinearHead]]]:
        """
        The steps of children and head for some dampings of the children, in units of their mean curvature.

        Args:
            curvature, gradient, cross (`numpy.ndarray`): as for [`joint_step`].
            dampings (sequence of `float`): of the children.
            width (`int`): number of the features' coordinates.

        Returns:
            By damping, the step of the children and a function that gives the head after some length of its own step. Empty if
            no child changes a logit, or something is not finite.
        """
        assert self._fits is not None
        if not all(np.isfinite(each).all() for each in (curvature, gradient, cross)):
            return {}
        values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
        unit = float(np.mean(np.abs(values)))
        if unit == 0:
            return {}
        fits, present = self._fits, LinearHead(*self.layer.numbers())
        now = fits.numbers(present)
        images = sum(map(len, self._rows.values()))
        model = HeadModel(fits, now, self.pull, width, images)
        positive = vectors * np.abs(values) @ vectors.T
        found = {}
        for damping in dampings:
            step, head_step = joint_step(positive, gradient, cross, model, damping * unit)
            change = fits.change(model.numbers(head_step))
            found[damping] = step, lambda length, change=change: moved(present, change, length)
        return found

    # ---- The fit -----------------------------------------------------------------------------------------------------

    def refit(self) -> list[tuple[str, LinearHead]]:
        """
        Fits the head on the features of the model as it is now: one pass over all fitness images.

        Returns:
            list of (`str`, [`LinearHead`]): heads for pulls near the present one, the strong ones first, with their names.
        """
        # The step has been taken: what it was solved with need not lie beside the next fit. It is made again if the parent stays.
        self._fits = self._coordinates = None
        self._next = features, labels = features_of(self.evaluator, self.layer, self.batches, self.counting)
        self.evaluator.images_forwarded += len(labels)
        self.evaluator.full_passes += len(labels)

        def fit() -> list[tuple[float, LinearHead]] | None:
            if not self.first_process:
                return None
            fits, guess, found = HeadFits(self.first, features, labels, self.loss), self._guess(labels), []
            for factor in NEARBY:
                guess = fits.head(factor * self.pull, guess)
                found.append((factor * self.pull, guess))
            self._next_fits = fits
            return found

        [found, *_] = self.evaluator.processes.gather(fit)
        assert found is not None
        self.refitted = found
        return [(f"{HEAD}{pull:.3g}", head) for pull, head in found]

    def _guess(self, labels: np.ndarray) -> LinearHead:
        """The present head, with the first one's weights for classes that a fit on images of these labels does not change."""
        now = LinearHead(*self.layer.numbers())
        weight = self.first.weight.copy()
        classes = np.unique(labels)
        weight[classes] = now.weight[classes]
        return LinearHead(weight, now.bias)

    def advance(self, body_changed: bool, head: LinearHead | None) -> None:
        """
        The next parent is in the model.

        Args:
            body_changed (`bool`): it has other features than the last one: those of the last [`SolvedHead.refit`], if any.
            head ([`LinearHead`], *optional*): its new head.
        """
        self.pull = next((pull for pull, each in self.refitted if each is head), self.pull)
        if not body_changed:
            self.refitted, self._next, self._next_fits = [], None, None
            return
        known, fits = self._next, self._next_fits
        self._forget()
        self._features, self._fits = known, fits

    def restore(self, pull: float) -> None:
        """A recorded generation has been repeated: its next parent is in the model, and its features are not known."""
        self.pull = pull
        self._forget()

    def changes(self, head: LinearHead) -> list[tuple[str, Change]]:
        """The head as changes of the model's weights."""
        layer = self.layer.layer
        parts = head.arrays
        return [
            (f"{self.layer.name}.{name}", (None, torch.from_numpy(parts[name]).to(tensor).view_as(tensor)))
            for name, tensor in layer.named_parameters()
            if name in parts
        ]


def moved(head: LinearHead, change: LinearHead, length: float) -> LinearHead:
    """The head after so many times a change."""
    bias = None if head.bias is None or change.bias is None else head.bias + length * change.bias
    return LinearHead(head.weight + length * change.weight, bias)
