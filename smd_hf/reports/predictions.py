"""A few test images with their truth and what parent and evolved model predict, for tasks whose predictions can be drawn."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ..data.batches import ImageBatches
from ..scoring.evaluator import Evaluator
from ..scoring.runtimes.eager import Eager
from ..tasks.pictures import Boxes, ClassMap, DepthMap, Picture, Pictured
from ..tasks.protocol import Task
from .plots import save_figure

PLOT_NAME = "predictions.png"
COUNT = 3
"""Images that are drawn."""
COLORS = colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
SHOWN_CLASSES = 16
"""The most classes that the legend names."""


@dataclass
class Predictions:
    """
    Evenly spaced test images, and what a model predicts for them.

    Attributes:
        images (list of `numpy.ndarray`): as the model sees them: floats from 0 to 1, of shape `(height, width, 3)`.
        truth (list of `Picture`): from the labels.
        found (list of `Picture`): from the model.
    """

    images: list[np.ndarray] = field(default_factory=list)
    truth: list[Picture] = field(default_factory=list)
    found: list[Picture] = field(default_factory=list)


def predictions(evaluator: Evaluator, task: Task, batches: ImageBatches, processor: Any) -> Predictions | None:
    """
    What the evaluator's model predicts for some images of `batches`; `None` if the task's predictions cannot be drawn.

    Images are passed through the model one by one, and are counted nowhere.
    """
    if not isinstance(task, Pictured):
        return None
    result = Predictions()
    places = np.linspace(0, batches.num_images - 1, min(COUNT, batches.num_images)).round().astype(int)
    # The model itself: another runtime would be compiled anew for one image.
    model = Eager(evaluator.model.eval(), prefix_replay=False, read=task.prediction)
    for place in places.tolist():
        row = batches.indices[place]
        batch = replace(batches, batch_size=1, indices=[row], cache_bytes=0).first_batch()
        inputs = evaluator.inputs(batch)
        if "pixel_values" not in inputs:
            return None
        with torch.inference_mode(), evaluator.autocast():
            truth, found = task.picture(model.forward(inputs), batch.labels)
        result.images.append(_image(inputs["pixel_values"][0], processor))
        result.truth.append(truth)
        result.found.append(found)
    return result


def _image(pixels: torch.Tensor, processor: Any) -> np.ndarray:
    """The image that an image processor has normalised, as far as it says how."""
    values = pixels.float().cpu().numpy().transpose(1, 2, 0)
    mean, deviation = (getattr(processor, name, None) for name in ("image_mean", "image_std"))
    if getattr(processor, "do_normalize", False) and mean is not None and deviation is not None:
        values = values * np.asarray(deviation) + np.asarray(mean)
    else:
        values = (values - values.min()) / max(float(np.ptp(values)), 1e-6)
    return np.repeat(values, 3, axis=2).clip(0, 1) if values.shape[2] == 1 else values[..., :3].clip(0, 1)


def plot_predictions(
    before: Predictions, after: Predictions, names: Mapping[int, str], path: str | os.PathLike
) -> Path:
    """
    Plots a row for each image: the image, its truth, and what the parent and the evolved model predict.

    Args:
        before, after ([`Predictions`]): of the parent and of the evolved model, for the same images.
        names (dict of `int` to `str`): of the classes.
    """
    rows = list(zip(before.images, before.truth, before.found, after.found, strict=True))
    image = rows[0][0]
    height = 2.4 * image.shape[0] / image.shape[1]
    figure = Figure(figsize=(10, 0.7 + height * len(rows)), dpi=110, layout="constrained")
    grid = figure.subplots(len(rows), 4, squeeze=False)
    for line, (image, *pictures) in zip(grid, rows):
        line[0].imshow(image)
        for axes, picture in zip(line[1:], pictures):
            _draw(axes, picture, image, names)
        for axes in line:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    for axes, title in zip(grid[0], ("image", "truth", "parent", "evolved")):
        axes.set_title(title, fontsize=10)
    classes = _classes([picture for _, *pictures in rows for picture in pictures])
    if classes:
        handles = [Patch(color=_color(each), label=str(names.get(each, each))) for each in classes[:SHOWN_CLASSES]]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(8, len(handles)), fontsize=8, frameon=False
        )
    return save_figure(figure, path)


def _draw(axes: Axes, picture: Picture, image: np.ndarray, names: Mapping[int, str]) -> None:
    if isinstance(picture, DepthMap):
        low, high = picture.limits or (None, None)
        axes.imshow(np.ma.masked_invalid(picture.values), cmap="viridis", vmin=low, vmax=high)
    elif isinstance(picture, ClassMap):
        colored = np.ones((*picture.classes.shape, 3))
        for each in np.unique(picture.classes[picture.classes >= 0]):
            colored[picture.classes == each] = _color(int(each))
        axes.imshow(colored, interpolation="nearest")
    else:
        _draw_boxes(axes, picture, image)


def _draw_boxes(axes: Axes, boxes: Boxes, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    axes.imshow(image)
    for number, (corners, each) in enumerate(zip(boxes.corners * [width, height, width, height], boxes.classes)):
        left, top, right, bottom = corners
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=_color(int(each)), linewidth=1.5)
        )
        if boxes.scores is not None:
            axes.text(left, top, f"{boxes.scores[number]:.2f}", fontsize=6, color="white", verticalalignment="bottom")
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _classes(pictures: Sequence[Picture]) -> list[int]:
    """The classes that occur, the most frequent first."""
    counts: dict[int, int] = {}
    for picture in pictures:
        if not isinstance(picture, DepthMap):
            for each, count in zip(*np.unique(picture.classes[picture.classes >= 0], return_counts=True)):
                counts[int(each)] = counts.get(int(each), 0) + int(count)
    return sorted(counts, key=lambda each: (-counts[each], each))


def _color(number: int) -> tuple[float, float, float]:
    return COLORS[number % len(COLORS)]
