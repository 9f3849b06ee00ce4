"""Prepares a trainer's data: finds the columns, matches labels to classes, makes the collator."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, default_data_collator
from transformers.utils import logging

from ..arguments.evolution_arguments import EvolutionArguments
from ..errors import SMDError
from ..models.inputs import input_names
from ..models.load import num_channels
from .alignment import LabelAlignment, align_labels, check_same_labels, with_test_labels
from .image_checks import CheckRow
from .labels import encode_labels, label_names, label_values, some
from .own_collator import cheap_labels, check_collated, sees_all_columns
from .rows import ImageCollator, find_columns

logger = logging.get_logger(__name__)


@dataclass
class PreparedData:
    """
    How rows become inputs of the model.

    Args:
        collator (`Callable`): rows to the model's inputs and `"labels"`, labels in the model's numbering.
        image_column (`str`, *optional*): the column of images; `None` if rows already hold the model's inputs.
        new_labels (list of `str`, *optional*): the classes of a new head, if the model's is to be replaced.
        all_columns (`bool`, *optional*, defaults to `True`): whether the collator sees all columns of a row, in evaluation
            too, or only those that the model's `forward` takes.
        alignment ([`LabelAlignment`], *optional*): of labels and classes; `None` if a collator of the user does that.
        check_row (`Callable`, *optional*): what is wrong with a row, as a sentence, or `None`; for tasks whose labels are checked
            with their images.
        train_collator (`Callable`, *optional*): for the training images, where it is another one.
    """

    collator: Callable[[list[Any]], dict[str, torch.Tensor]]
    image_column: str | None
    train_labels: np.ndarray | None
    eval_dataset: Any
    new_labels: list[str] | None
    all_columns: bool = True
    alignment: LabelAlignment | None = None
    check_row: CheckRow | None = None
    train_collator: Callable[[list[Any]], dict[str, torch.Tensor]] | None = None

    @property
    def train_classes(self) -> np.ndarray | None:
        """The model's classes that the training images have, sorted; `None` if a collator of the user makes the labels."""
        if self.alignment is None or self.alignment.mapping is None or self.train_labels is None:
            return None
        return np.unique(self.alignment.mapping[encode_labels(self.train_labels, self.alignment.names)])


def prepare_data(
    model: PreTrainedModel,
    args: EvolutionArguments,
    processing_class: Any | None,
    train_dataset: Any | None,
    eval_dataset: Any | None,
    data_collator: Callable | None = None,
    missing_head: Sequence[str] = (),
    otherwise: str | None = None,
) -> PreparedData:
    """
    Finds the columns and matches the labels; the head is not touched.

    With a user's own collator, or rows that already hold `pixel_values` (or the model's main input), the collator's output is used
    unchanged, and columns may have any names and hold anything. A classifier that the
    checkpoint lacks (`missing_head`) is always replaced.
    If the head cannot be replaced, labels that are not the model's are an error with the remedy `otherwise`.
    """
    splits = {"train_dataset": train_dataset} | (
        eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset}
    )
    present = {what: split for what, split in splits.items() if split is not None}
    for what, split in present.items():
        check_not_empty(split, what)
    reference = next(iter(present.values()), None)
    if (
        reference is None
        or data_collator is not None
        or any(name in reference[0] for name in ("pixel_values", model.main_input_name))
    ):
        if reference is not None and missing_head and args.head_init != "random":
            raise SMDError(
                f"The checkpoint has no trained classifier ({', '.join(missing_head)}), and labels that come with pixel_values or from "
                "a data_collator of your own do not say which classes a new one would have. Give rows of images and labels without a "
                "data_collator, a checkpoint with a trained classifier, or head_init='random' to evolve a random one on purpose."
            )
        if args.label_map is not None:
            raise SMDError(
                "label_map has no effect here: labels come as your data_collator makes them, or with pixel_values. Number them as the "
                "model does (config.label2id), and leave label_map out."
            )
        collator = data_collator or default_data_collator
        for what, split in present.items():
            check_collated(collator, split, model.config.num_labels or 0, what)
        own = sees_all_columns(data_collator)
        labels = _labels_to_stratify_by(train_dataset, args, own)
        return PreparedData(collator, None, labels, eval_dataset, None, all_columns=own)
    if processing_class is None:
        raise SMDError(
            "The data sets hold images, but there is no image processor to prepare them. Pass "
            "processing_class=AutoImageProcessor.from_pretrained(...), give the model by name, or give rows of pixel_values."
        )
    image_column, label_column = find_columns(reference, args.image_column_name, args.label_column_name)
    names, observed = label_names(reference, label_column), label_values(reference, label_column)
    if missing_head and args.head_init != "keep":
        if args.label_map is not None:
            raise SMDError(
                f"label_map says which classes of the model the labels are, but the checkpoint has no trained classifier "
                f"({', '.join(missing_head)}), and gets one for the data set's labels. Leave label_map out."
            )
        logger.warning(f"The checkpoint has no trained classifier ({', '.join(missing_head)}): it gets one.")
        names = names or [str(label) for label in range(observed.max() + 1)]
        alignment = LabelAlignment(None, "replace", names, "")
    else:
        assert not isinstance(args.label_map, str)  # the arguments have read the file
        alignment = align_labels(
            names,
            observed,
            model.config.id2label or {},
            head_init=args.head_init,
            label_map=args.label_map,
            otherwise=otherwise,
        )
        log = logger.info if alignment.is_sure else logger.warning
        log(alignment.message)
        tests = list(eval_dataset.values()) if isinstance(eval_dataset, dict) else [eval_dataset]
        alignment = _with_labels_of(tests, alignment, (image_column, label_column), observed, model, args)
    collator = ImageCollator(
        processing_class,
        image_column,
        label_column,
        mapping=alignment.mapping,
        channels=num_channels(model),
        names=alignment.names,
        input_names=input_names(model),
    )
    columns = (image_column, label_column)
    names = None if names is None else alignment.names
    if isinstance(eval_dataset, dict):
        eval_dataset = {
            what: _relabelled(split, columns, names, alignment, what) for what, split in eval_dataset.items()
        }
    elif eval_dataset is not None:
        eval_dataset = _relabelled(eval_dataset, columns, names, alignment, "eval_dataset")
    labels = observed if train_dataset is reference else None
    new_labels = alignment.names if alignment.how == "replace" else None
    return PreparedData(collator, image_column, labels, eval_dataset, new_labels, alignment=alignment)


