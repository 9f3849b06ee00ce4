"""
From the rows of a data set to batches of model inputs.

An image goes through the checkpoint's own processor exactly as in a `pipeline`, and its label is matched to the model's.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from ..errors import SMDError
from ..messages import did_you_mean, one_line
from ..models.inputs import select_inputs
from .images import PIL_MODES, as_tensor, is_processed, to_image

logger = logging.get_logger(__name__)

IMAGE_COLUMNS = ("image", "img", "pixel_values")

LABEL_COLUMNS = ("label", "labels", "fine_label")


def find_columns(
    dataset: Any, image_column_name: str | None = None, label_column_name: str | None = None
) -> tuple[str, str]:
    """
    Finds the columns of images and labels: by the user's names, else by type (`Image`, `ClassLabel`), else by usual
    names.

    Args:
        dataset (`datasets.Dataset`, or any map-style data set of `dict` rows): where to look.

    Raises:
        `SMDError`: for a missing column, naming those there are; for a data set whose rows cannot be read by name.
    """
    kinds = _column_kinds(dataset)
    return (
        _find_column("image", image_column_name, kinds, IMAGE_COLUMNS),
        _find_column("label", label_column_name, kinds, LABEL_COLUMNS),
    )


def find_label_column(dataset: Any, label_column_name: str | None = None) -> str:
    """The label column, as [`find_columns`] finds it."""
    return _find_column("label", label_column_name, _column_kinds(dataset), LABEL_COLUMNS)


def find_image_column(dataset: Any, image_column_name: str | None = None) -> str:
    """The image column of a data set without labels; the user's name counts only if there is such a column."""
    kinds = _column_kinds(dataset)
    return _find_column("image", image_column_name if image_column_name in kinds else None, kinds, IMAGE_COLUMNS)


def find_column(dataset: Any, what: str, given: str | None, usual: Sequence[str]) -> str:
    """
    The column of something else than images and classes: by the user's name, else by a usual one.

    Args:
        what (`str`): what it holds, as in the argument `WHAT_column_name`: masks are labels.

    Raises:
        `SMDError`: if there is none, naming the columns that there are.
    """
    kinds = _column_kinds(dataset)
    there = f"The columns are: {', '.join(kinds)}."
    if given is not None and given not in kinds:
        raise SMDError(f"The data set has no {what} column {given!r}. {there}{did_you_mean(given, kinds)}")
    found = given or next((name for name in usual if name in kinds), None)
    if found is None:
        raise SMDError(
            f"The data set has no {what} column ({', '.join(usual)}). {there} Choose one with label_column_name."
        )
    return found


def stored_images(dataset: datasets.Dataset, image_column: str) -> datasets.Dataset:
    """The image column as it is stored: files are not decoded, and formats and transforms are dropped."""
    column = dataset.select_columns([image_column]).with_format(None)
    if isinstance(column.features[image_column], datasets.Image):
        column = column.cast_column(image_column, datasets.Image(decode=False))
    return column


