"""Writes the files of a finished run: the report, the plots, the example and the model cards."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..artifacts.collect import Artifacts, describe_deltas, describe_ensemble
from ..data.images import to_image
from ..messages import one_line
from ..metrics.statistics import reliability
from ..models.load import num_channels
from ..search.mutation import zero_share
from .cards.metadata import is_hub_id
from .cards.model_card import card_entries, classify_example, save_example, write_card
from .gain_report import REPORT_NAME, gain_report, write_report
from .plots import plot_calibration_curve, plot_ensemble_size, plot_fitness, plot_gain, plot_reliability

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    from ..trainer import EvolutionTrainer

# Builders that name a file format, not a data set.
GENERIC_BUILDERS = ("parquet", "imagefolder", "csv", "json", "arrow", "webdataset", "generator", "text", "pandas")


def run_report(
    trainer: "EvolutionTrainer", evolved_logits: np.ndarray, cost: dict[str, float], found: Artifacts
) -> dict[str, Any]:
    """
    The contents of `gain_report.json`.

    Args:
        trainer ([`EvolutionTrainer`]): after its last generation.
        evolved_logits (`numpy.ndarray`): on the test data, of shape `(n, num_labels)`.
        cost (`dict`): of the evolution only.
        found ([`Artifacts`]): the ensemble and the children that are kept beside.
    """
    args, run, test = trainer.args, trainer.run, trainer.test_batches
    ensemble_logits, extra = None, {} if trainer.stopped is None else {"stopped": trainer.stopped}
    if found.ensemble is not None:
        ensemble_logits, extra["ensemble_members"] = describe_ensemble(found, test, args)
    if found.deltas:
        extra["deltas"] = describe_deltas(found, trainer.parent_test_logits, test.labels, args.seed)
    if trainer.front is not None:
        extra["front"] = trainer.front.table
    if trainer.ood_report is not None:
        extra["out_of_distribution"] = trainer.ood_report
    report = gain_report(
        trainer.parent_test_logits,
        evolved_logits,
        test.labels,
        # Paths of this machine stay private.
        arguments={name: value for name, value in args.non_default().items() if name != "output_dir"},
        method=describe_method(trainer),
        cost=cost,
        data=describe_data(trainer),
        candidates=run.candidates(
            trainer.selection_batches.num_images if trainer.selection_batches else trainer.images_per_generation
        ),
        ensemble_logits=ensemble_logits,
        present=trainer.classes_with_images(),
        seed=args.seed,
    )
    return report | extra | card_entries(args, run, trainer.fitness, trainer.parent_name, token=args.hub_token)


def describe_method(trainer: "EvolutionTrainer") -> dict[str, Any]:
    """The settings that determine the result, named as the arguments."""
    args, mutation, calibration = trainer.args, trainer.mutation, trainer.run.calibration
    return {
        "parent_name": shown_name(trainer.parent_name),
        "new_head": trainer.new_head,
        "mutation": args.mutation,
        "decomposition": args.decomposition,
        "density": mutation.decomposition.density,
        "scaling_share": args.scaling_share,
        "sigma": args.sigma if calibration is None else calibration.sigma,
        "sigma_units": args.sigma_units,
        "calibration": None if calibration is None else vars(calibration),
        "population_size": args.population_size,
        "num_generations": len(trainer.run.generations),
        "recombination": args.recombination,
        "fitness": args.fitness,
        "seed": args.seed,
        "mutable": {"tensors": len(mutation.space.names), "coordinates": mutation.space.total},
        "batch_size": args.eval_batch_size,
        "batch_size_search": trainer.batch_size_search,
    } | (
        {"zero_share": {"before": trainer.parent_zero_share, "after": zero_share(mutation.parameters)}}
        if mutation.prune
        else {}
    )


def shown_name(name: str) -> str:
    """A Hub id unchanged; the last part of a folder's path."""
    return name if is_hub_id(name) else Path(name).name or name


