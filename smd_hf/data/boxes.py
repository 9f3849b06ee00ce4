"""From images with boxes around objects to batches of model inputs."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image as PILImage
from transformers.utils import logging

from ..errors import SMDError
from ..messages import did_you_mean
from .class_names import ClassNames, normalise
from .images import PIL_MODES, image_sizes, to_image
from .labels import some, sorted_names
from .rows import ImageCollator

logger = logging.get_logger(__name__)

ONE_SIZE = "give the image processor one size: size={'height': 640, 'width': 640}, for example"
"""What to do about images of several sizes."""
OBJECT_COLUMNS = ("objects", "annotations", "labels", "label")
"""Usual names of the column of objects, as in transformers' example script and on the Hub."""
BOX_KEYS = ("bbox", "bboxes", "boxes", "box")
CLASS_KEYS = ("category", "categories", "category_id", "label", "labels")
CROWD_KEYS = ("iscrowd", "is_crowd")

SLACK = 1.0
"""Pixels by which a box may reach beyond its image: a rounded coordinate. It is cut off there."""


@dataclass(frozen=True)
class ObjectColumn:
    """
    Where a data set keeps its objects, and what its classes are in the model.

    Args:
        name (`str`): the column.
        boxes, classes (`str`): the keys of boxes and classes in a row of it.
        names (mapping of `str` or `int` to `int`): from the data set's class to the model's.
        crowds (`str`, *optional*): the key that marks, as COCO does, boxes of many objects that are not told apart.
    """

    name: str
    boxes: str
    classes: str
    names: Mapping[Any, int]
    crowds: str | None = None

    def objects(self, row: Mapping[str, Any]) -> tuple[np.ndarray, list[Any]]:
        """
        A row's boxes (x, y, width, height), float64, of shape `(n, 4)`, and its n classes.

        Raises:
            `SMDError`: for lists of unequal length, and for anything that is no list of boxes.
        """
        found = row.get(self.name)
        if found is None:
            raise SMDError(f"Its {self.name} are missing. Give empty lists for an image without objects.")
        if isinstance(found, Mapping):
            lacking = [key for key in (self.boxes, self.classes) if found.get(key) is None]
            if lacking:
                raise SMDError(f"Its {self.name} lack {' and '.join(map(repr, lacking))}.")
            boxes, classes = list(found[self.boxes]), list(found[self.classes])
        else:
            boxes, classes = [each.get(self.boxes) for each in found], [each.get(self.classes) for each in found]
        if len(boxes) != len(classes):
            raise SMDError(f"It has {len(boxes)} boxes and {len(classes)} classes. Give one class for each box.")
        try:
            array = np.array(boxes, dtype=np.float64).reshape(-1, 4) if boxes else np.zeros((0, 4))
        except (TypeError, ValueError):
            array = np.zeros((0, 0))
        if len(array) != len(boxes):
            raise SMDError("Its boxes are not lists of four numbers. Expected [x, y, width, height] in pixels.")
        return array, classes

    def are_crowds(self, row: Mapping[str, Any]) -> np.ndarray:
        """Whether each of a row's boxes is a crowd: bool, of shape `(n,)`."""
        found = row[self.name]
        size = len(found[self.boxes]) if isinstance(found, Mapping) else len(found)
        if self.crowds is None:
            return np.zeros(size, dtype=bool)
        marks = found.get(self.crowds) if isinstance(found, Mapping) else [each.get(self.crowds) for each in found]
        marks = [0] * size if marks is None else [mark or 0 for mark in marks]
        if len(marks) != size or any(mark not in (0, 1) for mark in marks):
            raise SMDError(
                f"Its {self.crowds} are {marks}, for {size} boxes. Give one of 0 and 1 for each box: 1 marks a crowd."
            )
        return np.array(marks, dtype=bool)


