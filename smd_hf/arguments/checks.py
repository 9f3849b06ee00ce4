"""Ranges and combinations of arguments, checked before a model or an image is loaded."""

import math
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import SMDError
from .choices import OODMetric, WeightObjective, names
from .inherited_arguments import check_inherited_arguments

OOD_METRICS, WEIGHT_OBJECTIVES = names(OODMetric), names(WeightObjective)


def measured_names(objectives: Sequence[str]) -> list[str]:
    """The objectives that measure predictions."""
    return [name for name in objectives if name not in WEIGHT_OBJECTIVES]


def against_importance(args: Any) -> str | None:
    """The argument that does not go with `fitness_sampling="importance"`: it draws some of the images, and a step weighs them."""
    wrong = {
        f"recombination='{args.recombination}'": args.recombination != "gauss_newton",
        "unlabeled=True": args.unlabeled,
        "fitness_samples_per_generation=0": not args.fitness_samples_per_generation,
        # The images of a generation would choose, and they are harder than others.
        "selection_fraction=0": not args.selection_fraction,
    }
    return next((what for what, holds in wrong.items() if holds), None)


def check_unlabeled(args: Any) -> None:
    """Refuses what needs the labels of training images, or would make the guard of predictions useless."""
    needs_labels = {
        "fitness": args.fitness != "information",
        "objectives": args.objectives is not None,
        "metric_name_or_path": args.metric_name_or_path is not None,
        "loss": args.was_chosen("loss"),
        "class_weights": args.class_weights is not None,
        "cost_matrix": args.cost_matrix is not None,
        "label_smoothing_factor": bool(args.label_smoothing_factor),
        "head_init": args.head_init not in (None, "keep"),
        "refit_head": args.refit_head,
        "mutation": args.mutation == "prune",
        "racing": args.racing == "halving",
    }
    wrong = [f"{name}={getattr(args, name)!r}" for name, is_wrong in needs_labels.items() if is_wrong]
    if wrong:
        raise SMDError(
            f"unlabeled scores children by the information of their predictions, without labels, and {wrong[0]} does not go with that. "
            "Leave it out, or leave unlabeled out."
        )
    if not args.elitism or not args.selection_fraction:
        raise SMDError(
            "unlabeled keeps the parent where candidates change its predictions too much, on images that are set aside. Leave elitism on, "
            "and set selection_fraction above 0."
        )


def check_choices(args: Any) -> None:
    """Refuses a value that an argument does not offer."""
    hints = get_type_hints(type(args))
    for argument in fields(args):
        literals = [
            hint for hint in (hints[argument.name], *get_args(hints[argument.name])) if get_origin(hint) is Literal
        ]
        value = getattr(args, argument.name)
        if literals and value is not None and value not in names(literals[0]):
            raise SMDError(f"{argument.name} is {value}; expected one of {', '.join(names(literals[0]))}.")


def check_evolution_arguments(args: Any) -> None:
    """Refuses values outside their range, before a model or an image is loaded."""
    check_choices(args)
    expected = {
        "population_size": (args.population_size >= 2, "2 or more"),
        "num_generations": (args.num_generations >= 1, "1 or more"),
        "max_forward_passes": (args.max_forward_passes is None or args.max_forward_passes > 0, "a positive number"),
        "max_hours": (args.max_hours is None or args.max_hours > 0, "a positive number"),
        "sigma": (
            0 <= args.sigma < math.inf,
            "a positive number (or 0 to calibrate it)",
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
        "image_cache_gb": (args.image_cache_gb >= 0, "0 or more"),
        "child_cache_gb": (args.child_cache_gb >= 0, "0 or more"),
        "reading_threads": (args.reading_threads is None or args.reading_threads >= 0, "0 or more"),
        "fitness_samples_per_generation": (
            args.fitness_samples_per_generation >= 0,
            "1 or more, or 0 for all",
        ),
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
    against = against_importance(args)
    if args.fitness_sampling == "importance" and against is not None:
        raise SMDError(
            "fitness_sampling='importance' draws some of the labelled images for each generation, a gauss_newton step weighs them, and "
            f"others choose. {against} does not go with that. Leave one of the two out."
        )
    fits = [name for name in ("warm_start", "refit_head") if getattr(args, name)]
    if fits and args.fitness in OOD_METRICS:
        raise SMDError(
            f"{fits[0]} fits the head on labelled images and chooses by their fitness, which fitness='{args.fitness}' is not. "
            "Leave it out, or choose another fitness."
        )
    if args.unlabeled:
        check_unlabeled(args)
    if args.mutation == "prune":
        check_pruning(args)
    if args.objectives is not None:
        check_objectives(args)
    elif args.ensemble_selection == "front":
        raise SMDError(
            "ensemble_selection='front' takes its members from the front of several objectives, and none are given. Set "
            "objectives, or choose greedy, top_k or all."
        )
    if args.racing == "halving" and args.fitness in OOD_METRICS:
        raise SMDError(
            f"fitness='{args.fitness}' takes a pass of every child over the out-of-distribution images, and racing='halving' "
            "is meant to save passes. Leave racing out, or choose another fitness."
        )
    if args.allocation == "cost" and args.decomposition != "blocks":
        raise SMDError(
            f"allocation='cost' distributes children over blocks, but decomposition is '{args.decomposition}'. Choose "
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


def check_pruning(args: Any) -> None:
    """Refuses choices that do not fit mutation='prune'."""
    senseless = {
        "sigma": args.sigma > 0,
        "mirrored": args.mirrored,
        "match_norm": args.match_norm,
        "scaling_share": args.scaling_share > 0,
        "recombination": args.recombination != "best",
        "decomposition": args.decomposition == "dense",
    }
    for name, chosen in senseless.items():
        if chosen:
            raise SMDError(
                f"{name}={getattr(args, name)} does not fit mutation='prune', which sets a child's coordinates to zero and replaces "
                "the parent by the best child. Leave it out, or choose mutation='noise'."
            )


def check_objectives(args: Any) -> None:
    """Refuses objectives that do not conflict, and arguments that do not fit several objectives."""
    names = [name.removeprefix("eval_") for name in args.objectives]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise SMDError(
            f"objectives are {', '.join(args.objectives) or 'none'}; expected two or more, each once. Name another, or set fitness "
            "to choose by one number."
        )
    if not measured_names(args.objectives):
        raise SMDError(
            f"objectives are {' and '.join(args.objectives)}, which only measure weights: nothing would keep the predictions "
            "right. Add one that measures predictions, such as nll."
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
                f"{name}={getattr(args, name)} does not fit objectives, which compare children by several numbers and replace the "
                "parent by one of the front. Leave it out, or choose one fitness instead of objectives."
            )
    if args.selection_fraction == 0 and args.fitness_samples_per_generation:
        raise SMDError(
            "objectives compare candidates of all generations on the same images, and with selection_fraction=0 and "
            "fitness_samples_per_generation there are none. Set aside a selection_fraction."
        )
    if find_spec("pymoo") is None:
        raise SMDError(
            "objectives need the package pymoo, which sorts candidates by several objectives and is not installed. Install it "
            "with `pip install 'smd-hf[pareto]'`, or choose one objective: fitness."
        )
