"""Collects a run's artifacts besides the evolved model: an ensemble of the last generation's children, and the best as deltas."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..arguments.evolution_arguments import EvolutionArguments
from ..data.batches import ImageBatches
from ..metrics.absent_classes import absent_entry, classes_at_hand
from ..metrics.comparison import measured
from ..metrics.diversity import disagreement, mean_pairwise_kl, output_correlation
from ..metrics.statistics import Scores, accuracy
from ..models.quantized import named_tensors
from ..remote_code.members_smd_ensemble import combine, logits_of
from ..scoring.bars import TickingBar
from ..scoring.changes import commit
from ..search.evolution import Evolution
from ..search.fitness import ScoredChild, ranked
from ..search.pareto.pareto_evolution import ParetoEvolution
from ..search.pareto.run_front import RunFront, named
from ..tasks.classification import ImageClassification
from ..tasks.protocol import Task
from .choose_members import choose_members
from .delta.sparse_delta import SparseDelta
from .ensemble import ENSEMBLES, SMDEnsembleForImageClassification, save_ensemble


@dataclass
class Artifacts:
    """
    The artifacts of a run in memory, before they are written.

    Args:
        members (list of `dict`): child and votes of each member, in the order of choice. Members of a front also have a
            generation.
        delta_logits (list of `numpy.ndarray`): of each delta's child on the test data, of shape `(n, num_labels)`.
    """

    ensemble: SMDEnsembleForImageClassification | None = None
    members: list[dict[str, int]] = field(default_factory=list)
    deltas: list[SparseDelta] = field(default_factory=list)
    delta_logits: list[np.ndarray] = field(default_factory=list)


def collect_artifacts(
    evolution: Evolution,
    args: EvolutionArguments,
    test_batches: ImageBatches | None,
    first_parent: PreTrainedModel | None,
    front: RunFront | None = None,
    task: Task | None = None,
) -> Artifacts:
    """Builds the ensemble and the deltas of the last generation's children that the arguments ask for."""
    task = task or ImageClassification()
    tag = task.kind.pipeline_tag
    assert evolution.last is not None  # a generation has run
    survivors = ranked(evolution.last.children)
    best = survivors[: args.save_children]
    result = Artifacts()
    if args.ensemble_size and args.ensemble_selection == "front":
        assert isinstance(evolution, ParetoEvolution) and front is not None
        result.ensemble, result.members = front_ensemble(evolution, front, args.ensemble_combination, tag)
    with evolution.last_parent():
        if args.ensemble_size and survivors and result.ensemble is None:
            chosen = _choose(evolution, args, survivors, task)
            result.members = [{"child": scored.child.index, "votes": votes} for scored, votes in chosen]
            result.ensemble = ENSEMBLES[tag].from_children(
                _model(evolution),
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
    evolution: Evolution, args: EvolutionArguments, survivors: list[ScoredChild], task: Task
) -> list[tuple[ScoredChild, int]]:
    if not task.keeps_labels:
        # Predictions of all children are not kept, so that nothing but their order chooses.
        count = len(survivors) if args.ensemble_selection == "all" else args.ensemble_size
        return [(scored, 1) for scored in survivors[:count]]
    variants = [evolution.variant(scored.child) for scored in survivors]
    batches = evolution.selection_batches
    scores = evolution.evaluator.score(variants, batches, keep_logits=True)
    with TickingBar("Choosing the ensemble", not args.disable_tqdm and args.process_index == 0):
        chosen = choose_members(
            np.stack([score.logits for score in scores]),
            batches.labels,
            args.ensemble_size,
            args.ensemble_selection,
            args.ensemble_combination,
        )
    return [(survivors[place], votes) for place, votes in chosen]


def _delta(
    evolution: Evolution, args: EvolutionArguments, scored: ScoredChild, first_parent: PreTrainedModel | None
) -> SparseDelta:
    """The child's difference from the first parent, over all generations."""
    assert first_parent is not None  # kept for save_children
    child, model = scored.child, _model(evolution)
    commit(named_tensors(model), evolution.mutation.changes(child))
    return SparseDelta.between(
        first_parent,
        model.to(first_parent.device),
        seed=args.seed,
        generation=child.generation,
        child=child.index,
        record={"sigma": child.sigma, "decomposition": args.decomposition, args.fitness: scored.fitness},
    )


def _model(evolution: Evolution) -> Any:
    """A copy of the model that evolves: a `PreTrainedModel` wherever artifacts are made."""
    return copy.deepcopy(evolution.model)


def describe_deltas(
    result: Artifacts, parent_logits: np.ndarray, labels: np.ndarray, seed: int, present: np.ndarray | None = None
) -> dict[str, Any]:
    """
    The scores of each delta on the test data and its comparison with the parent, by the name of its folder.

    Args:
        present (`np.ndarray`, *optional*): the classes that have an image in the other splits, as for [`gain_report`].
    """
    entries: dict[str, Any] = {}
    for number, (delta, logits) in enumerate(zip(result.deltas, result.delta_logits)):
        scores, difference = measured(parent_logits, logits, labels, "child", seed)
        entries[f"{number:04d}"] = {
            "scores": scores,
            "difference": difference,
            "generation": delta.config.generation,
            "child": delta.config.child,
            "coordinates": sum(len(values.flatten()) for _, values in delta.changes.values()),
        }
        if present is not None:
            at_hand = classes_at_hand(labels, present)
            absent = absent_entry(parent_logits, logits, labels, at_hand, "child", seed)
            entries[f"{number:04d}"] |= {} if absent is None else {"absent_classes": absent}
    return entries


@torch.inference_mode()
def describe_ensemble(
    result: Artifacts, batches: ImageBatches, args: EvolutionArguments
) -> tuple[np.ndarray, dict[str, Any]]:
    """
    Measures the ensemble on the test data.

    Args:
        result ([`Artifacts`]): must have an ensemble.

    Returns:
        `tuple[numpy.ndarray, dict]`: log-probabilities of shape `(n, num_labels)`; and a description with the selection of
        the members, their diversity, the scores of the fittest (`best`) and of the mean member, and accuracy by number of
        members.
    """
    assert result.ensemble is not None
    ensemble = result.ensemble.eval()
    ensemble.to(args.device)  # pyright: ignore[reportArgumentType]
    outputs = [ensemble(**batch.inputs(args.device, ensemble.dtype), output_members=True) for batch in batches]
    logits = torch.cat([logits_of(output) for output in outputs]).float().cpu()
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


def write_artifacts(result: Artifacts, processor: Any, folder: Path) -> None:
    """Writes `ensemble/` and `children/0000`, `children/0001`, ... into the output folder."""
    if result.ensemble is not None:
        save_ensemble(result.ensemble, processor, folder / "ensemble")
    for number, delta in enumerate(result.deltas):
        delta.save_pretrained(folder / "children" / f"{number:04d}")


def front_ensemble(
    evolution: ParetoEvolution, front: RunFront, combination: str, tag: str
) -> tuple[SMDEnsembleForImageClassification, list[dict[str, Any]]]:
    """The ensemble of a front for a task of the Hub, with one vote per member, and the generation and child of each member."""
    with evolution.from_first_parent():
        model = _model(evolution)
    ensemble = ENSEMBLES[tag].from_children(model, [changes for _, changes in front.ensemble], combination=combination)
    return ensemble, [named(place) | {"votes": 1} for place, _ in front.ensemble]
