"""`smd-hf evaluate`: score a model, or compare two on the same images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from ..data.image_checks import check_images
from ..data.labels import align_labels, encode_labels, label_names, label_values
from ..data.rows import ImageCollator, find_columns
from ..data.splits import load_splits
from ..ensemble import SMDEnsembleForImageClassification
from ..errors import SMDError
from ..evaluation.engine import Evaluator
from ..evaluation.images import ImageBatches
from ..evaluation.pixels import codec_for
from ..evaluation.reading import spare_threads
from ..files import check_output_dir, write_json
from ..loading import load_with_processor
from ..models.inputs import input_names
from ..models.load import num_channels
from ..report import format_comparison
from ..script_arguments import DataArguments, ModelArguments
from ..statistics import Scores, compare
from .parsing import CommandParser, hub_token, required
from .terminal import quiet_libraries


@dataclass
class EvaluationArguments:
    """What to compare with, and how to go through the images."""

    _argument_group_name = "the evaluation"

    against: str | None = field(
        default=None,
        metadata={
            "help": "Another model, delta or ensemble (id or folder), to compare the first one with on the same images."
        },
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "The column of images. Found by its type or usual name by default."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "The column of labels. Found by its type or usual name by default."}
    )
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Images in a batch."})
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that decode images. With 0, threads do."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Use the CPU although there is a GPU."})
    seed: int = field(
        default=42, metadata={"help": "Draws the subset that max_eval_samples or train_val_split asks for."}
    )
    output_file: str | None = field(default=None, metadata={"help": "Also write the numbers to this JSON file."})

    def __post_init__(self) -> None:
        if self.per_device_eval_batch_size < 1:
            raise SMDError(f"per_device_eval_batch_size is {self.per_device_eval_batch_size}; expected 1 or more.")
        if self.dataloader_num_workers < 0:
            raise SMDError(f"dataloader_num_workers is {self.dataloader_num_workers}; expected 0 or more.")


def run(argv: Sequence[str]) -> int:
    """
    Prints accuracy, NLL and calibration error; with `--against`, the paired comparison.

    Args:
        argv (`Sequence[str]`): arguments of [`ModelArguments`], [`DataArguments`] and [`EvaluationArguments`].

    Raises:
        `SMDError`: for arguments, a model or data that cannot work.
    """
    parser = CommandParser(
        "evaluate",
        (ModelArguments, DataArguments, EvaluationArguments),
        "Score an image classifier on labelled images, or compare it with another one on the same images.",
    )
    model_args, data_args, args = parser.parse(argv)
    models = [required(model_args, "model_name_or_path")] + ([args.against] if args.against is not None else [])
    if args.output_file is not None:
        check_output_dir(Path(args.output_file).parent)
    quiet_libraries()

    with hub_token(model_args.token):
        _, images = load_splits(
            **asdict(data_args),
            image_column_name=args.image_column_name,
            label_column_name=args.label_column_name,
            seed=args.seed,
            cache_dir=model_args.cache_dir,
            need_train=False,
        )
        image_column, label_column = find_columns(images, args.image_column_name, args.label_column_name)
        check_images(images, image_column, what="validation")
        # The revision belongs to the first model: another repository has commits of its own.
        loading = [model_args.loading(), {**model_args.loading(), "revision": None}]
        logits = [
            logits_in_data_order(name, images, (image_column, label_column), args, kwargs)
            for name, kwargs in zip(models, loading)
        ]
    labels = encode_labels(label_values(images, label_column), label_names(images, label_column), split="validation")

    if args.against is None:
        scores = Scores.from_logits(logits[0], labels)
        result = {"model": models[0], **asdict(scores)}
        print(format_scores(models[0], scores))
    else:
        comparison = compare(logits[1], logits[0], labels, names=short_names(models[1], models[0]), seed=args.seed)
        result = {"model": models[0], "against": models[1], **asdict(comparison)}
        print(format_comparison(comparison))
    if args.output_file is not None:
        write_json(Path(args.output_file), result)
    return 0


def logits_in_data_order(
    name: str, images: Dataset, columns: tuple[str, str], args: EvaluationArguments, loading: dict
) -> np.ndarray:
    """
    A model's logits, float32, of shape `(images, classes)`: column k is the data set's label k, whatever class of the model
    that is; classes that the data set does not know come after them.

    Args:
        name (`str`): the model: an image classifier, a sparse delta or an ensemble.
        images (`datasets.Dataset`): to score on.
        columns (`tuple[str, str]`): of images and of labels.
        args ([`EvaluationArguments`]): batch size, workers and device.
        loading (`dict`): further arguments of [`~loading.load`].

    Raises:
        `SMDError`: if the model does not load, does not know all of the labels, or gives logits that are not finite.
    """
    image_column, label_column = columns
    model, processor = load_with_processor(name, **loading)
    names, observed = label_names(images, label_column), label_values(images, label_column)
    alignment = align_labels(names, observed, model.config.id2label, split="validation")
    if alignment.how == "replace":
        known = ", ".join(list(model.config.id2label.values())[:5])
        raise SMDError(
            f"'{name}' cannot be scored on this data: it does not know all of its labels. The labels are "
            f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}; the model's classes are {known}"
            f"{', ...' if model.config.num_labels > 5 else ''}. Choose a model with these classes, or rename the labels; "
            "`smd-hf evolve` gives a model a head for them."
        )
    if alignment.how == "index":
        print(f"{name}: {alignment.message}")
    member = model.models[0] if isinstance(model, SMDEnsembleForImageClassification) else model
    collator = ImageCollator(
        processor,
        image_column,
        label_column,
        alignment.mapping,
        num_channels(member),
        alignment.names,
        input_names(model),
    )
    use_cpu = args.use_cpu or not torch.accelerator.is_available()
    device = torch.device("cpu") if use_cpu else torch.accelerator.current_accelerator()
    batches = ImageBatches(
        images,
        collator,
        args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        codec=codec_for(processor),
        input_names=input_names(model),
        spare=spare_threads(device),
    )
    logits = Evaluator(model.to(device), device).logits(batches)
    if not np.isfinite(logits).all():
        raise SMDError(
            f"'{name}' gives logits that are not finite (NaN or infinity) on this data. Check that the checkpoint fits its "
            "image processor, and load it with --dtype float32 if it is in float16."
        )
    others = np.setdiff1d(np.arange(logits.shape[1]), alignment.mapping)
    return logits[:, np.concatenate([alignment.mapping, others])]


def format_scores(name: str, scores: Scores) -> str:
    """A model's scores for the terminal."""
    return (
        f"{name} on {scores.n:,} images\n"
        f"accuracy (%)           {100 * scores.accuracy:8.2f}\n"
        f"NLL (nats)             {scores.nll:8.4f}\n"
        f"calibration error (%)  {100 * scores.calibration_error:8.2f}"
    )


def short_names(*paths: str) -> tuple[str, ...]:
    """The last parts of ids or folders, with as many parts as it takes to tell them apart; numbered where nothing does."""
    parts = [Path(path).parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = tuple("/".join(each[-count:]) for each in parts)
        if len(set(names)) == len(names):
            return names
    return tuple(f"{path} ({number})" for number, path in enumerate(paths, start=1))