def find_objects(dataset: Any, column: str, id2label: Mapping[Any, str]) -> ObjectColumn:
    """
    Finds boxes and classes in the column of objects, and matches the classes to the model's by name.

    Raises:
        `SMDError`: if there are none, or if a class is none of the model's.
    """
    keys = _keys(dataset, column)
    if not keys:
        raise SMDError(
            f"The column {column!r} holds no objects: no row has a box. Give rows with lists of {BOX_KEYS[0]!r} ([x, y, width, "
            f"height] in pixels) and {CLASS_KEYS[0]!r}, or choose another column with label_column_name."
        )
    boxes = next((key for key in BOX_KEYS if key in keys), None)
    classes = next((key for key in CLASS_KEYS if key in keys), None)
    if boxes is None or classes is None:
        what, usual = ("boxes", BOX_KEYS) if boxes is None else ("classes", CLASS_KEYS)
        raise SMDError(
            f"The objects in the column {column!r} have no {what} ({', '.join(usual)}). They have: {', '.join(keys)}. Rename one, or "
            "choose another column with label_column_name."
        )
    raw = ObjectColumn(column, boxes, classes, {}, next((key for key in CROWD_KEYS if key in keys), None))
    names = _declared_names(dataset, column, classes)
    observed: set[Any] = set()
    for row in _without_images(dataset, column):
        try:
            observed |= {value for value in raw.objects(row)[1] if isinstance(value, (str, int, np.integer))}
        except SMDError:  # reported with its index, when rows are checked
            continue
    if names is None and any(isinstance(value, str) for value in observed):
        names = sorted_names([str(value) for value in observed])
        return replace(raw, names=dict(zip(names, _matched(names, id2label))))
    if names is None:
        count = len(id2label)
        logger.warning(
            f"The classes of the objects are integers without names: k was taken for the model's class k "
            f"({some(f'{index}: {name}' for index, name in id2label.items())}). Check that the orders agree."
        )
        return replace(raw, names={label: label for label in range(count)})
    return replace(raw, names=dict(enumerate(_matched(names, id2label))))


def _matched(names: list[str], id2label: Mapping[Any, str]) -> list[int]:
    """The model's class of each name."""
    known = ClassNames.of(id2label)
    if known.are_generic and len(names) == len(known):
        logger.warning(
            f"The model's {len(known)} classes have no real names ({some(known.names)}): class k of the data set ({some(names)}) "
            "was taken for class k."
        )
        return list(range(len(names)))
    places: dict[str, int] = {}
    for index, name in enumerate(known.names):
        places.setdefault(normalise(name), index)
    missing = [name for name in names if normalise(name) not in places]
    if missing:
        hint = did_you_mean(missing[0], known.names)
        raise SMDError(
            f"{len(missing)} of the data set's {len(names)} classes of objects are none of the model's {len(known)}: {some(missing)}. "
            f"The model has {some(known.names)}.{hint} Rename the data set's classes, or choose a detector that was trained for them."
        )
    return [places[normalise(name)] for name in names]


def _without_images(dataset: Any, column: str) -> Iterable[Mapping[str, Any]]:
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] is None and column in dataset.column_names:
        return dataset.select_columns([column])  # pyright: ignore[reportReturnType]
    return (dataset[row] for row in range(len(dataset)))


def _keys(dataset: Any, column: str) -> list[str]:
    """What an object has: the keys in the column."""
    for row in _without_images(dataset, column):
        value = row.get(column)
        value = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(value, Mapping) and value:
            return list(value)
    return []


def _declared_names(dataset: Any, column: str, key: str) -> list[str] | None:
    """The names of a `ClassLabel` in the column, if it has one."""
    feature = getattr(dataset, "features", {}).get(column) if isinstance(dataset, datasets.Dataset) else None
    for _ in range(2):
        feature = getattr(feature, "feature", feature)
        feature = feature[0] if isinstance(feature, list) else feature
        feature = feature.get(key) if isinstance(feature, dict) else feature
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def _sizes(shapes: Iterable[tuple[int, int]]) -> str:
    return " and ".join(f"{height} x {width}" for height, width in sorted(set(shapes))[:2])


