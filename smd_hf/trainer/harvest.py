"""What a run leaves beside the evolved model: an ensemble of the last generation's children, and the best of them as deltas."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..arguments import EvolutionArguments
from ..delta.sparse_delta import SparseDelta
from ..diversity import disagreement, mean_pairwise_kl, output_correlation
from ..ensemble import SMDEnsembleForImageClassification, save_ensemble
from ..ensemble.combination import combine
from ..ensemble_choice import choose_members
from ..evaluation.images import ImageBatches
from ..evolution import Evolution
from ..mutation import keep
from ..pareto.front import RunFront, front_ensemble
from ..report import measured
from ..selection import ScoredChild, ranked
from ..statistics import Scores, accuracy


@dataclass
class Harvest:
    """
    Finished artifacts, not yet written.

    Args:
        ensemble ([`SMDEnsembleForImageClassification`], *optional*): of children of the last generation.
        members (list of `dict`): child and votes of each member, in the order of choice; of a front also the generation.
        deltas (list of [`SparseDelta`]): the fittest children, best first.
        delta_logits (list of `numpy.ndarray`): of each delta's child on the test data, of shape `(n, num_labels)`.
    """

    ensemble: SMDEnsembleForImageClassification | None = None
    members: list[dict[str, int]] = field(default_factory=list)
    deltas: list[SparseDelta] = field(default_factory=list)
    delta_logits: list[np.ndarray] = field(default_factory=list)


def harvest(
    evolution: Evolution,
    args: EvolutionArguments,
    test_batches: ImageBatches | None,
    first_parent: PreTrainedModel | None,
    front: RunFront | None = None,
) -> Harvest:
    """
    Builds what `ensemble_size` and `save_children` ask for, from the children of the last generation.

    Args:
        evolution ([`Evolution`]): after its last step.
        args ([`EvolutionArguments`]): how many, and how they are chosen.
        test_batches ([`ImageBatches`], *optional*): what the saved children are measured on.
        first_parent ([`~transformers.PreTrainedModel`], *optional*): what deltas are relative to; needed for `save_children`.
        front ([`RunFront`], *optional*): needed for `ensemble_selection="front"`.
    """
    survivors = ranked(evolution.last.children)
    best = survivors[: args.save_children]
    result = Harvest()
    if args.ensemble_size and args.ensemble_selection == "front":
        result.ensemble, result.members = front_ensemble(evolution, front, args.ensemble_combination)
    with evolution.last_parent():
        if args.ensemble_size and survivors and result.ensemble is None:
            chosen = _choose(evolution, args, survivors)
            result.members = [{"child": scored.child.index, "votes": votes} for scored, votes in chosen]
            result.ensemble = SMDEnsembleForImageClassification.from_children(
                copy.deepcopy(evolution.model),
                [dict(evolution.mutation.changes(scored.child)) for scored, _ in chosen],
                [float(votes) for _, votes in chosen],
                args.ensemble_combination,
            )
        result.deltas = [_delta(evolution, args, scored, first_parent) for scored in best]
        if test_batches is not None and best:
            variants = [evolution.variant(scored.child) for scored in best]
            scores = evolution.evaluator.score(variants, test_batches, keep_logits=True)
            result.delta_logits = [score.logits for score in scores]
    return result


def _choose(
    evolution: Evolution, args: EvolutionArguments, survivors: list[ScoredChild]
) -> list[tuple[ScoredChild, int]]:
    variants = [evolution.variant(scored.child) for scored in survivors]
    batches = evolution.selection_batches
    scores = evolution.evaluator.score(variants, batches, keep_logits=True)
    chosen = choose_members(
        np.stack([score.logits for score in scores]),
        batches.labels,
        args.ensemble_size,
        args.ensemble_selection,
        args.ensemble_combination,
    )
    return [(survivors[place], votes) for place, votes in chosen]


def _delta(
    evolution: Evolution, args: EvolutionArguments, scored: ScoredChild, first_parent: PreTrainedModel
) -> SparseDelta:
    """The child as its difference from the first parent, over all generations between."""
    child = scored.child
    model = copy.deepcopy(evolution.model)
    keep(dict(model.named_parameters()), evolution.mutation.changes(child))
    return SparseDelta.between(
        first_parent,
        model.to(first_parent.device),
        seed=args.seed,
        generation=child.generation,
        child=child.index,
        record={"sigma": child.sigma, "decomposition": args.decomposition, args.fitness: scored.fitness},
    )


def describe_deltas(result: Harvest, parent_logits: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, Any]:
    """What the test data say of each delta, by the name of its folder."""
    entries = {}
    for number, (delta, logits) in enumerate(zip(result.deltas, result.delta_logits)):
        scores, difference = measured(parent_logits, logits, labels, "child", seed)
        entries[f"{number:04d}"] = {
            "scores": scores,
            "difference": difference,
            "generation": delta.config.generation,
            "child": delta.config.child,
            "coordinates": sum(len(values.flatten()) for _, values in delta.changes.values()),
        }
    return entries


@torch.inference_mode()
def describe_ensemble(
    result: Harvest, batches: ImageBatches, args: EvolutionArguments
) -> tuple[np.ndarray, dict[str, Any]]:
    """
    What the test data say of the ensemble.

    Args:
        result ([`Harvest`]): with an ensemble.
        batches ([`ImageBatches`]): the test data.
        args ([`EvolutionArguments`]): of the run.

    Returns:
        `tuple[numpy.ndarray, dict]`: log-probabilities of shape `(n, num_labels)`; and how the members were chosen, how they
        differ, the scores of the fittest (`best`) and of the mean member, and accuracy by number of members.
    """
    ensemble = result.ensemble.to(args.device).eval()
    outputs = [ensemble(**batch.inputs(args.device, ensemble.dtype), output_members=True) for batch in batches]
    logits = torch.cat([output.logits for output in outputs]).float().cpu()
    members = torch.cat([output.member_logits for output in outputs]).float().cpu()
    weights = torch.tensor(ensemble.config.member_weights)
    sizes = range(1, len(weights) + 1)
    by_size = [combine(members[:, :size], weights[:size], ensemble.config.combination).numpy() for size in sizes]
    by_member = members.numpy().transpose(1, 0, 2)
    scores = [_entry(Scores.from_logits(each, batches.labels)) for each in by_member]
    diversity = {
        "disagreement": disagreement(by_member.argmax(-1)),
        "mean_pairwise_kl": mean_pairwise_kl(by_member),
        "output_correlation": output_correlation(by_member),
    }
    return logits.numpy(), {
        "size": len(scores),
        "members": result.members,
        "selection": args.ensemble_selection,
        "combination": args.ensemble_combination,
        "best": scores[0],
        "mean": {key: float(np.mean([each[key] for each in scores])) for key in scores[0]},
        "diversity": diversity if len(scores) > 1 else None,
        "accuracy_by_size": [accuracy(each, batches.labels) for each in by_size],
    }


def _entry(scores: Scores) -> dict[str, float]:
    return {"accuracy": scores.accuracy, "nll": scores.nll, "calibration_error": scores.calibration_error}


def write_harvest(result: Harvest, processor: Any, folder: Path) -> None:
    """Writes `ensemble/` and `children/0000`, `0001`, ... into the output folder."""
    if result.ensemble is not None:
        save_ensemble(result.ensemble, processor, folder / "ensemble")
    for number, delta in enumerate(result.deltas):
        delta.save_pretrained(folder / "children" / f"{number:04d}")
