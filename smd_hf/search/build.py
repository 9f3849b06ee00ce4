"""Builds the parts of the method that the arguments name: recombination, mutation and the compiled model."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..arguments.evolution_arguments import EvolutionArguments
from ..metrics.classification import parse_cost_matrix
from .gauss_newton import GaussNewton
from .losses import from_compute_loss_func, make_loss
from .mutation import Mutation
from .parameter_space import parameter_space
from .recombination import Best, GreedySoup, Recombination, TopKMean
from .subspaces import make_decomposition
from .tensor_scaling import WithScaling, scaling_directions

RECOMBINATIONS: dict[str, type[Recombination]] = {
    kind.name: kind for kind in (Best, TopKMean, GreedySoup, GaussNewton)
}


def make_recombination(
    args: EvolutionArguments, num_labels: int, compute_loss_func: Callable | None = None
) -> Recombination:
    """
    Builds the recombination that the arguments name.

    Args:
        args ([`EvolutionArguments`]): the run's arguments.
        num_labels (`int`): number of labels of the model.
        compute_loss_func (`Callable`, *optional*): as in Trainer. Replaces `args.loss` as the loss of a Gauss-Newton step.

    Raises:
        `SMDError`: if the loss does not fit the number of labels.
    """
    if args.recombination != GaussNewton.name:
        return RECOMBINATIONS[args.recombination](args.recombination_top_k)
    if compute_loss_func is not None:
        return GaussNewton(args.recombination_top_k, from_compute_loss_func(compute_loss_func))
    cost_matrix = None if args.cost_matrix is None else parse_cost_matrix(args.cost_matrix)
    loss = make_loss(args.loss, num_labels, args.label_smoothing_factor, args.class_weights, cost_matrix)
    return GaussNewton(args.recombination_top_k, loss)


def make_mutation(model: nn.Module, args: EvolutionArguments, suffix_costs: Callable[[], Sequence[float]]) -> Mutation:
    """
    Builds the mutation that the arguments describe.

    Args:
        model (`torch.nn.Module`): the parent.
        args ([`EvolutionArguments`]): the run's arguments.
        suffix_costs (`Callable`): returns the costs of the blocks; called only for `allocation="cost"`.

    Raises:
        `SMDError`: if a pattern matches no parameter, or the decomposition does not fit the population.
    """
    space = parameter_space(model, args.mutable_parameters, args.frozen_parameters)
    scaling = scaling_directions(args.scaling_share, args.directions, len(space.names))
    decomposition = make_decomposition(
        args.decomposition,
        space,
        args.directions - scaling,
        args.density,
        args.seed,
        static=args.subspace_schedule == "static",
        suffix_costs=suffix_costs() if args.allocation == "cost" else None,
    )
    return Mutation(
        model,
        WithScaling(decomposition, scaling) if scaling else decomposition,
        args.seed,
        args.sigma_units,
        args.match_norm,
        args.mirrored,
        prune=args.mutation == "prune",
    )


def compiled(model: nn.Module, args: EvolutionArguments) -> Callable:
    """Compiles the model once for all children: their weights are written into the same tensors."""
    return torch.compile(model, backend=args.torch_compile_backend, mode=args.torch_compile_mode, dynamic=False)
