"""Writes the files of a finished run: the report, the plots, the example and the model cards."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..artifacts.collect import describe_deltas, describe_ensemble, write_artifacts
from ..data.hub_source import hub_source
from ..data.images import to_image
from ..messages import one_line
from ..metrics.statistics import reliability
from ..models.load import num_channels
from ..models.tasks import CLASSIFIER
from ..run.state import RunState
from ..scoring.evaluator import Evaluator
from ..scoring.scores import Score
from ..search.evolution import Evolution
from ..search.mutation import zero_share
from ..tasks.registry import is_classification
from ..tasks.zero_shot import ZeroShotImageClassification
from .cards.benchmark import benchmark_task
from .cards.metadata import is_hub_id
from .cards.model_card import card_entries, classify_example, save_example, write_card
from .front import write_front
from .gain_report import REPORT_NAME, gain_report, whole_report, write_report
from .plots import plot_calibration_curve, plot_ensemble_size, plot_fitness, plot_gain, plot_reliability
from .predictions import PLOT_NAME as PREDICTIONS_NAME
from .predictions import plot_predictions
from .run_result import RunResult, TestScores
from .steps import compare_by_task, compare_classes, describe_steps
from .task_report import task_comparison

logger = logging.get_logger(__name__)

# Builders that name a file format, not a data set.
GENERIC_BUILDERS = ("parquet", "imagefolder", "csv", "json", "arrow", "webdataset", "generator", "text", "pandas")


def write_results(
    result: RunResult, evolution: Evolution, run: RunState, cost: dict[str, float], dataset_name: str | None = None
) -> dict[str, Any] | None:
    """
    Writes all files of a run but the evolved model, and sets the result's report. Only one process may call it.

    Args:
        result ([`RunResult`]), evolution ([`Evolution`]), run ([`RunState`]): after the last generation, with everything measured.

    Returns:
        `dict` or `None`: the report; `None` if there are no test images.
    """
    write_artifacts(result.artifacts, result.processing_class, result.folder)
    if result.front is not None:
        write_front(result.front.table, result.folder)
    if result.test is not None:
        result.report = run_report(result, result.test, evolution, run, cost, dataset_name)
        write_run_files(result, result.test, result.report, evolution, run)
    return result.report


def run_report(
    result: RunResult,
    test: TestScores,
    evolution: Evolution,
    run: RunState,
    cost: dict[str, float],
    dataset_name: str | None = None,
) -> dict[str, Any]:
    """The contents of `gain_report.json`. Takes the arguments of [`write_results`], and the scores on the test images."""
    args, images, artifacts = result.args, result.images, result.artifacts
    data = describe_data(result, test, dataset_name)
    if (benchmark := benchmark_task(data, token=args.hub_token)) is not None:
        data["benchmark"] = benchmark
    cards = card_entries(args, run, evolution.fitness, result.parent.name, token=args.hub_token)
    about: dict[str, Any] = dict(
        # Paths of this machine stay private.
        arguments={name: value for name, value in args.non_default().items() if name != "output_dir"},
        method=describe_method(result, evolution, run),
        cost=cost,
        data=data,
    )
    if not is_classification(result.task):
        task: Any = result.task
        ensemble = None if artifacts.ensemble is None else _ensemble_score(result, test)
        found = task_comparison(task, test, evolution.fitness.name, args.seed, ensemble)
        found |= {"stopped": result.stopped, "selection": run.candidates(images.per_candidate)}
        if artifacts.ensemble is not None:
            names = {"selection": args.ensemble_selection, "combination": args.ensemble_combination}
            found["ensemble_members"] = {"size": len(artifacts.members), "members": artifacts.members, **names}
        if any(result.first_steps):
            compared = compare_by_task(task, evolution.fitness, args.seed)
            found["steps"] = describe_steps(*result.first_steps, result.refit_head, test, evolution.fitness, compared)
        return whole_report({key: entry for key, entry in found.items() if entry is not None}, **about) | cards
    ensemble_logits, extra = None, {} if result.stopped is None else {"stopped": result.stopped}
    if isinstance(result.task, ZeroShotImageClassification):
        names: Any = evolution.model.config.id2label
        labels = [names[place] for place in range(len(names))]
        extra |= {
            "task": result.task.kind.pipeline_tag,
            "zero_shot": {"candidate_labels": labels, "hypothesis_template": result.task.template},
        }
    if artifacts.ensemble is not None:
        ensemble_logits, extra["ensemble_members"] = describe_ensemble(artifacts, test.batches, args)
    if artifacts.deltas:
        extra["deltas"] = describe_deltas(artifacts, test.parent, test.labels, args.seed, images.classes_present())
    if result.front is not None:
        extra["front"] = result.front.table
    if result.ood is not None:
        extra["out_of_distribution"] = result.ood
    if any(result.first_steps):
        compared = compare_classes(test.labels, args.seed)
        extra["steps"] = describe_steps(*result.first_steps, result.refit_head, test, evolution.fitness, compared)
    report = gain_report(
        test.parent,
        test.evolved,
        test.labels,
        **about,
        candidates=run.candidates(images.per_candidate),
        ensemble_logits=ensemble_logits,
        present=images.classes_present(),
        seed=args.seed,
    )
    if args.unlabeled:
        # Chance makes no candidate look more accurate where accuracy chooses nothing.
        report["selection"].pop("expected_optimism", None)
    return report | extra | cards


def _ensemble_score(result: RunResult, test: TestScores) -> Score:
    """Of the ensemble on the test images; only one process measures it."""
    ensemble: Any = result.artifacts.ensemble
    evaluator = Evaluator(ensemble.eval().to(result.args.device), result.args.device, reading=result.task)
    return evaluator.score_model(test.batches)


def describe_method(result: RunResult, evolution: Evolution, run: RunState) -> dict[str, Any]:
    """The settings that determine the result, named as the arguments."""
    args, mutation, calibration = result.args, evolution.mutation, run.calibration
    method = {
        "parent_name": shown_name(result.parent.name),
        "new_head": result.parent.new_head,
        "mutation": args.mutation,
        "decomposition": args.decomposition,
        "density": mutation.decomposition.density,
        "scaling_share": args.scaling_share,
        "sigma": (args.sigma or None) if calibration is None else calibration.sigma,
        "sigma_units": args.sigma_units,
        "calibration": None if calibration is None else vars(calibration),
        "population_size": args.population_size,
        "num_generations": len(run.generations),
        "recombination": args.recombination,
        "fitness": args.fitness,
        "seed": args.seed,
        "mutable": {"tensors": len(mutation.space.names), "coordinates": mutation.space.total},
        "batch_size": args.eval_batch_size,
        "runtime": evolution.evaluator.identity,
        "batch_size_search": result.batch_size_search,
    }
    if mutation.prune:
        method["zero_share"] = {"before": result.parent_zero_share, "after": zero_share(mutation.parameters)}
    return method


def shown_name(name: str) -> str:
    """A Hub id unchanged; the last part of a folder's path."""
    return name if is_hub_id(name) else Path(name).name or name


