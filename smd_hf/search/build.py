"""Builds the method that the arguments describe: [`build_evolution`] puts its parts together."""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.batches import ImageBatches
from ..data.ood_images import OODImages
from ..errors import SMDError
from ..metrics.classification import parse_cost_matrix
from ..models.quantized import is_mutable
from ..parallel.processes import Processes
from ..scoring.costs import suffix_costs
from ..scoring.evaluator import Evaluator
from ..scoring.reading import Reading, ReadsClasses
from ..scoring.runtimes.choose import RuntimeChoice
from ..tasks.protocol import Task
from ..tasks.registry import is_classification
from .evolution import Evolution
from .fitness import Fitness
from .gauss_newton import GaussNewton
from .information import InformationLoss
from .losses import Loss, from_compute_loss_func, make_loss
from .mutation import Mutation
from .parameter_space import norm_parameter_names, parameter_space
from .pareto.objectives import Objectives
from .pareto.pareto_evolution import ParetoEvolution
from .recombination import Best, GreedySoup, Recombination, TopKMean, TopKSum
from .subspaces import make_decomposition
from .tensor_scaling import WithScaling, scaling_directions

logger = logging.get_logger(__name__)

BF16_FROM = 0.05
"""
From this sigma on, what a child changes in the logits has a cosine of 0.97 and more between float32 and bfloat16, and NLL a rank
correlation of 0.98 (`examples/studies/precision.py`).
"""

RECOMBINATIONS: dict[str, type[Recombination]] = {
    kind.name: kind for kind in (Best, TopKMean, TopKSum, GreedySoup, GaussNewton)
}


def build_evolution(
    model: PreTrainedModel,
    args: EvolutionArguments,
    make_evaluator: Callable[..., Evaluator],
    fitness: Fitness,
    fitness_batches: ImageBatches,
    selection_batches: ImageBatches | None = None,
    ood: OODImages | None = None,
    objectives: Objectives | None = None,
    compute_loss_func: Callable | None = None,
    task: Task | None = None,
) -> Evolution:
    """
    Builds the evolution that the arguments describe.

    Args:
        make_evaluator (`Callable`): [`build_evaluator`] with its first arguments. Called with `mutable`, the names of the
            parameters that children change, and `images`, the number of images that they will be scored on.
        objectives ([`Objectives`], *optional*): compare the candidates in place of the fitness, if there are several.
        compute_loss_func (`Callable`, *optional*): as in Trainer. Replaces `args.loss` as the loss of a Gauss-Newton step.

    Raises:
        `SMDError`: if a pattern matches no parameter, the decomposition does not fit the population, or the loss does not fit
            the number of labels.
    """

    def block_costs() -> list[float]:
        [batch] = fitness_batches.head(1)
        return suffix_costs(model, batch.inputs(model.device, model.dtype))

    mutation = make_mutation(model, args, block_costs)
    per_generation = min(args.fitness_samples_per_generation or math.inf, fitness_batches.num_images)
    images = int(args.population_size * args.num_generations * per_generation)
    evaluator = make_evaluator(mutable=mutation.space.names, images=images)
    recombination = make_recombination(args, getattr(model.config, "num_labels", 0) or 0, compute_loss_func, task)
    # As many children must survive a race as recombination, ensemble and deltas need.
    needed = max(args.recombination_top_k, args.ensemble_size, args.save_children)
    parts = (model, mutation, evaluator, fitness, recombination, fitness_batches, selection_batches)
    options: dict[str, Any] = dict(
        elitism=args.elitism,
        survivors=min(args.population_size, needed) if args.racing == "halving" else 0,
        keep_parent=bool(args.ensemble_size or args.save_children),
        ood=ood,
    )
    return Evolution(*parts, **options) if objectives is None else ParetoEvolution(objectives, *parts, **options)


