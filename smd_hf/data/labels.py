"""
Labels: what a data set calls its classes, which classes of the model they mean, and how to divide images evenly over
them.

A label means what its name says, so names decide wherever both sides have them; positions are trusted only where a
name is missing, and never silently.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset

from ..errors import SMDError


@dataclass(frozen=True, eq=False)
class LabelAlignment:
    """
    How the data set's labels relate to the model's classes.

    Args:
        mapping (`np.ndarray` or `None`): int64 of shape `(number of labels,)`, from the data set's label to the
            model's class; `None` where the head is to be replaced by one whose classes are the data set's labels.
        how (`str`): `"name"`, `"index"` or `"replace"`.
        names (`list[str]` or `None`): the data set's label names in the order of its labels, where it has any.
        message (`str`): one sentence for the log; a warning unless `how` is `"name"`.
    """

    mapping: np.ndarray | None
    how: str
    names: list[str] | None
    message: str


def align_labels(
    dataset_names: Sequence[str] | None,
    observed: np.ndarray,
    id2label: Mapping[Any, str],
    *,
    head_init: str = "linear_probe",
    split: str = "train",
) -> LabelAlignment:
    """
    Find the model's class for each of the data set's labels.

    Names are compared without regard to case, spaces, underscores and hyphens; of `"tench, Tinca tinca"` the part
    before the first comma counts too, where no other class shares it.

    Args:
        dataset_names (`Sequence[str]` or `None`): the data set's label names, as [`label_names`] returns them.
        observed (`np.ndarray`): the labels that occur, integers or strings, as [`label_values`] returns them.
        id2label (`Mapping`): the model's class names by index, as in its configuration.
        head_init (`str`, *optional*, defaults to `"linear_probe"`): `"linear_probe"` or `"random"` allow the head to
            be replaced; `"keep"` makes differing label sets an error.
        split (`str`, *optional*, defaults to `"train"`): the name of the split, for messages.

    Raises:
        `SMDError`: for labels that are negative or out of range, and for differing label sets with `head_init="keep"`.
    """
    names = None if dataset_names is None else list(dataset_names)
    if names is None and np.asarray(observed).dtype.kind == "U":
        names = sorted_names(observed)
    classes = [str(name) for _, name in sorted((int(index), name) for index, name in id2label.items())]
    values = encode_labels(observed, names, split=split)
    check_range(values, len(classes) if names is None else len(names), split=split, of_model=names is None)
    generic = all(re.fullmatch(r"label_\d+", name, re.IGNORECASE) for name in classes)

    if names is None:
        return LabelAlignment(
            np.arange(len(classes)),
            "index",
            None,
            "The data set's labels are integers without names: label k was taken for the model's class k "
            f"({_some(f'{index}: {name}' for index, name in enumerate(classes))}); check that the orders agree.",
        )
    if generic and len(names) == len(classes):
        return LabelAlignment(
            np.arange(len(names)),
            "index",
            names,
            f"The model's {len(classes)} classes have no real names ({_some(classes)}): label k of the data set "
            f"({_some(names)}) was taken for class k.",
        )
    found = [None] * len(names) if generic else _match(names, classes)
    missing = [name for name, index in zip(names, found) if index is None]
    if not missing:
        return LabelAlignment(
            np.array(found, dtype=np.int64),
            "name",
            names,
            f"The data set's {len(names)} labels were matched by name to the model's {len(classes)} classes.",
        )
    if len(missing) == len(names) == len(classes):
        return LabelAlignment(
            np.arange(len(names)),
            "index",
            names,
            f"No label name of the data set ({_some(names)}) is one of the model's ({_some(classes)}), but both have "
            f"{len(names)}: label k was taken for class k; check that the orders agree.",
        )
    if head_init == "keep":
        raise SMDError(
            f"{len(missing)} of the data set's {len(names)} labels are not among the model's {len(classes)} classes "
            f'(missing: {_some(missing)}; the model has {_some(classes)}), and head_init="keep" keeps the head. '
            'Rename the labels, or let the head be replaced with head_init="linear_probe" or "random".'
        )
    return LabelAlignment(
        None,
        "replace",
        names,
        f"{len(missing)} of the data set's {len(names)} labels are not among the model's {len(classes)} classes "
        f"(missing: {_some(missing)}): the model's head is replaced by one with the data set's {len(names)} labels.",
    )


def check_same_labels(
    train_names: Sequence[str] | None,
    eval_names: Sequence[str] | None,
    observed: np.ndarray | None = None,
    *,
    split: str = "validation",
) -> np.ndarray | None:
    """
    Check that an evaluation split shares the training split's label space, and find the way between their orders.

    Args:
        train_names, eval_names (`Sequence[str]` or `None`): the label names of both splits; `None` where one has none.
        observed (`np.ndarray`, *optional*): the evaluation split's labels; a label that the training split does not
            know is then an error only where it occurs. All labels count as observed without it.
        split (`str`, *optional*, defaults to `"validation"`): the name of the evaluation split, for messages.

    Returns:
        `np.ndarray` or `None`: int64, from the evaluation split's label to the training split's (-1 for a label that
        does not occur and is unknown there); `None` where labels can be used as they are.

    Raises:
        `SMDError`: where the splits have no name in common, or labels occur that the training split does not know.
    """
    if train_names is None or eval_names is None:
        if observed is not None and train_names is not None:
            check_range(encode_labels(observed, train_names, split=split), len(train_names), split=split)
        return None
    if list(train_names) == list(eval_names):
        return None
    found = _match(eval_names, train_names)
    if all(index is None for index in found):
        raise SMDError(
            f"The {split} split has no label in common with the training split: its labels are {_some(eval_names)}, "
            f"the training split's are {_some(train_names)}. Both must name the same classes."
        )
    occurring = range(len(eval_names))
    if observed is not None:
        values = encode_labels(observed, eval_names, split=split)
        check_range(values, len(eval_names), split=split)
        occurring = np.unique(values).tolist()
    unknown = [eval_names[label] for label in occurring if found[label] is None]
    if unknown:
        raise SMDError(
            f"The {split} split has labels that the training split does not know: {_some(unknown)}. The training "
            f"split has {_some(train_names)}. Remove these images or use the same names in both."
        )
    return np.array([-1 if index is None else index for index in found], dtype=np.int64)


def label_maps(names: Sequence[str]) -> tuple[dict[int, str], dict[str, int]]:
    """`id2label` and `label2id` of a configuration whose classes are `names`, in their order."""
    return dict(enumerate(names)), {name: index for index, name in enumerate(names)}


def sorted_names(values: Sequence[str] | np.ndarray) -> list[str]:
    """The distinct strings by number where all are decimal numbers (`"2"` before `"10"`), else by letters."""
    names = sorted({str(value) for value in values})
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def label_values(dataset: Any, label_column: str) -> np.ndarray:
    """
    The labels of a data set, without decoding its images where it is a `datasets.Dataset` or a `Subset` of one.

    Args:
        dataset (`datasets.Dataset`, or any map-style data set of `dict` rows): where to read.
        label_column (`str`): the column's name, as [`~data.find_columns`] returns it.

    Returns:
        `np.ndarray` of shape `(rows,)`: int64, or strings where the column holds names.

    Raises:
        `SMDError`: for a row whose label is neither an integer nor a string (missing, a list, a fraction).
    """
    if isinstance(dataset, torch.utils.data.Subset):
        return label_values(dataset.dataset, label_column)[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, Dataset) and label_column in dataset.column_names:
        values = dataset.select_columns([label_column]).with_format(None)[:][label_column]
    else:
        values = [dataset[row][label_column] for row in range(len(dataset))]
    labels = [_label(value, row) for row, value in enumerate(values)]
    strings = {isinstance(label, str) for label in labels}
    if len(strings) > 1:
        raise SMDError(f"Column {label_column!r} mixes integers and strings; expected labels of one kind.")
    return np.array(labels, dtype=np.str_ if True in strings else np.int64)


def label_names(dataset: Any, label_column: str) -> list[str] | None:
    """
    The label names of a data set in the order of its labels: those of a `ClassLabel`, or the distinct strings of a
    column of names in the order of [`sorted_names`]; `None` for plain integers.
    """
    while isinstance(dataset, torch.utils.data.Subset):
        dataset = dataset.dataset
    if isinstance(dataset, Dataset) and isinstance(dataset.features.get(label_column), ClassLabel):
        return list(dataset.features[label_column].names)
    values = label_values(dataset, label_column)
    return sorted_names(values) if values.dtype.kind == "U" else None


def encode_labels(values: np.ndarray, names: Sequence[str] | None, *, split: str = "train") -> np.ndarray:
    """
    Labels as int64: strings become their position in `names`, integers stay.

    Raises:
        `SMDError`: for a string that is not among `names`.
    """
    values = np.asarray(values)
    if values.dtype.kind != "U":
        return values.astype(np.int64)
    index = {name: position for position, name in enumerate(names or ())}
    unknown = sorted(set(values.tolist()) - index.keys())
    if unknown:
        raise SMDError(
            f"The {split} split has labels that are not among the known names: {_some(unknown)}. Known are "
            f"{_some(index)}."
        )
    return np.array([index[value] for value in values.tolist()], dtype=np.int64)


def check_range(values: np.ndarray, count: int, *, split: str = "train", of_model: bool = False) -> None:
    """
    Refuse labels outside `0..count - 1`.

    Raises:
        `SMDError`: with the first row for a negative label, with the range for one that is too large.
    """
    if len(values) == 0:
        return
    low, high = int(values.min()), int(values.max())
    if low < 0:
        row = int(np.flatnonzero(values < 0)[0])
        raise SMDError(
            f"The {split} split has {int((values < 0).sum())} negative labels, the first of them ({int(values[row])}) "
            f"in row {row}. This is how data sets mark images without a label: use a split that has labels."
        )
    if high >= count:
        whose = f"the model has {count} classes" if of_model else f"there are {count} label names"
        what = "use a ClassLabel column with names so that the head can be replaced, or " if of_model else ""
        raise SMDError(
            f"Labels out of range: the labels of the {split} split run from {low} to {high}, but {whose} (0 to "
            f"{count - 1}). Correct the labels (they start at 0), {what}choose the right label column."
        )


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """
    A random order of the images in which every prefix holds close to the same share of each class as the whole.

    This is systematic sampling: the images of a class of size n are shuffled and spread over the unit interval at
    distance 1/n from a random start; the starts of classes of one size are evenly spaced. With S distinct class sizes,
    the first m of N images hold m n/N images of that class up to less than 1 + S n/N, and exactly that many on
    average.

    Args:
        labels (`np.ndarray`): integers or strings of shape `(N,)`.
        seed (`int`): the same seed gives the same order on any platform.

    Returns:
        `np.ndarray`: int64 permutation of shape `(N,)`.
    """
    if len(labels) == 0:
        return np.empty(0, dtype=np.int64)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    # Uniform floats alone are drawn: their stream is the same on every platform.
    shuffled = np.lexsort((rng.random(len(inverse)), inverse))
    position = np.empty(len(inverse), dtype=np.int64)
    position[shuffled] = np.arange(len(inverse)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = np.empty(len(counts))
    for size in np.unique(counts):
        alike = np.flatnonzero(counts == size)
        start[alike] = (np.argsort(rng.random(len(alike)), kind="stable") + rng.random()) / len(alike)
    return np.argsort((position + start[inverse]) / counts[inverse], kind="stable")


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Cut a data set in two, with close to the same share of each class in both parts.

    Args:
        labels (`np.ndarray`): integers or strings of shape `(N,)`.
        fraction (`float`): the share of the second part (selection), in [0, 1). Above 0 both parts hold an image at
            least.
        seed (`int`): the same seed gives the same split on any platform.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: sorted int64 indices of the fitness part and of the selection part.

    Raises:
        `SMDError`: for a fraction outside [0, 1), and for fewer than two images.
    """
    if not 0 <= fraction < 1:
        raise SMDError(f"The share of images to set aside is {fraction}; expected at least 0 and less than 1.")
    if fraction == 0:
        return np.arange(len(labels)), np.empty(0, dtype=np.int64)
    if len(labels) < 2:
        raise SMDError(f"A data set of {len(labels)} images cannot be cut in two; give more images.")
    size = min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    order = stratified_order(labels, seed)
    return np.sort(order[size:]), np.sort(order[:size])


def _normalise(name: str) -> str:
    return re.sub(r"\s*,\s*", ", ", re.sub(r"[\s_\-]+", " ", str(name))).strip().casefold()


def _match(names: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    """For each name the index of the one class that it means; `None` where there is none, or no telling which."""
    whole, first = defaultdict(list), defaultdict(list)
    for index, name in enumerate(classes):
        whole[_normalise(name)].append(index)
        first[_normalise(name).split(",")[0]].append(index)
    found = []
    for position, name in enumerate(names):
        key = _normalise(name)
        part = key.split(",")[0]
        candidates = whole.get(key) or first.get(key) or whole.get(part) or first.get(part) or []
        # Two classes of ImageNet are called "crane": where the data set has the same order, the position tells which.
        if len(candidates) > 1 and position in candidates:
            candidates = [position]
        found.append(candidates[0] if len(candidates) == 1 else None)
    claims = Counter(found)
    return [index if claims[index] == 1 else None for index in found]


def _label(value: Any, row: int) -> int | str:
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and math.isfinite(value) and int(value) == value:
        return int(value)
    raise SMDError(f"The label of row {row} is {value!r:.80}; expected one integer or one string per image.")


def _some(names: Any, limit: int = 5) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