def describe_data(result: RunResult, test: TestScores, dataset_name: str | None) -> dict[str, Any]:
    """The data set's name and, where it is on the Hub, its place there; the sizes of the three disjoint splits."""
    images = result.images
    info = getattr(images.train_dataset, "info", None)
    name = None if info is None or info.builder_name in GENERIC_BUILDERS else info.dataset_name
    train, tested = hub_source(images.train_dataset), hub_source(test.batches.dataset)
    name = dataset_name or (name if train is None else train.name)
    data = {
        "name": name,
        "fitness": {"num_images": images.fitness.num_images, "per_generation": images.per_generation},
        "selection": {"num_images": 0 if images.selection is None else images.selection.num_images},
        "test": {
            "num_images": test.batches.num_images,
            "used_to_choose": bool(result.args.load_best_model_at_end),
        },
    }
    if tested is not None and tested.name == name:
        whole = tested.whole_split and test.batches.num_images == len(test.batches.dataset)
        data |= {"config": tested.config, "revision": tested.revision}
        data["test"] |= {"split": tested.split, "whole_split": whole}
    return data | ({"left_out": images.left_out} if images.left_out else {})


def write_run_files(
    result: RunResult, test: TestScores, report: dict[str, Any], evolution: Evolution, run: RunState
) -> None:
    """
    Writes the report, the plots, the example and the model cards.

    The files of the evolved model go into `output_dir`, those of the ensemble and the deltas into their folders in it.
    """
    folder, artifacts = result.folder, result.artifacts
    _plot(folder, report, test, run, evolution.fitness.label)
    if result.drawn_before is not None and result.drawn_after is not None:
        names: Any = evolution.model.config.id2label or {}
        plot_predictions(result.drawn_before, result.drawn_after, names, folder / PREDICTIONS_NAME)
    kinds = {"child": folder}
    if artifacts.ensemble is not None:
        kinds["ensemble"] = folder / "ensemble"
        by_size = report["ensemble_members"].get("accuracy_by_size")
        if by_size is not None:
            plot_ensemble_size(
                range(1, len(by_size) + 1),
                by_size,
                report["parent"]["accuracy"],
                folder / "ensemble" / "ensemble_size.png",
            )
    if artifacts.deltas:
        kinds["delta"] = folder / "children"
    report["examples"] = {} if result.processing_class is None else _examples(result, test, evolution.model)
    write_report(report, folder)
    for kind, place in kinds.items():
        if place != folder:
            for name in (REPORT_NAME, "fitness.png", "gain.png", "example.png"):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, place / name)
        write_card(kind, place, report)