@dataclass(eq=False)
class BoxCollator:
    """
    Rows as a batch: the model's inputs, and `"labels"`: float64, of shape `(batch, most, 5)`.

    Of each object there are its class and its box: center x, center y, width, height, as shares of the input. An image with fewer
    objects than the others has rows of class -1. A crowd of class k follows the objects, as class -2 - k. The images of a
    batch must come to one size: padding would make what a model finds in one depend on the others ([`sizes_differ`]).

    Args:
        channels (`int`, *optional*, defaults to 3), input_names (collection of `str`, *optional*): as for
            [`~smd_hf.data.rows.ImageCollator`].
    """

    processor: Any
    image_column: str
    objects: ObjectColumn
    channels: int = 3
    input_names: Collection[str] | None = None
    _images: ImageCollator = field(init=False)

    def __post_init__(self) -> None:
        # A mask that the model does not take still says which part of the input is the image.
        names = None if self.input_names is None else {*self.input_names, "pixel_mask"}
        self._images = ImageCollator(self.processor, self.image_column, channels=self.channels, input_names=names)

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        # Sizes, inputs and labels all look at the image: it is decoded once.
        rows = [{**row, self.image_column: to_image(row[self.image_column], self.channels)} for row in rows]
        sizes = {row[self.image_column].size for row in rows}
        if len(sizes) > 1:
            shapes = {self.shape(size) for size in sizes}
            if len(shapes) > 1:
                raise SMDError(
                    f"The image processor brings the images of a batch to several sizes (height x width): {_sizes(shapes)}. Score one "
                    f"image at a time (per_device_eval_batch_size=1), or {ONE_SIZE}."
                )
        inputs = self._images.inputs(rows)
        masked = self.input_names is None or "pixel_mask" in self.input_names
        shares = [(1.0, 1.0)] * len(rows)
        if "pixel_mask" in inputs and not masked:
            mask = inputs.pop("pixel_mask").bool()
            height, width = mask.shape[-2:]
            shares = [(int(each.any(0).sum()) / width, int(each.any(1).sum()) / height) for each in mask]
        found = [self._labels(row, *share) for row, share in zip(rows, shares)]
        labels = torch.zeros(len(rows), max(1, *map(len, found), 1), 5, dtype=torch.float64)
        labels[..., 0] = -1
        for own, each in zip(labels, found):
            own[: len(each)] = torch.from_numpy(each)
        return {**inputs, "labels": labels}

    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """The height and width that an image of this width and height has in the model's input."""
        blank = PILImage.new(PIL_MODES[self.channels], size)
        return tuple(self._images.inputs([{self.image_column: blank}])["pixel_values"].shape[-2:])

    def sizes_differ(self, splits: Iterable[Any]) -> str | None:
        """
        Two sizes that the processor brings images of these data sets to, in words; `None` if there is only one.

        Only the headers of files are read, and nothing where the processor knows a single size.
        """
        if len({self.shape(size) for size in ((64, 48), (48, 64), (400, 100))}) == 1:
            return None
        known: dict[tuple[int, int], tuple[int, int]] = {}
        for split in splits:
            for size in image_sizes(split, self.image_column, self.channels):
                if size not in known:
                    known[size] = self.shape(size)
                    if len(set(known.values())) > 1:
                        return _sizes(known.values())
        return None

    def _labels(self, row: Mapping[str, Any], width_share: float, height_share: float) -> np.ndarray:
        boxes, classes = self.objects.objects(row)
        image = row[self.image_column]
        first = np.clip(boxes[:, :2], 0, image.size)
        last = np.clip(boxes[:, :2] + boxes[:, 2:], 0, image.size)
        scale = np.array([width_share, height_share]) / image.size
        labels = [[self.objects.names[value]] for value in classes]
        numbers = np.array(labels, dtype=np.float64).reshape(-1, 1)
        found = np.concatenate([numbers, (first + last) / 2 * scale, (last - first) * scale], axis=1)
        crowds = self.objects.are_crowds(row)
        found[crowds, 0] = -2 - found[crowds, 0]
        return np.concatenate([found[~crowds], found[crowds]])

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """What is wrong with the objects of a row, as a sentence; `None` if nothing is."""
        try:
            boxes, classes = self.objects.objects(row)
            self.objects.are_crowds(row)
        except SMDError as error:
            return str(error)
        width, height = to_image(row[self.image_column], self.channels).size
        for index, (box, value) in enumerate(zip(boxes, classes)):
            if not isinstance(value, (str, int, np.integer)) or value not in self.objects.names:
                return (
                    f"Its object {index} has the class {value!r}, which is none of the known classes "
                    f"({some(map(str, self.objects.names))})."
                )
            shown = [round(float(side), 2) for side in box]
            if not np.isfinite(box).all():
                return f"Its box {index} is {shown}, which are not all numbers."
            if box[2] <= 0 or box[3] <= 0:
                return f"Its box {index}, {shown}, has no area. Boxes are [x, y, width, height] in pixels."
            x, y, right, bottom = *box[:2], *(box[:2] + box[2:])
            if x < -SLACK or y < -SLACK or right > width + SLACK or bottom > height + SLACK:
                return (
                    f"Its box {index}, {shown}, reaches beyond the image of {width} x {height} pixels. Boxes are [x, y, width, height] in "
                    "pixels."
                )
            # What is left of a box at the edge must have an area, too.
            if x >= width or y >= height or right <= 0 or bottom <= 0:
                return f"Its box {index}, {shown}, lies outside the image of {width} x {height} pixels."
        return None