def describe_data(trainer: "EvolutionTrainer") -> dict[str, Any]:
    """The data set's name, and the sizes of the three disjoint splits."""
    info = getattr(trainer.train_dataset, "info", None)
    name = None if info is None or info.builder_name in GENERIC_BUILDERS else info.dataset_name
    return {
        "name": trainer.dataset_name or name,
        "fitness": {
            "num_images": trainer.fitness_batches.num_images,
            "per_generation": trainer.images_per_generation,
        },
        "selection": {"num_images": trainer.selection_batches.num_images if trainer.selection_batches else 0},
        "test": {
            "num_images": trainer.test_batches.num_images,
            "used_to_choose": bool(trainer.args.load_best_model_at_end),
        },
    } | ({"left_out": trainer.left_out} if trainer.left_out else {})


def write_run_files(trainer: "EvolutionTrainer", evolved_logits: np.ndarray, found: Artifacts) -> None:
    """
    Writes the report, the plots, the example and the model cards.

    Those of the evolved model go into `output_dir`, those of the ensemble and the deltas into their folders in it.
    """
    folder, report = Path(trainer.args.output_dir), trainer.report
    _plot(trainer, evolved_logits, folder)
    kinds = {"child": folder}
    if found.ensemble is not None:
        kinds["ensemble"] = folder / "ensemble"
        by_size = report["ensemble_members"]["accuracy_by_size"]
        plot_ensemble_size(
            range(1, len(by_size) + 1),
            by_size,
            report["parent"]["accuracy"],
            folder / "ensemble" / "ensemble_size.png",
        )
    if found.deltas:
        kinds["delta"] = folder / "children"
    report["examples"] = _examples(trainer, found, folder) if trainer.processing_class is not None else {}
    write_report(report, folder)
    for kind, place in kinds.items():
        if place != folder:
            for name in (REPORT_NAME, "fitness.png", "gain.png", "example.png"):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, place / name)
        write_card(kind, place, report)


def _plot(trainer: "EvolutionTrainer", evolved_logits: np.ndarray, folder: Path) -> None:
    run, labels = trainer.run, trainer.test_batches.labels
    plot_gain(trainer.report, folder / "gain.png")
    plot_fitness(run.fitness_history(), folder / "fitness.png", label=trainer.fitness.label)
    plot_reliability(
        reliability(trainer.parent_test_logits, labels),
        reliability(evolved_logits, labels),
        folder / "reliability.png",
    )
    if run.calibration is not None:
        found = run.calibration
        plot_calibration_curve(found.curve, found.sigma, found.target, folder / "calibration.png")


def _examples(trainer: "EvolutionTrainer", found: Artifacts, folder: Path) -> dict[str, Any]:
    """Saves the first test image as `example.png` and returns each artifact's predictions for it."""
    column, processor = trainer.image_column, trainer.processing_class
    if column is None or num_channels(trainer.model) != 3:
        return {}
    example = save_example(to_image(trainer.reported_dataset[0][column]), folder)
    examples = {"child": _classified(trainer.model, processor, example)}
    if found.ensemble is not None:
        examples["ensemble"] = _classified(found.ensemble, processor, example)
    if found.deltas and trainer.first_parent is not None:
        with torch.no_grad(), found.deltas[0].apply_to(trainer.first_parent):
            examples["delta"] = _classified(trainer.first_parent, processor, example)
    return {kind: predictions for kind, predictions in examples.items() if predictions is not None}


def _classified(model: PreTrainedModel, processor: Any, example: Path) -> list[dict[str, Any]] | None:
    """
    What the pipeline of transformers says of the example; `None` where it cannot run the model. It wants `logits` of every
    output, and of every image processor `pixel_values`.
    """
    try:
        return classify_example(model, processor, example)
    except Exception as error:  # the run is done: what an example costs is the example
        logger.warning(
            f"The image-classification pipeline of transformers cannot run {type(model).__name__} ({type(error).__name__}: "
            f"{one_line(str(error))}), so its card shows how to load it, without an example."
        )
        return None
