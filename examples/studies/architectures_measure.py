"""One generation of one parent, and how its sparse children differ from dense ones: what `architectures.py` measures."""

from typing import Any

import numpy as np
import torch
from common import image_batches, pack, variants
from datasets import Dataset
from transformers import PreTrainedModel

from smd_hf.artifacts.choose_members import choose_members
from smd_hf.data.batches import ImageBatches
from smd_hf.data.fitness_samples import split_indices
from smd_hf.data.labels import encode_labels, label_names, label_values
from smd_hf.data.rows import find_columns
from smd_hf.metrics.comparison import measured
from smd_hf.metrics.diversity import disagreement, mean_pairwise_kl, output_correlation
from smd_hf.metrics.statistics import accuracy, correct
from smd_hf.remote_code.members_smd_ensemble import combine
from smd_hf.scoring.evaluator import Evaluator
from smd_hf.search.evolution import PARENT, Evolution
from smd_hf.search.fitness import Fitness, ranked
from smd_hf.search.gauss_newton import GaussNewton
from smd_hf.search.losses import cross_entropy
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.sigma import calibrate_sigma, flipped
from smd_hf.search.subspaces import make_decomposition

FLIPPED = 0.03
"""Sigma is calibrated as the package does by default: a child flips this share of the predictions."""

SAMPLE = 256
"""On so many fitness images."""

TOP_K = 4
"""So many of the fittest children are scored again on the selection images, which choose the best one."""

SELECTION = 0.25
"""Share of the images to evolve on that is set aside for choosing."""


class Ground:
    """
    A parent and the three disjoint sets of images.

    Args:
        model (`PreTrainedModel`), processor: the parent, on the device where it is to run.
        evolve_on (`Dataset`): cut into fitness and selection images.
        test (`Dataset`): looked at to report, never to choose.
        batch_size (`int`), seed (`int`): of all scoring; of that cut, masks and noise.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Any, evolve_on: Dataset, test: Dataset, batch_size: int, seed: int
    ):
        self.model = model
        self.seed = seed
        self.evaluator = Evaluator(model, model.device)
        _, column = find_columns(evolve_on)
        labels = encode_labels(label_values(evolve_on, column), label_names(evolve_on, column))
        fitness, selection = split_indices(labels, SELECTION, seed)
        self.fitness = image_batches(model, processor, evolve_on, fitness, batch_size)
        self.selection = image_batches(model, processor, evolve_on, selection, batch_size)
        self.test = image_batches(model, processor, test, None, batch_size)

    def evolution(self, decomposition: str, children: int) -> Evolution:
        """One generation is a step of it: a Gauss-Newton step, with the best children as candidates beside it."""
        space = parameter_space(self.model)
        mutation = Mutation(self.model, make_decomposition(decomposition, space, children, seed=self.seed), self.seed)
        return Evolution(
            self.model,
            mutation,
            self.evaluator,
            Fitness("nll"),
            GaussNewton(TOP_K, cross_entropy()),
            self.fitness,
            self.selection,
            keep_parent=True,
        )

    def calibrated(self, evolution: Evolution) -> float:
        """The sigma at which a child flips the share `FLIPPED` of the parent's predictions."""
        sample = self.fitness.head(SAMPLE)
        return calibrate_sigma(lambda sigma: flipped(evolution, sigma, sample), FLIPPED, start=0.1).sigma


def one_generation(ground: Ground, children: int, members: int) -> dict[str, Any]:
    """
    One generation of sparse children and what becomes of it, on the test images.

    Args:
        ground ([`Ground`]): its model is the parent again afterwards only if no candidate was better: load it anew.
        children (`int`): that one dense mutation is cut into (`partition`).
        members (`int`): votes of the ensemble.

    Returns:
        dict of JSON values: sigma, the parent's scores, and for each of `best_child`, `ensemble`, `ensemble_of_all` and
        `gauss_newton` scores, paired difference to the parent and which test images it has right.
    """
    evolution = ground.evolution("partition", children)
    sigma = ground.calibrated(evolution)
    generation = evolution.step(0, sigma)
    gauss_newton = ground.evaluator.logits(ground.test)
    survivors = ranked(generation.children)
    with evolution.last_parent():
        family = [PARENT, *variants(evolution.mutation, [scored.child for scored in survivors])]
        parent, *tested = logits_of(ground.evaluator, family, ground.test)
        selected = np.stack(logits_of(ground.evaluator, family[1:], ground.selection))
    votes = np.zeros(len(survivors))
    for place, count in choose_members(selected, ground.selection.labels, members, "greedy"):
        votes[place] = count
    # The first in rank are the candidates that the selection images have seen already.
    names = [f"child {scored.child.index}" for scored in survivors[:TOP_K]]
    best = max(range(len(names)), key=lambda place: generation.selection[names[place]])
    stacked = torch.from_numpy(np.stack(tested, axis=1))
    found = {
        "best_child": tested[best],
        "ensemble": combine(stacked, torch.from_numpy(votes), "mean_probabilities").numpy(),
        "ensemble_of_all": combine(stacked, torch.ones(len(tested)), "mean_probabilities").numpy(),
        "gauss_newton": gauss_newton,
    }
    labels = ground.test.labels
    results = {}
    for name, logits in found.items():
        scores, difference = measured(parent, logits, labels, "candidate", ground.seed)
        results[name] = {"scores": scores, "difference": difference, "correct": pack(correct(logits, labels))}
    parent_scores, _ = measured(parent, parent, labels, "candidate", ground.seed)
    return {
        "sigma": sigma,
        "parent": {"scores": parent_scores, "correct": pack(correct(parent, labels))},
        "chosen": generation.chosen.name,
        "n_test": len(labels),
        "members": int(np.count_nonzero(votes)),
        **results,
    }


def diversity(ground: Ground, kind: str, children: int, factors: list[float]) -> list[dict[str, float]]:
    """
    How far children of one kind differ from each other, and what accuracy they lose, at several sigmas.

    Args:
        ground ([`Ground`]): with the parent as it was.
        kind (`str`): the decomposition, `"partition"` or `"dense"`.
        children (`int`): how many.
        factors (list of `float`): times the calibrated sigma.

    Returns:
        list of dict: for each factor sigma, the mean child's loss of accuracy on the test images, and three measures of
        diversity over all pairs of children.
    """
    evolution = ground.evolution(kind, children)
    base = ground.calibrated(evolution)
    labels = ground.test.labels
    [parent] = logits_of(ground.evaluator, [PARENT], ground.test)
    points = []
    for factor in factors:
        family = variants(evolution.mutation, evolution.mutation.children(0, factor * base))
        logits = np.stack(logits_of(ground.evaluator, family, ground.test))
        points.append(
            {
                "sigma": factor * base,
                "factor": factor,
                "loss": accuracy(parent, labels) - float(np.mean([accuracy(each, labels) for each in logits])),
                "flipped": float(np.mean(logits.argmax(-1) != parent.argmax(-1))),
                "disagreement": disagreement(logits.argmax(-1)),
                "pairwise_kl": mean_pairwise_kl(logits),
                "correlation": output_correlation(logits),
            }
        )
    return points


def logits_of(evaluator: Evaluator, family: list[Any], batches: ImageBatches) -> list[np.ndarray]:
    return [score.logits for score in evaluator.score(family, batches, keep_logits=True)]
