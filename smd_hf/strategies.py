"""The recombination strategies by the names that arguments give them."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from .gauss_newton import GaussNewton
from .metrics import parse_cost_matrix
from .objectives import from_compute_loss_func, make_objective
from .recombination import Best, GreedySoup, Recombination, TopKMean

if TYPE_CHECKING:
    from .arguments import EvolutionArguments

RECOMBINATIONS: dict[str, type[Recombination]] = {
    kind.name: kind for kind in (Best, TopKMean, GreedySoup, GaussNewton)
}


def make_recombination(
    args: "EvolutionArguments", num_labels: int, compute_loss_func: Callable | None = None
) -> Recombination:
    """
    The strategy that the arguments name.

    Args:
        args ([`EvolutionArguments`]): of the run.
        num_labels (`int`): of the model.
        compute_loss_func (`Callable`, *optional*): as in Trainer: the objective of a Gauss-Newton step, in place of
            `args.objective`.

    Raises:
        `SMDError`: for an objective that does not fit the number of labels.
    """
    if args.recombination != GaussNewton.name:
        return RECOMBINATIONS[args.recombination](args.recombination_top_k)
    if compute_loss_func is not None:
        return GaussNewton(args.recombination_top_k, from_compute_loss_func(compute_loss_func))
    cost_matrix = None if args.cost_matrix is None else parse_cost_matrix(args.cost_matrix)
    objective = make_objective(
        args.objective, num_labels, args.label_smoothing_factor, args.class_weights, cost_matrix
    )
    return GaussNewton(args.recombination_top_k, objective)
