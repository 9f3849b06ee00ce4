"""The arguments of the method: population, mutation, fitness, recombination."""

from dataclasses import dataclass, field
from typing import Any

from .choices import (
    Allocation,
    Decomposition,
    FitnessSampling,
    Loss,
    Mutation,
    Recombination,
    SigmaSchedule,
    SigmaUnits,
    SubspaceSchedule,
)
from .recipes import from_preset


@dataclass
class PopulationArguments:
    """Parameters that control the population and how long it evolves."""

    population_size: int = from_preset("population_size", "Number of children in each generation, at least 2.")
    num_generations: int = from_preset("num_generations", "Number of generations.")
    max_forward_passes: float | None = field(
        default=None,
        metadata={
            "help": "Start no generation that would exceed this number of forward passes of the model over the fitness images."
        },
    )
    max_hours: float | None = field(
        default=None, metadata={"help": "Stop after this many hours and keep the best model so far."}
    )
    elitism: bool = field(
        default=True,
        metadata={
            "help": "Keep the parent unless a candidate is better on the selection split (--no_elitism: always replace it)."
        },
    )


@dataclass
class WarmStartArguments:
    """Parameters that control what is estimated or fitted before the first generation and after the last."""

    warm_start: bool = from_preset(
        "warm_start",
        "Re-estimate the statistics of BatchNorm layers before the first generation, wholly or in part, in one pass; then fit the "
        "classifier head: class prior (the bias alone), temperature, both, and the "
        "whole head, pulled to the old one, on the parent's features of the fitness images. It costs one pass and "
        "takes no gradient through the model. The selection split chooses one of each, or the parent as it is. For semantic "
        "segmentation, the head is the convolution of size 1 that makes the logits of pixels; for object detection, the "
        "layer that classifies the queries. With refit_head, the whole head is reported but not chosen: it knows the "
        "fitness images by heart, and leaves the children little to learn from them.",
    )
    refit_head: bool = from_preset(
        "refit_head",
        "Fit the classifier head after the last generation, on the evolved model's features, which costs one pass. "
        "The selection split decides whether it is kept. Begins with warm_start.",
    )


@dataclass
class MutationArguments:
    """Parameters that control the mutation and the subspaces that it is cut into."""

    decomposition: Decomposition = from_preset(
        "decomposition",
        "How a dense mutation is cut into one subspace per child. partition: disjoint masks of one mutation, whose "
        "union is everything; random: a mask of the given density; antirandom: pairs of a mask and its complement; "
        "blocks: one contiguous run of blocks of the model; dense: every coordinate, the control.",
    )
    density: float | None = field(
        default=None,
        metadata={
            "help": "Share of the mutable coordinates that a child changes, in (0, 1]. Defaults to 1/16 for random and, within "
            "a child's blocks, to 1 for blocks. The other decompositions fix it."
        },
    )
    subspace_schedule: SubspaceSchedule = field(
        default="dynamic",
        metadata={"help": "dynamic draws new masks and noise in every generation; static keeps the masks."},
    )
    allocation: Allocation = from_preset(
        "allocation",
        "With decomposition blocks: the number of children per block. uniform gives each block the same; cost gives "
        "more to blocks whose children are cheaper to score, counted in operations.",
    )
    mutable_parameters: list[str] = from_preset(
        "mutable_parameters",
        "Parameters that may change: the groups all, norms, biases, head, scales (of quantised weights; not in all), or "
        "shell-style patterns over parameter names. A model without norms changes all where the preset says norms.",
    )
    frozen_parameters: list[str] | None = field(
        default=None, metadata={"help": "Of these, parameters that must not change: groups or patterns."}
    )
    mutation: Mutation = field(
        default="noise",
        metadata={
            "help": "noise adds Gaussian noise to a child's coordinates; prune sets them to zero, without a sigma and with "
            "recombination best. A pruned child that is as good as its parent replaces it (--no_elitism: a worse one too)."
        },
    )
    scaling_share: float = from_preset(
        "scaling_share",
        "Share of the children, in [0, 1), that multiply a whole tensor by 1 + sigma or 1 - sigma instead of adding "
        "noise. They help where the parent is overconfident.",
    )
    mirrored: bool = field(
        default=False,
        metadata={
            "help": "Make children in pairs: parent plus and parent minus the same mutation. Needs an even population."
        },
    )
    sigma: float = from_preset(
        "sigma",
        "Mutation strength. 0 calibrates it before the first generation: by bisection, until a child flips "
        "calibration_target of the predictions.",
    )
    sigma_units: SigmaUnits = field(
        default="relative",
        metadata={"help": "relative: sigma is multiplied by each tensor's standard deviation; absolute: it is not."},
    )
    sigma_schedule: SigmaSchedule = field(
        default="constant",
        metadata={"help": "Sigma over the generations: constant, or falling towards 0 (linear, cosine)."},
    )
    match_norm: bool = field(
        default=False,
        metadata={
            "help": "Divide sigma by sqrt(density), so that children of every density are equally far from the parent."
        },
    )
    calibration_target: float = field(
        default=0.03, metadata={"help": "Share of predictions that a child flips at the calibrated sigma, in (0, 1)."}
    )
    calibration_samples: int = field(
        default=256, metadata={"help": "Number of fitness images that the calibration of sigma uses."}
    )


