"""
Labels: a data set's class names, reading labels without decoding images, and stratified splits.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset

from ..errors import SMDError


def label_maps(names: Sequence[str]) -> tuple[dict[int, str], dict[str, int]]:
    """`id2label` and `label2id` of a configuration whose classes are `names`, in their order."""
    return dict(enumerate(names)), {name: index for index, name in enumerate(names)}


def sorted_names(values: Sequence[str] | np.ndarray) -> list[str]:
    """The distinct strings, in numeric order if all are decimal numbers (`"2"` before `"10"`), else in alphabetical order."""
    names = sorted({str(value) for value in values})
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def label_values(dataset: Any, label_column: str) -> np.ndarray:
    """
    The labels of a data set, without decoding its images where it is a `datasets.Dataset` or a `Subset` of one.

    Args:
        dataset (`datasets.Dataset`, or any map-style data set of `dict` rows): where to read.

    Returns:
        `np.ndarray` of shape `(rows,)`: int64, or strings where the column holds names.
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
    """Labels as int64: strings become their position in `names`, integers stay."""
    values = np.asarray(values)
    if values.dtype.kind != "U":
        return values.astype(np.int64)
    index = {name: position for position, name in enumerate(names or ())}
    unknown = sorted(set(values.tolist()) - index.keys())
    if unknown:
        raise SMDError(
            f"The {split} split has labels that are not among the known names: {some(unknown)}. Known are "
            f"{some(index)}."
        )
    return np.array([index[value] for value in values.tolist()], dtype=np.int64)


def check_range(values: np.ndarray, count: int, *, split: str = "train", of_model: bool = False) -> None:
    """Refuse labels outside `0..count - 1`."""
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

    Returns:
        `np.ndarray`: int64 permutation of shape `(N,)`.
    """
    if len(labels) == 0:
        return np.empty(0, dtype=np.int64)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    # Only uniform floats are drawn: their stream is the same on every platform.
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
    Splits a data set in two, with close to the same share of each class in both parts.

    Args:
        labels (`np.ndarray`): integers or strings of shape `(N,)`.
        fraction (`float`): the share of the second part (selection), in [0, 1). Above 0 both parts hold at least
            one image.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: sorted int64 indices of the fitness part and of the selection part.
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


def _label(value: Any, row: int) -> int | str:
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and math.isfinite(value) and int(value) == value:
        return int(value)
    raise SMDError(f"The label of row {row} is {value!r:.80}; expected one integer or one string per image.")


def some(names: Any, limit: int = 5) -> str:
    """The first of some names, for a message."""
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
