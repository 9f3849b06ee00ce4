"""What goes together: ranges and combinations of arguments, checked before a model or an image is loaded."""

import math
from typing import TYPE_CHECKING, Any

from .ensemble.configuration_smd_ensemble import COMBINATIONS
from .ensemble_choice import SELECTIONS
from .errors import SMDError
from .evaluation.spread import MODES
from .inherited_arguments import check_inherited_arguments
from .mutation import scheduled_sigma
from .objectives import OBJECTIVES
from .out_of_distribution import OOD_METRICS
from .pareto.objectives import check_pymoo, measured_names
from .strategies import RECOMBINATIONS
from .subspaces import DECOMPOSITIONS

if TYPE_CHECKING:
    from .arguments import EvolutionArguments


def implied_arguments(args: "EvolutionArguments") -> dict[str, Any]:
    """What follows from some choices for others, where these are not chosen themselves."""
    implied: dict[str, Any] = {}
    # The losers of a race have not seen all images, which a Gauss-Newton step would need.
    if args.racing == "halving" or args.mutation == "prune" or args.objectives is not None:
        implied["recombination"] = "best"
    if args.objectives is not None:
        # Logs and plots show one of them.
        implied["fitness"] = next(iter(measured_names(args.objectives)), args.fitness)
    return implied


def check_evolution_arguments(args: "EvolutionArguments") -> None:
    """
    Refuses values outside their range, before a model or an image is loaded.

    Raises:
        `SMDError`: naming the argument, its value and what was expected.
    """
    expected = {
        "population_size": (args.population_size >= 2, "2 or more"),
        "num_generations": (args.num_generations >= 1, "1 or more"),
        "max_forward_passes": (args.max_forward_passes is None or args.max_forward_passes > 0, "a positive number"),
        "max_hours": (args.max_hours is None or args.max_hours > 0, "a positive number"),
        "sigma": (
            args.sigma is None or 0 < args.sigma < math.inf,
            "a positive number, or none at all to calibrate it",
        ),
        "density": (args.density is None or 0 < args.density <= 1, "within (0, 1]"),
        "scaling_share": (0 <= args.scaling_share < 1, "within [0, 1)"),
        "calibration_target": (0 < args.calibration_target < 1, "within (0, 1)"),
        "calibration_samples": (args.calibration_samples >= 1, "1 or more"),
        "selection_fraction": (0 <= args.selection_fraction < 1, "within [0, 1)"),
        "recombination_top_k": (args.recombination_top_k >= 1, "1 or more"),
        "ensemble_size": (0 <= args.ensemble_size <= args.population_size, "between 0 and population_size"),
        "save_children": (0 <= args.save_children <= args.population_size, "between 0 and population_size"),
        "push_children": (0 <= args.push_children <= args.population_size, "between 0 and population_size"),
        "ensemble_selection": (
            args.ensemble_selection in (*SELECTIONS, "front"),
            ", ".join((*SELECTIONS, "front")),
        ),
        "ensemble_combination": (args.ensemble_combination in COMBINATIONS, ", ".join(COMBINATIONS)),
        "image_cache_gb": (args.image_cache_gb >= 0, "0 or more"),
        "child_cache_gb": (args.child_cache_gb >= 0, "0 or more"),
        "reading_threads": (args.reading_threads is None or args.reading_threads >= 0, "0 or more"),
        "recombination": (args.recombination in RECOMBINATIONS, ", ".join(RECOMBINATIONS)),
        "objective": (args.objective in OBJECTIVES, ", ".join(OBJECTIVES)),
        "allocation": (args.allocation in ("uniform", "cost"), "uniform or cost"),
        "racing": (args.racing in ("none", "halving"), "none or halving"),
        "spread": (args.spread in MODES, ", ".join(MODES)),
        "mutation": (args.mutation in ("noise", "prune"), "noise or prune"),
        "fitness_samples_per_generation": (
            args.fitness_samples_per_generation is None or args.fitness_samples_per_generation >= 1,
            "1 or more",
        ),
        "decomposition": (args.decomposition in DECOMPOSITIONS, f"one of {', '.join(DECOMPOSITIONS)}"),
        "subspace_schedule": (args.subspace_schedule in ("dynamic", "static"), "dynamic or static"),
        "sigma_units": (args.sigma_units in ("relative", "absolute"), "relative or absolute"),
        "on_bad_images": (args.on_bad_images in ("raise", "skip"), "raise or skip"),
        "head_init": (args.head_init in (None, "linear_probe", "random", "keep"), "linear_probe, random or keep"),
    }
    for name, (holds, what) in expected.items():
        if not holds:
            raise SMDError(f"{name} is {getattr(args, name)}; expected {what}.")
    if args.push_ensemble and not args.ensemble_size:
        raise SMDError("push_ensemble needs an ensemble to push. Set ensemble_size to the number of its members.")
    if args.recombination == "gauss_newton" and args.racing == "halving":
        raise SMDError(
            "recombination='gauss_newton' measures all children on all fitness images, and racing='halving' does not. Choose one."
        )
    if args.mutation == "prune":
        check_pruning(args)
    if args.objectives is not None:
        check_objectives(args)
    elif args.ensemble_selection == "front":
        raise SMDError(
            "ensemble_selection='front' takes its members from the front of several objectives, and none are given. Set "
            f"objectives, or choose {', '.join(SELECTIONS)}."
        )
    if args.racing == "halving" and args.fitness in OOD_METRICS:
        raise SMDError(
            f"fitness='{args.fitness}' takes a pass of every child over the images of another distribution, and racing='halving' "
            "is to save passes. Leave racing out, or choose another fitness."
        )
    if args.allocation == "cost" and args.decomposition != "blocks":
        raise SMDError(
            f"allocation='cost' deals children out to blocks, but decomposition is '{args.decomposition}'. Choose "
            "decomposition='blocks', or leave allocation out."
        )
    if args.mirrored and args.population_size % 2:
        raise SMDError(
            f"mirrored children come in pairs, but population_size is {args.population_size}. Make it even."
        )
    if args.decomposition == "antirandom" and args.directions % 2:
        raise SMDError(
            f"decomposition='antirandom' needs an even number of subspaces, a mask and its complement, but population_size="
            f"{args.population_size} gives {args.directions}. Choose an even population_size, or a multiple of four with mirrored."
        )
    check_inherited_arguments(args)
    if isinstance(args.model_init_kwargs, dict) and "token" in args.model_init_kwargs:
        raise SMDError(
            "model_init_kwargs holds a token, and arguments are written to files. Leave it out: log in with `hf auth login`, or "
            "set HF_TOKEN."
        )
    scheduled_sigma(1.0, args.sigma_schedule, 0, args.num_generations)