def build_evaluator(
    model: PreTrainedModel,
    args: EvolutionArguments,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    processes: Processes,
    mixed_precision: bool = False,
    plain: bool = False,
    mutable: Collection[str] | None = None,
    images: int = 0,
    reading: Reading | None = None,
) -> Evaluator:
    """
    Builds the evaluator that the arguments describe. Runs make it here and nowhere else.

    Args:
        args ([`EvolutionArguments`]): runtime, memory format, prefix replay and caches.
        autocast (`Callable`): returns the context of each forward pass, for mixed precision.
        mixed_precision (`bool`, *optional*, defaults to `False`): whether that context changes the precision.
        plain (`bool`, *optional*, defaults to `False`): calls the model as it is, whatever the runtime and memory format of the
            arguments are.
        reading ([`Reading`], *optional*): the task, which says what is scored. Defaults to image classification.
    """
    choice, forward, layout = None, None, torch.preserve_format
    if not plain:
        layout = torch.channels_last if args.channels_last else layout
        if args.torch_compile:
            if args.runtime not in ("auto", "eager") or args.precision == "bf16":
                raise SMDError(
                    f"torch_compile=True compiles the model as a whole, and takes neither runtime='{args.runtime}' nor "
                    f"precision='{args.precision}'. Leave torch_compile out."
                )
            forward = compiled(model, args)
        else:
            choice = RuntimeChoice(
                model,
                args.runtime,
                _precision(args),
                mutable,
                args.eval_batch_size,
                args.prefix_replay,
                images,
                mixed_precision,
                (reading or ReadsClasses()).prediction,
            )
    cache = int(args.child_cache_gb * 1e9)
    return Evaluator(
        model,
        device,
        autocast,
        processes,
        args.prefix_replay,
        cache,
        forward,
        memory_format=layout,
        choice=choice,
        reading=reading,
    )


def make_recombination(
    args: EvolutionArguments,
    num_labels: int,
    compute_loss_func: Callable | None = None,
    task: Task | None = None,
) -> Recombination:
    """
    Builds the recombination that the arguments name.

    Args:
        compute_loss_func (`Callable`, *optional*): as in Trainer. Replaces `args.loss` as the loss of a Gauss-Newton step.

    Raises:
        `SMDError`: if the loss does not fit the number of labels.
    """
    if args.recombination != GaussNewton.name:
        return RECOMBINATIONS[args.recombination](args.recombination_top_k)
    return GaussNewton(args.recombination_top_k, loss_of(args, num_labels, compute_loss_func, task))


def loss_of(
    args: EvolutionArguments, num_labels: int, compute_loss_func: Callable | None = None, task: Any = None
) -> Loss:
    """The loss that Gauss-Newton steps and fits of the head lower. Takes the arguments of [`make_recombination`]."""
    if task is not None and not is_classification(task):
        return task.loss(args)
    if args.unlabeled:
        return InformationLoss()
    if compute_loss_func is not None:
        return from_compute_loss_func(compute_loss_func)
    cost_matrix = None if args.cost_matrix is None else parse_cost_matrix(args.cost_matrix)
    return make_loss(args.loss, num_labels, args.label_smoothing_factor, args.class_weights, cost_matrix)


def make_mutation(
    model: PreTrainedModel, args: EvolutionArguments, suffix_costs: Callable[[], Sequence[float]]
) -> Mutation:
    """
    Builds the mutation that the arguments describe.

    Args:
        suffix_costs (`Callable`): returns the costs of the blocks; called only for `allocation="cost"`.

    Raises:
        `SMDError`: if a pattern matches no parameter, or the decomposition does not fit the population.
    """
    if not args.was_chosen("mutable_parameters"):
        args.mutable_parameters = _those_there_are(model, args.mutable_parameters)
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


def _precision(args: EvolutionArguments) -> str:
    """The precision of children: `auto` keeps fp32 where they may differ from the parent by little more than bfloat16 rounds away."""
    is_large = args.sigma_units == "relative" and args.sigma is not None and args.sigma >= BF16_FROM
    return "fp32" if args.precision == "auto" and not is_large else args.precision


def compiled(model: PreTrainedModel, args: EvolutionArguments) -> Callable:
    """Compiles the model once for all children: their weights are written into the same tensors."""
    return torch.compile(
        model, backend=args.torch_compile_backend or "inductor", mode=args.torch_compile_mode, dynamic=False
    )


def _those_there_are(model: PreTrainedModel, groups: list[str]) -> list[str]:
    """The groups of parameters that a preset names, or all where the model has none of them."""
    mutable = {name for name, parameter in model.named_parameters() if is_mutable(parameter)}
    if groups == ["norms"] and not mutable & norm_parameter_names(model):
        logger.warning(
            "All parameters are mutable: the preset changes those of normalisation layers, and this model has none."
        )
        return ["all"]
    return groups