@dataclass
class FitnessArguments:
    """Parameters that control the fitness, and which images it is measured on."""

    fitness: str = field(
        default="nll",
        metadata={
            "help": "What children are scored by: nll, accuracy, error, macro_f1, balanced_accuracy, top_5_accuracy (or another "
            "number), calibration_error, expected_cost (with cost_matrix), ood_auroc or ood_energy_auroc (with "
            "out-of-distribution images), a classification scorer of scikit-learn (f1_macro, matthews_corrcoef, roc_auc_ovr, ...), "
            "or a key that compute_metrics or metric_name_or_path returns."
        },
    )
    unlabeled: bool = field(
        default=False,
        metadata={
            "help": "Adapt to images without labels: those of train_dataset are not read, and those of eval_dataset are for the report "
            "alone. BatchNorm statistics first; then children are scored by information, the entropy of the mean prediction minus the "
            "mean entropy of predictions. Candidates that change more than a tenth of the predicted classes are refused. For image "
            "classification."
        },
    )
    objectives: list[str] | None = field(
        default=None,
        metadata={
            "help": "Two or more fitness values that choose children together; also mutated_fraction (share of the weights that "
            "changed) and zero_fraction (share that is zero). The next parent is one that no candidate beats in all of them, "
            "and the front of such models is saved. Needs smd_hf[pareto]."
        },
    )
    fitness_greater_is_better: bool | None = field(
        default=None,
        metadata={
            "help": "Direction of a fitness that compute_metrics returns. By default, lower is better for keys that end in nll, "
            "loss, error, perplexity, distance, cost, mse, mae or brier_score, and greater for all others."
        },
    )
    metric_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A metric of `evaluate`: the path of its script, or its name on the Hub, which needs trust_remote_code. Its "
            "first key is the fitness unless another is chosen."
        },
    )
    metric_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'Options of that metric as JSON, such as {"average": "macro"}.'}
    )
    cost_matrix: str | None = field(
        default=None,
        metadata={
            "help": "For expected_cost, as fitness or as loss: a JSON list of rows. Row i, column j is the cost of predicting "
            "class j for an image of class i."
        },
    )
    fitness_samples_per_generation: int = from_preset(
        "fitness_samples_per_generation",
        "Score each generation on this many fitness images, balanced over the classes, and on other images in the "
        "next generation. 0: every generation uses all.",
    )
    fitness_sampling: FitnessSampling = from_preset(
        "fitness_sampling",
        "How these images are drawn. balanced: by chance, and balanced over the classes. importance: images on which the "
        "loss is steep come more often and weigh less in a gauss_newton step, which then takes fewer images for the same "
        "precision. For image classification.",
    )
    selection_fraction: float = from_preset(
        "selection_fraction",
        "Share of train_dataset that is set aside, stratified by class, to choose among finished candidates; in [0, "
        "1). With 0 the fitness images choose, and the report says so.",
    )


@dataclass
class RecombinationArguments:
    """Parameters that control how scored children become the next parent."""

    recombination: Recombination = from_preset(
        "recombination",
        "gauss_newton takes a second-order step in the span of all children, or the fittest child if that is better; "
        "best takes the fittest child; top_k_sum adds up the changes of the fittest, of as many as the selection split "
        "likes best; top_k_mean averages the fittest; greedy_soup averages those of the fittest that help; auto is best "
        "with racing, pruning or objectives, top_k_sum for tasks without a Gauss-Newton step, and gauss_newton otherwise.",
    )
    recombination_top_k: int = from_preset(
        "recombination_top_k",
        "How many of the fittest children take part. best: scored again on the selection split, which chooses one; "
        "top_k_sum: added up, 1, 2, 4, ... and all of them; top_k_mean: averaged; greedy_soup: tried; gauss_newton: "
        "tried next to the step. With objectives, the fittest are those that no other child dominates.",
    )
    loss: Loss = field(
        default="cross_entropy",
        metadata={
            "help": "What a gauss_newton step lowers: cross_entropy (with label_smoothing_factor and class_weights), focal, "
            "ordinal, or expected_cost (with cost_matrix)."
        },
    )
    objective: Loss | None = field(default=None, metadata={"help": "Deprecated name of loss."})
    class_weights: list[float] | None = field(
        default=None, metadata={"help": "For loss cross_entropy: the weight of an image of each class."}
    )