def check_pruning(args: "EvolutionArguments") -> None:
    """Refuses choices that make no sense where coordinates become zero."""
    senseless = {
        "sigma": args.sigma is not None,
        "mirrored": args.mirrored,
        "match_norm": args.match_norm,
        "scaling_share": args.scaling_share > 0,
        "recombination": args.recombination != "best",
        "decomposition": args.decomposition == "dense",
    }
    for name, chosen in senseless.items():
        if chosen:
            raise SMDError(
                f"{name}={getattr(args, name)} does not go with mutation='prune', in which a child's coordinates become zero, and "
                "the best child takes the parent's place. Leave it out, or choose mutation='noise'."
            )


def check_objectives(args: "EvolutionArguments") -> None:
    """Refuses objectives that are no choice among several, and what does not go together with them."""
    names = [name.removeprefix("eval_") for name in args.objectives]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise SMDError(
            f"objectives are {', '.join(args.objectives) or 'none'}; expected two or more, each once. Name another, or set fitness "
            "to choose by one number alone."
        )
    if not measured_names(args.objectives):
        raise SMDError(
            f"objectives are {' and '.join(args.objectives)}, which are about weights alone: nothing would keep the predictions "
            "right. Name one that is about predictions, such as nll."
        )
    senseless = {
        "fitness": args.fitness != measured_names(args.objectives)[0],
        "fitness_greater_is_better": args.fitness_greater_is_better is not None,
        "recombination": args.recombination != "best",
        "racing": args.racing != "none",
        "elitism": not args.elitism,
        "load_best_model_at_end": args.load_best_model_at_end,
    }
    for name, chosen in senseless.items():
        if chosen:
            raise SMDError(
                f"{name}={getattr(args, name)} does not go with objectives, by which children are compared in several numbers, and "
                "one of the front takes the parent's place. Leave it out, or choose one fitness instead of objectives."
            )
    if args.selection_fraction == 0 and args.fitness_samples_per_generation is not None:
        raise SMDError(
            "objectives compare candidates of all generations on the same images, and with selection_fraction=0 and "
            "fitness_samples_per_generation there are none. Set aside a selection_fraction."
        )
    check_pymoo()
