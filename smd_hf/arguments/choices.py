"""
The choices that arguments offer, as types.

They are defined here so that arguments import no other room. The code that implements a
choice takes its names from here.
"""

from typing import Any, Literal, get_args

Preset = Literal["adapt", "smd"]
TaskName = Literal[
    "image-classification",
    "image-segmentation",
    "object-detection",
    "zero-shot-image-classification",
    "depth-estimation",
    "image-feature-extraction",
]
DepthAlignment = Literal["none", "depth", "inverse_depth"]
Decomposition = Literal["dense", "random", "antirandom", "partition", "blocks"]
SubspaceSchedule = Literal["dynamic", "static"]
Allocation = Literal["uniform", "cost"]
Mutation = Literal["noise", "prune"]
SigmaUnits = Literal["relative", "absolute"]
SigmaSchedule = Literal["constant", "linear", "cosine"]
FitnessSampling = Literal["balanced", "importance"]
Recombination = Literal["auto", "best", "top_k_mean", "top_k_sum", "greedy_soup", "gauss_newton"]
Loss = Literal["cross_entropy", "focal", "ordinal", "expected_cost"]
Racing = Literal["none", "halving"]
Spread = Literal["auto", "data", "children"]
Runtime = Literal["auto", "eager", "compiled", "openvino"]
Precision = Literal["fp32", "bf16", "auto"]
OnBadImages = Literal["raise", "skip"]
HeadInit = Literal["linear_probe", "random", "keep"]
EnsembleSelection = Literal["top_k", "all", "greedy", "front"]
EnsembleCombination = Literal["mean_probabilities", "mean_logits", "majority_vote", "mean"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]

OODMetric = Literal["ood_auroc", "ood_energy_auroc"]
"""Fitness values that are measured on out-of-distribution images, a second data set."""

WeightObjective = Literal["mutated_fraction", "zero_fraction"]
"""Objectives about weights, not about predictions."""


def names(choice: Any) -> tuple[str, ...]:
    """The names that a choice offers, in order."""
    return get_args(choice)
