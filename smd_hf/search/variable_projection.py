"""Gauss-Newton recombination where the head is solved for: its step goes with each step of the children."""

from collections.abc import Generator, Sequence

from .fitness import ScoredChild
from .gauss_newton import DAMPING, GaussNewton, GaussNewtonSums, MakeStep, candidate
from .head.joint import JointSums
from .head.solved import SolvedHead
from .losses import Loss
from .mutation import Child
from .recombination import Candidate


class VariableProjection(GaussNewton):
    """
    [`GaussNewton`] over children and head.

    Args:
        top_k (`int`), loss ([`Loss`]): as for [`GaussNewton`].
        head ([`SolvedHead`]): the head.
    """

    name = "variable_projection"

    def __init__(self, top_k: int, loss: Loss, head: SolvedHead):
        super().__init__(top_k, loss)
        self.head = head

    def sums(self, children: Sequence[Child]) -> JointSums:
        return self.head.sums(children, self.loss)

    def propose(
        self, children: Sequence[ScoredChild], sums: GaussNewtonSums | None = None
    ) -> Generator[list[Candidate], list[float], None]:
        # All processes follow the first one's proposals, so the others need not solve for them.
        if self.head.first_process:
            yield from super().propose(children, sums)

    def steps(self, sums: GaussNewtonSums, kept: list[int]) -> dict[float, MakeStep]:
        assert isinstance(sums, JointSums) and sums.total is not None
        directions = [sums.directions[place] for place in kept]
        square = sums.total[:, : len(sums.directions)][kept][:, kept]
        gradient, cross = sums.total[kept, len(sums.directions)], sums.cross()[kept]
        found = self.head.steps(square, gradient, cross, DAMPING, sums.width)
        return {
            damping: lambda name, length, step=step, head=head: candidate(
                name, directions, length * step, head(length)
            )
            for damping, (step, head) in found.items()
        }