def _plot(folder: Path, report: dict[str, Any], test: TestScores, run: RunState, fitness_label: str) -> None:
    plot_gain(report, folder / "gain.png")
    plot_fitness(run.fitness_history(), folder / "fitness.png", label=fitness_label)
    if "metrics" not in report:
        plot_reliability(
            reliability(test.parent, test.labels), reliability(test.evolved, test.labels), folder / "reliability.png"
        )
    if run.calibration is not None:
        found = run.calibration
        plot_calibration_curve(found.curve, found.sigma, found.target, folder / "calibration.png")


def _examples(result: RunResult, test: TestScores, model: PreTrainedModel) -> dict[str, Any]:
    """
    Saves the first test image as `example.png`, for the cards.

    Returns:
        `dict`: what each classifier predicts for it. Empty for other tasks, whose cards only show the image.
    """
    images, processor, artifacts = result.images, result.processing_class, result.artifacts
    if images.image_column is None or num_channels(model) != 3:
        return {}
    example = save_example(to_image(test.batches.dataset[0][images.image_column]), result.folder)
    if result.task.kind is not CLASSIFIER or not is_classification(result.task):
        return {}
    examples = {"child": _classified(model, processor, example)}
    if artifacts.ensemble is not None:
        examples["ensemble"] = _classified(artifacts.ensemble, processor, example)
    if artifacts.deltas and result.first_parent is not None:
        with torch.no_grad(), artifacts.deltas[0].apply_to(result.first_parent):
            examples["delta"] = _classified(result.first_parent, processor, example)
    return {kind: predictions for kind, predictions in examples.items() if predictions is not None}


def _classified(model: PreTrainedModel, processor: Any, example: Path) -> list[dict[str, Any]] | None:
    """
    The predictions of transformers' pipeline for the example; `None` if the pipeline cannot run the model. It needs `logits`
    in every output, and `pixel_values` from every image processor.
    """
    try:
        return classify_example(model, processor, example)
    except Exception as error:  # the run is done, and only the example is lost
        logger.warning(
            f"The image-classification pipeline of transformers cannot run {type(model).__name__} ({type(error).__name__}: "
            f"{one_line(str(error))}), so its card shows how to load it, without an example."
        )
        return None
