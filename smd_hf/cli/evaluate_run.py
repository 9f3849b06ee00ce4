"""What `smd-hf evaluate` does once its arguments are read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..arguments.evaluation_arguments import EvaluationArguments
from ..arguments.script_arguments import DataArguments, ModelArguments
from ..artifacts.loading import load_with_processor
from ..data.alignment import align_labels
from ..data.image_checks import check_images
from ..data.labels import encode_labels, label_names, label_values
from ..data.rows import ImageCollator, find_columns
from ..data.splits import load_splits
from ..errors import SMDError
from ..files import write_json
from ..metrics.absent_classes import classes_at_hand, compare_restricted, predicted_elsewhere, restricted
from ..metrics.statistics import Scores, compare
from ..models.inputs import input_names
from ..models.load import num_channels
from ..models.members import models_of
from ..models.tasks import check_kind
from ..reports.gain_report import format_comparison
from ..scoring.reading import ReadsClasses
from ..tasks.registry import find_task, is_classification
from ..tasks.zero_shot import ZeroShotImageClassification
from .evaluate_task import evaluate_task
from .parsing import hub_token
from .scoring import score_images
from .tables import short_names
from .terminal import quiet_libraries


def evaluate(
    models: Sequence[str], model_args: ModelArguments, data_args: DataArguments, args: EvaluationArguments
) -> int:
    """Scores one model, or compares the first with the second."""
    quiet_libraries()

    with hub_token(model_args.token):
        task = find_task(args.task, models[0], model_args.loading())
        _, images = load_splits(
            **asdict(data_args),
            image_column_name=args.image_column_name,
            label_column_name=args.label_column_name,
            seed=args.seed,
            cache_dir=model_args.cache_dir,
            need_train=False,
            classified=is_classification(task),
        )
        assert images is not None  # there may be none for unlabeled runs alone
        if not is_classification(task):
            text, result = evaluate_task(task, models, images, args, model_args.loading())  # pyright: ignore
            print(text)
            if args.output_file is not None:
                write_json(Path(args.output_file), result)
            return 0
        image_column, label_column = find_columns(images, args.image_column_name, args.label_column_name)
        check_images(images, image_column, what="validation", progress=not args.disable_tqdm)
        # The revision belongs to the first model, not to another repository.
        loading = [model_args.loading(), {**model_args.loading(), "revision": None}]
        scored = [
            logits_in_data_order(name, images, (image_column, label_column), args, kwargs, task)
            for name, kwargs in zip(models, loading)
        ]
    logits, (labels, *others) = [each for each, _ in scored], [each for _, each in scored]
    if not all(np.array_equal(labels, each) for each in others):
        raise SMDError(
            "label_map gives two labels the same class of one model, but two classes of the other, so they cannot be compared. Give "
            "them one class, or two, in both models."
        )

    if args.against is None:
        scores = Scores.from_logits(logits[0], labels)
        result = {"model": models[0], **asdict(scores)}
        print(format_scores(models[0], scores))
        names = models
    else:
        comparison = compare(
            logits[1], logits[0], labels, names=(names := short_names(models[1], models[0])), seed=args.seed
        )
        result = {"model": models[0], "against": models[1], **asdict(comparison)}
        print(format_comparison(comparison))
    absent = absent_classes(list(zip(names, reversed(logits))), labels, args.seed)
    if absent is not None:
        result["absent_classes"] = absent
        print(format_absent(absent))
    if args.output_file is not None:
        write_json(Path(args.output_file), result)
    return 0


def logits_in_data_order(
    name: str, images: Dataset, columns: tuple[str, str], args: EvaluationArguments, loading: dict, task: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    A model's logits, float32, of shape `(images, classes)`, with columns in the order of the data set's labels,
    followed by the classes that the data set does not have; and the column of each image's
    label, int64 of shape `(images,)`. Labels with the same class have one column.
    """
    image_column, label_column = columns
    model, processor = load_with_processor(name, **loading)
    if isinstance(task, ZeroShotImageClassification):
        check_kind(model, task.kind)
        processor = task.compare(model, args, processor, images)
    names, observed = label_names(images, label_column), label_values(images, label_column)
    try:
        alignment = align_labels(
            names,
            observed,
            model.config.id2label or {},
            split="validation",
            label_map=args.labels_given,
            otherwise="Or choose a model with these classes; `smd-hf evolve` gives a model a head for them.",
        )
    except SMDError as error:
        raise SMDError(f"'{name}' cannot be scored on this data. {error}") from error
    if not alignment.is_sure:
        print(f"{name}: {alignment.message}")
    member = models_of(model)[0]
    collator = ImageCollator(
        processor,
        image_column,
        label_column,
        alignment.mapping,
        num_channels(member),
        alignment.names,
        input_names(member),
    )
    logits = score_images(name, model, processor, images, collator, args, task or ReadsClasses()).logits
    order, places = alignment.columns(logits.shape[1])
    return logits[:, order], places[encode_labels(observed, alignment.names, split="validation")]


def absent_classes(models: Sequence[tuple[str, np.ndarray]], labels: np.ndarray, seed: int) -> dict[str, Any] | None:
    """
    How often models predict classes without an image in this data, and their scores without these classes.

    Returns:
        `dict` or `None`: how many classes are `with_images`; by model (`models`) its `classes`, those `without_images`, the share of
        images on which it `predicted` one of them, and its `restricted` scores; for two models the `comparison` of these. `None`
        where there are no such classes.
    """
    at_hand = classes_at_hand(labels)
    if len(at_hand) < 2 or all(logits.shape[1] <= len(at_hand) for _, logits in models):
        return None
    entry: dict[str, Any] = {"with_images": len(at_hand), "models": {}}
    for name, logits in models:
        entry["models"][name] = {
            "classes": logits.shape[1],
            "without_images": logits.shape[1] - len(at_hand),
            "predicted": predicted_elsewhere(logits, at_hand),
            "restricted": asdict(Scores.from_logits(*restricted(logits, labels, at_hand))),
        }
    if len(models) == 2:
        (first, baseline), (second, candidate) = models
        comparison = compare_restricted(baseline, candidate, labels, at_hand, names=(first, second), seed=seed)
        if comparison is not None:
            entry["comparison"] = asdict(comparison)
    return entry


def format_absent(absent: Mapping[str, Any]) -> str:
    """The report on classes without an image, for the terminal."""
    lines = [""]
    for name, each in absent["models"].items():
        scores = each["restricted"]
        lines.append(
            f"{name}: {each['without_images']:,} of {each['classes']:,} classes have no image here; one of them is predicted on "
            f"{100 * each['predicted']:.2f} % of the images. Restricted to the other {absent['with_images']:,} classes: accuracy "
            f"{100 * scores['accuracy']:.2f} %, NLL {scores['nll']:.4f}."
        )
    if "comparison" in absent:
        lines.append(f"Restricted to these, {absent['comparison']['verdict']}")
    return "\n".join(lines)


def format_scores(name: str, scores: Scores) -> str:
    """A model's scores for the terminal."""
    return (
        f"{name} on {scores.n:,} images\n"
        f"accuracy (%)           {100 * scores.accuracy:8.2f}\n"
        f"NLL (nats)             {scores.nll:8.4f}\n"
        f"calibration error (%)  {100 * scores.calibration_error:8.2f}"
    )