@dataclass(eq=False)
class ImageCollator:
    """
    Rows of a data set as a batch: all inputs that the image processor makes, and `"labels"`, int64 of shape `(B,)`.

    Most processors make `pixel_values`, float of shape `(B, C, H, W)`; others make token ids, or patches with a mask and their
    shapes. Rows that hold floating-point `pixel_values` (from a transform of the user) pass unchanged. An image's
    inputs do not depend on the others in its batch.

    Args:
        processor (image processor of transformers): the checkpoint's own.
        image_column (`str`): the column of images.
        label_column (`str`, *optional*): the column of labels; a batch has no `"labels"` without it.
        mapping (`np.ndarray`, *optional*): from the data set's label to the model's class ([`~alignment.LabelAlignment`]).
        channels (`int`, *optional*, defaults to 3): what the model takes: 1, 3 or 4; any number for `pixel_values`.
        names (`Sequence[str]`, *optional*): the label names, for rows whose labels are strings.
        input_names (`Collection[str]`, *optional*): what the model takes ([`~models.inputs.input_names`]). What else the processor
            makes is left out, with a warning.
    """

    processor: Any
    image_column: str
    label_column: str | None = None
    mapping: np.ndarray | None = None
    channels: int = 3
    names: Sequence[str] | None = None
    input_names: Collection[str] | None = None

    def __post_init__(self) -> None:
        self._index = {name: label for label, name in enumerate(self.names or ())}

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.inputs(rows)
        if self.label_column is not None:
            batch["labels"] = torch.tensor([self._label(row[self.label_column]) for row in rows], dtype=torch.int64)
        return batch

    def inputs(self, rows: list[Mapping[str, Any]], **further: Any) -> dict[str, Any]:
        """What the model takes. `further` arguments go to the image processor, of whose results `"labels"` is kept then."""
        if is_processed(rows[0].get("pixel_values")):
            values = [as_tensor(row["pixel_values"]) for row in rows]
            if len({value.shape for value in values}) > 1:
                raise SMDError(
                    f"The rows' pixel_values differ in shape ({sorted({tuple(value.shape) for value in values})}); "
                    "expected one shape (C, H, W). Resize the images in the data set's transform."
                )
            inputs = {"pixel_values": torch.stack(values)}
        elif self.channels not in PIL_MODES:
            raise SMDError(
                f"The model takes images of {self.channels} channels, and image files hold 1, 3 or 4. Give rows with "
                "pixel_values (float tensors of shape (C, H, W)) instead."
            )
        else:
            images = [to_image(row[self.image_column], self.channels) for row in rows]
            try:
                made = self.processor(images=images, return_tensors="pt", **further)
            except (ValueError, RuntimeError, TypeError) as error:
                raise SMDError(
                    f"The checkpoint's image processor ({type(self.processor).__name__}) fails on images of mode "
                    f"{images[0].mode} and sizes {sorted({image.size for image in images})[:3]}: {one_line(str(error))} "
                    "It must bring all images to one size and normalise as many channels as the model takes."
                ) from error
            labels = {"labels": made.pop("labels")} if further else {}
            inputs = {**self._taken(made), **labels}
        pixel_values = inputs.get("pixel_values")
        # Further inputs say how other shapes are read: patches, for example.
        if pixel_values is None or (len(inputs.keys() - {"labels"}) > 1 and pixel_values.ndim != 4):
            return inputs
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.channels:
            raise SMDError(
                f"A batch of pixel values has the shape {tuple(pixel_values.shape)}; the model takes (images, "
                f"{self.channels}, height, width). Use the image processor that belongs to the model."
            )
        return inputs

    def _taken(self, made: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        inputs = select_inputs(made, self.input_names)
        others = sorted(made.keys() - inputs.keys())
        if not inputs:
            raise SMDError(
                f"The image processor ({type(self.processor).__name__}) makes {', '.join(others) or 'nothing'}, and the model takes "
                f"{', '.join(sorted(self.input_names or ()))}. Use the image processor that belongs to the model."
            )
        if others:
            logger.warning_once(
                f"The image processor ({type(self.processor).__name__}) also makes {', '.join(others)}, which the model does not "
                "take and does not get. Check that the image processor belongs to the model."
            )
        return inputs

    def _label(self, value: Any) -> int:
        label = self._index.get(value, -1) if isinstance(value, str) else int(value)
        if self.mapping is not None:
            label = int(self.mapping[label]) if 0 <= label < len(self.mapping) else -1
        if label < 0:
            raise SMDError(
                f"An image has the label {value!r}, which is none of the known labels. Correct or remove it."
            )
        return label


def is_image_struct(feature: Any) -> bool:
    """Whether a column holds `{bytes, path}` of image files without being declared as images."""
    return isinstance(feature, dict) and "bytes" in feature and feature.keys() <= {"bytes", "path"}


def _is_custom(dataset: Any) -> bool:
    """Whether a `datasets.Dataset` has a user's transform, so that its rows differ from its table."""
    return isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom"


def _column_kinds(dataset: Any) -> dict[str, str | None]:
    """Each column's name with `"image"`, `"label"` or `None` for what its type says."""
    features = dataset.features if isinstance(dataset, datasets.Dataset) else {}
    kinds = {}
    for name, feature in features.items():
        if isinstance(feature, datasets.Image) or is_image_struct(feature):
            kinds[name] = "image"
        else:
            kinds[name] = "label" if isinstance(feature, datasets.ClassLabel) else None
    if isinstance(dataset, datasets.Dataset) and not _is_custom(dataset):
        return kinds
    try:
        row = dataset[0] if len(dataset) > 0 else None
    except Exception as error:  # whatever the user's data set raises
        raise SMDError(
            f"Row 0 of the data set ({type(dataset).__name__}) cannot be read ({type(error).__name__}: "
            f"{one_line(str(error))}); expected a map-style data set, with a length and rows by number."
        ) from error
    if row is None:
        raise SMDError("The data set is empty. Give one with images.")
    if not isinstance(row, Mapping):
        raise SMDError(
            f"A row of the data set is a {type(row).__name__}; expected a dict with an image and a label, such as "
            '{"image": image, "label": 3}.'
        )
    return {name: "image" if isinstance(value, Image.Image) else kinds.get(name) for name, value in row.items()}


def _find_column(what: str, given: str | None, kinds: dict[str, str | None], usual: Sequence[str]) -> str:
    there = f"The columns are: {', '.join(kinds)}."
    if given is not None:
        if given in kinds:
            return given
        raise SMDError(f"The data set has no {what} column {given!r}. {there}{did_you_mean(given, kinds)}")
    typed = [name for name, kind in kinds.items() if kind == what]
    for name in usual:
        if name in (typed or kinds):
            return name
    if len(typed) == 1:
        return typed[0]
    if typed:
        raise SMDError(
            f"Several columns may hold the {what}s: {', '.join(typed)}. Choose one with {what}_column_name."
        )
    near = next((hint for name in usual if (hint := did_you_mean(name, kinds))), "")
    raise SMDError(f"The data set has no {what} column. {there}{near} Choose one with {what}_column_name.")
