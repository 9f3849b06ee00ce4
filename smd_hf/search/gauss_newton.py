"""
Gauss-Newton recombination: takes one step in the span of the children, computed from their logits.

Each child's change of the logits, D_i = f(theta + delta_i) - f(theta), measures a directional derivative. In the span of
the children, theta + sum c_i delta_i, a loss l has the gradient g_i = sum <l', D_i> and the Gauss-Newton curvature
H_ij = sum D_i' l'' D_j. Here l' and l'' are the loss's derivatives with respect to the logits. For cross-entropy they are
p - y and diag p - p p' (Schraudolph 2002). Both are sums over images, so they are added up batch by batch. The step solves
(H + lambda I) c = -g.
"""

from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch

from ..scoring.sums import device_of_sums
from .fitness import ScoredChild, ranked
from .losses import Loss, slope_and_products
from .mutation import Child
from .recombination import Best, Candidate, Recombination

DAMPING = (0.03, 0.3, 3.0)
"""Values of lambda to try, in units of the mean curvature of a child."""

STEPS = (0.5, 1.5)
"""Lengths to try for the best of the steps of length 1."""

CHUNK_NUMBERS = 2**22
"""How many derivatives (directions x images x classes) are held in float64 at once."""


class GaussNewtonSums:
    """
    Sums gradient and curvature in the span of the children, batch by batch.

    The sums are taken on the logits' device, or on the CPU if the device has no float64 (MPS).

    Args:
        children (sequence of [`Child`]): in the order of their logits. A mirrored pair is one direction, measured by the
            central difference.
        loss ([`Loss`]): the loss that the step lowers.
    """

    def __init__(self, children: Sequence[Child], loss: Loss):
        self.loss = loss
        self.plus = [place for place, child in enumerate(children) if child.sign > 0]
        minus = {child.direction: place for place, child in enumerate(children) if child.sign < 0}
        self.minus = [minus.get(children[place].direction) for place in self.plus]
        self.directions = [children[place] for place in self.plus]
        self.shape = (len(self.plus), len(self.plus) + 1)
        self.total: np.ndarray | None = None

    def __call__(
        self, logits: Sequence[torch.Tensor], labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> np.ndarray:
        """
        Computes one batch's part of the sums.

        Args:
            logits (sequence of `torch.Tensor`): the parent's, then each child's, of shape `(batch, num_labels)`, or of any
                shape `(batch, ...)` that the loss takes.
            labels (`torch.Tensor`): of shape `(batch, ...)`.
            weights (`torch.Tensor`, *optional*): how much the loss of each image counts, float64, of shape `(batch,)`. All count the
                same by default.

        Returns:
            `numpy.ndarray`: H with g as the last column, float64, of shape `(directions, directions + 1)`.
        """
        parent, *children = logits
        size = len(self.plus)
        device = device_of_sums(parent.device)
        total = torch.zeros(self.shape, dtype=torch.float64, device=device)
        chunk = max(1, CHUNK_NUMBERS // (size * parent[0].numel()))
        for start in range(0, len(labels), chunk):
            rows = slice(start, start + chunk)
            base = parent[rows].to(device).double()
            changes = torch.stack([self._change(children, place, rows, base) for place in range(size)])
            # A child with logits that are not finite cannot be selected: leave it out of the step.
            finite = torch.isfinite(changes).flatten(2).all(-1)
            changes = torch.where(finite.reshape(*finite.shape, *[1] * (base.ndim - 1)), changes, 0.0)
            slope, curved = slope_and_products(self.loss, base, labels[rows].to(device), changes)
            if weights is not None:
                weight = weights[rows].to(device).reshape(-1, *[1] * (base.ndim - 1))
                slope, curved = weight * slope, weight * curved
            flat = changes.flatten(1)
            total[:, :size] += flat @ curved.flatten(1).T
            total[:, size] += flat @ slope.flatten()
        return total.cpu().numpy()

    def _change(self, children: Sequence[torch.Tensor], place: int, rows: slice, base: torch.Tensor) -> torch.Tensor:
        plus = children[self.plus[place]][rows].to(base.device).double()
        opposite = self.minus[place]
        if opposite is None:
            return plus - base
        return (plus - children[opposite][rows].to(base.device).double()) / 2


class GaussNewton(Recombination):
    """
    Takes one Gauss-Newton step in the span of all children. The selection split chooses its damping and length.

    The fittest children are candidates too, in case no step helps.

    Args:
        top_k (`int`): how many of the fittest children are candidates besides the steps.
        loss ([`Loss`]): the loss that the step lowers.
    """

    name = "gauss_newton"

    def __init__(self, top_k: int, loss: Loss):
        super().__init__(top_k)
        self.loss = loss

    def most_candidates(self, num_children: int) -> int:
        return super().most_candidates(num_children) + len(DAMPING) + len(STEPS)

    def prepare(self, parent_logits: Callable[[], np.ndarray]) -> None:
        prepare = getattr(self.loss, "prepare", None)
        if prepare is not None:
            prepare(parent_logits())

    def sums(self, children: Sequence[Child]) -> GaussNewtonSums:
        return GaussNewtonSums(children, self.loss)

    def propose(
        self, children: Sequence[ScoredChild], sums: GaussNewtonSums | None = None
    ) -> Generator[list[Candidate], list[float], None]:
        assert sums is not None and sums.total is not None
        failed = {scored.child.direction for scored in children} - {
            scored.child.direction for scored in ranked(children)
        }
        kept = [place for place, child in enumerate(sums.directions) if child.direction not in failed]
        directions = [sums.directions[place] for place in kept]
        steps = damped_steps(sums.total[np.ix_(kept, kept)], sums.total[kept, -1]) if kept else {}
        named = {f"step, damping {damping:g}": coefficients for damping, coefficients in steps.items()}
        best_children = Best(self.top_k).candidates(children)
        fitness = yield [*(_candidate(name, directions, each) for name, each in named.items()), *best_children]
        if not named:
            return
        best = list(named)[int(np.argmax(fitness[: len(named)]))]
        yield [_candidate(f"{best}, length {length:g}", directions, length * named[best]) for length in STEPS]


def damped_steps(curvature: np.ndarray, gradient: np.ndarray) -> dict[float, np.ndarray]:
    """
    Solves (|H| + lambda I) c = -g for each damping lambda, in units of the mean eigenvalue of |H|.

    |H| has the absolute values of H's eigenvalues (Dauphin et al. 2014). For cross-entropy, |H| = H.

    Args:
        curvature (`numpy.ndarray`): H, symmetric, of shape `(n, n)`.
        gradient (`numpy.ndarray`): g, of shape `(n,)`.

    Returns:
        dict of `float` to `numpy.ndarray` of shape `(n,)`: the solution c by damping. Empty if no child changes a logit, or
        if H or g is not finite.
    """
    if not np.isfinite(curvature).all() or not np.isfinite(gradient).all():
        return {}
    values, vectors = np.linalg.eigh((curvature + curvature.T) / 2)
    unit = float(np.mean(np.abs(values)))
    if unit == 0:
        return {}
    rotated = vectors.T @ gradient
    return {damping: -vectors @ (rotated / (np.abs(values) + damping * unit)) for damping in DAMPING}


def _candidate(name: str, directions: Sequence[Child], coefficients: np.ndarray) -> Candidate:
    return Candidate(name, tuple((child, float(c)) for child, c in zip(directions, coefficients) if c != 0))