def check_not_empty(dataset: Any, what: str) -> None:
    """Refuses a data set without rows."""
    if len(dataset) == 0:
        raise SMDError(f"{what} is empty. Give at least one image, or check the split and the limits on its size.")


def _with_labels_of(
    tests: Sequence[Any],
    alignment: LabelAlignment,
    columns: tuple[str, str],
    observed: np.ndarray,
    model: PreTrainedModel,
    args: EvolutionArguments,
) -> LabelAlignment:
    """The alignment with the labels that only test images have, where the model knows all of them."""
    occurring: dict[str, None] = {}
    for split in tests:
        if split is None:
            continue
        _, label_column = find_columns(split, *columns)
        own = label_names(split, label_column)
        if own is None or set(own) <= set(alignment.names or own):
            continue
        labels = np.unique(encode_labels(label_values(split, label_column), own)).tolist()
        occurring |= dict.fromkeys(own[label] for label in labels if 0 <= label < len(own))
    assert not isinstance(args.label_map, str)  # the arguments have read the file
    extended = with_test_labels(alignment, list(occurring), observed, model.config.id2label or {}, args.label_map)
    new = (extended.names or [])[len(alignment.names or ()) :]
    if new:
        logger.warning(
            f"Only test images have these labels: {some(new)}. The model has classes of these names: they are scored."
        )
    return extended


def fitting_rows(readable: Any, train_dataset: Any, data: PreparedData) -> tuple[Any, PreparedData]:
    """
    Leaves out rows whose labels do not fit, where the arguments say so; see [`~smd_hf.data.image_checks.ReadableRows`].

    Returns:
        `tuple`: the training data, and the prepared data with its test data.
    """
    if data.check_row is None:
        return train_dataset, data
    test = readable(data.eval_dataset, "eval_dataset", data.check_row)
    return readable(train_dataset, "train_dataset", data.check_row), replace(data, eval_dataset=test)


def check_problem_type(model: PreTrainedModel, new_labels: list[str] | None = None) -> None:
    """Refuses a classifier whose outputs are not one distribution over classes, unless its head is to be replaced."""
    kind, outputs = getattr(model.config, "problem_type", None), model.config.num_labels or 0
    if new_labels is not None or (kind in (None, "single_label_classification") and outputs > 1):
        return
    if kind in (None, "single_label_classification"):
        raise SMDError(
            f"The model has {outputs} output; classification needs at least two. Choose a model of at least two classes, or "
            "data whose labels have names, so that its head can be replaced."
        )
    reading = "each of its outputs by itself" if kind == "multi_label_classification" else "its outputs as numbers"
    raise SMDError(
        f"The model's config.problem_type is '{kind}', which reads {reading}, but evolution reads them as one distribution over "
        "classes, with one label an image. If every image has exactly one of the model's labels, load the model, set "
        "model.config.problem_type = 'single_label_classification' and pass it to the trainer (in a checkpoint's folder: edit "
        "config.json). If not, choose a model that was trained with one label an image."
    )


def _relabelled(
    dataset: Any, columns: tuple[str, str], names: list[str] | None, alignment: LabelAlignment, what: str
) -> Any:
    """The data set with its labels in the order of the training split's names, after a check that it fits."""
    _, label_column = find_columns(dataset, *columns)
    own, values = label_names(dataset, label_column), label_values(dataset, label_column)
    order = check_same_labels(names, own, values, split=what)
    if order is None:
        alignment.check(encode_labels(values, own or names, split=what), split=what)
        return dataset
    values = order[encode_labels(values, own, split=what)]
    alignment.check(values, split=what)
    return dataset.remove_columns(label_column).add_column(label_column, values.tolist())


def _labels_to_stratify_by(dataset: Any | None, args: EvolutionArguments, own_collator: bool) -> np.ndarray | None:
    """Labels of rows that no processor of ours reads; `None` where a column of labels does not show, or is not cheap to read."""
    if dataset is None:
        return None
    if own_collator:
        found = cheap_labels(dataset, args.label_column_name)
        return None if found is None else found[1]
    try:
        _, label_column = find_columns(dataset, args.image_column_name, args.label_column_name)
    except SMDError:
        return None
    return label_values(dataset, label_column)
