"""
Figures of a run, as PNG files for model cards and README.

Each function draws its own `matplotlib.figure.Figure` and does not touch pyplot's global state or the user's backend. The
files hold no date, so equal data give equal bytes. The colours are Okabe and Ito's, safe for colour-blind readers. Parent,
evolved model and ensemble differ in marker as well as in colour.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ..metrics.statistics import Reliability
from .gain_report import metrics_of_report

GREY, BLUE, ORANGE, GREEN = "#5f5f5f", "#0072B2", "#D55E00", "#009E73"
_STYLES = {"parent": (GREY, "s"), "evolved": (BLUE, "o"), "ensemble": (ORANGE, "D")}
_SIZE = 11


def plot_fitness(
    generations: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    label: str = "fitness (higher is better)",
) -> Path:
    """
    Plots the fitness of the children and of their parent by generation.

    Args:
        generations (`Sequence[Mapping]`): one per generation, with `children` (list of fitness values), `parent` (fitness
            of their parent) and `best` (fitness of the best model after the generation). Values that are not finite are
            left out. Children far below the rest are drawn as triangles at the lower edge.
    """
    figure, axes = _figure()
    children = [np.asarray(generation["children"], dtype=np.float64) for generation in generations]
    levels = np.array([value for g in generations for value in (g["parent"], g["best"])], dtype=np.float64)
    finite = np.concatenate([*children, levels])
    finite = finite[np.isfinite(finite)]
    # Failed children would squeeze all others into a line. Cut three interquartile ranges below the lower quartile, and draw
    # the children that are cut just below the lowest of the rest.
    low, middle, high = np.quantile(finite, [0.25, 0.5, 0.75]) if len(finite) else (0.0, 0.0, 0.0)
    cut = min([low - 3 * max(high - low, 1e-3 * abs(middle)), *levels[np.isfinite(levels)]])
    kept = finite[finite >= cut]
    edge = kept.min() - 0.06 * np.ptp(kept) if len(kept) else cut

    for number, values in enumerate(children, start=1):
        x = number + np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.array([float(number)])
        shown, broken = np.isfinite(values) & (values >= cut), np.isfinite(values) & (values < cut)
        axes.scatter(x[shown], values[shown], s=16, color=BLUE, alpha=0.55, linewidths=0)
        axes.scatter(x[broken], np.full(broken.sum(), edge), s=28, color=BLUE, marker="v", linewidths=0)
    numbers = np.arange(1, len(generations) + 1)
    axes.scatter([], [], s=16, color=BLUE, alpha=0.55, label="children")
    if len(kept) < len(finite):
        axes.scatter([], [], s=28, color=BLUE, marker="v", label="children below the axis")
    parents = [generation["parent"] for generation in generations]
    axes.hlines(parents, numbers - 0.35, numbers + 0.35, color=GREY, linewidth=2.5, label="parent")
    axes.plot(numbers, [g["best"] for g in generations], color=ORANGE, marker="D", markersize=6, label="best so far")
    axes.set_xlim(0.4, len(generations) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("generation")
    axes.set_ylabel(label)
    legend_above(axes)
    return save_figure(figure, path)


def plot_gain(report: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """
    Plots two metrics of parent, evolved model and ensemble (if any) from a gain report: accuracy and NLL for classification,
    else the most important metric and the loss, or the last metric where there is no loss.

    A bar is the interval of the paired difference to the parent, drawn around the model's value. If it does not touch the
    parent's line, the interval excludes zero.
    """
    names = [name for name in _STYLES if name in report]
    differences = {"evolved": report["difference"], "ensemble": report.get("ensemble_difference")}
    figure = Figure(figsize=(7, 0.9 + 0.75 * len(names)), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    metrics = metrics_of_report(report)
    second = next((each for each in metrics if each.key in ("nll", "loss")), metrics[-1])
    for axes, metric in zip(panels, (metrics[0], second)):
        key, factor, digits = metric.key, metric.factor, metric.decimals
        label = "NLL" if key == "nll" else metric.label
        title = f"{label}, {'higher' if metric.greater_is_better else 'lower'} is better"
        parent = report["parent"][key]
        if parent is not None:
            axes.axvline(factor * parent, color=GREY, linewidth=1, linestyle="--", zorder=1)
        for row, name in enumerate(names):
            color, marker = _STYLES[name]
            value = report[name][key]
            if value is None:
                axes.text(0.5, row, "not finite", ha="center", transform=axes.get_yaxis_transform(), color=color)
                continue
            axes.plot([factor * value], [row], color=color, marker=marker, markersize=8)
            axes.annotate(
                f"{factor * value:.{digits}f}", (factor * value, row), (0, 9), textcoords="offset points", ha="center",
                color=color, fontsize=_SIZE - 1, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )  # fmt: skip
            interval = differences[name][key]["interval"] if name != "parent" else (None, None)
            if None not in interval and parent is not None:
                axes.hlines(row, *(factor * (parent + end) for end in interval), color=color, linewidth=2.5)
        axes.set_ylim(len(names) - 0.6, -0.75)
        axes.margins(x=0.2)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(title)
        style_axes(axes, grid="x")
    panels[0].set_yticks(range(len(names)), names)
    panels[1].tick_params(axis="y", length=0)
    level = f"{100 * report['confidence']:g} %"
    figure.suptitle(f"{report['parent']['n_test']:,} test images; bars: {level} interval of the difference to the parent", fontsize=_SIZE)  # fmt: skip
    return save_figure(figure, path)


def plot_reliability(parent: Reliability, evolved: Reliability, path: str | os.PathLike) -> Path:
    """Plots the reliability diagram of two models: accuracy against confidence, and below it the share of images in each bin."""
    figure = Figure(figsize=(5.5, 5.5), dpi=150, layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="perfectly calibrated")
    for side, (model, name) in enumerate(((parent, "parent"), (evolved, "evolved"))):
        color, marker = _STYLES[name]
        filled = model.count > 0
        axes.plot(model.confidence[filled], model.accuracy[filled], color=color, marker=marker, label=name)
        width = 1 / len(model.count)
        left = width * (np.arange(len(model.count)) + 0.1 + 0.4 * side)
        below.bar(left, model.count / model.count.sum(), 0.4 * width, align="edge", color=color)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("accuracy")
    axes.legend(loc="upper left", fontsize=_SIZE - 1, frameon=False)
    below.set_xlim(0, 1)
    below.set_xlabel("confidence (largest probability)")
    below.set_ylabel("share of images")
    below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    below.yaxis.set_major_locator(MaxNLocator(4))
    for panel in (axes, below):
        style_axes(panel)
    return save_figure(figure, path)


def plot_calibration_curve(
    points: Sequence[tuple[float, float]], chosen: float, target: float, path: str | os.PathLike
) -> Path:
    """
    Plots the calibration of sigma: share of flipped predictions against sigma.

    Args:
        points (`Sequence[tuple[float, float]]`): sigma and share of flipped predictions (0 to 1), in any order.
    """
    figure, axes = _figure()
    sigma, flipped = np.array(sorted(points), dtype=np.float64).reshape(-1, 2).T
    axes.axhline(target, color=GREY, linewidth=1.5, linestyle="--", label=f"target {100 * target:g} %")
    axes.axvline(chosen, color=ORANGE, linewidth=1.5, label=f"chosen sigma {chosen:.3g}")
    axes.plot(sigma, flipped, color=BLUE, marker="o", label="measured")
    axes.set_xscale("log")
    # Linear up to twice the target, where sigma is chosen; logarithmic above.
    axes.set_yscale("symlog", linthresh=2 * target, linscale=1)
    top = max([2 * target, *flipped])
    ticks = [0, target, *(share for share in (0.1, 0.2, 0.5, 1.0) if 2 * target < share <= 1.2 * top)]
    axes.set_yticks(ticks)
    axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.set_ylim(-0.1 * target, 1.15 * top)
    axes.set_xlabel("sigma")
    axes.set_ylabel("flipped predictions")
    legend_above(axes)
    return save_figure(figure, path)


def plot_ensemble_size(
    sizes: Sequence[int], accuracies: Sequence[float], parent_accuracy: float, path: str | os.PathLike
) -> Path:
    """
    Plots the accuracy of the ensemble by its number of members, and the parent's accuracy.

    Args:
        accuracies (`Sequence[float]`): accuracy of each ensemble, 0 to 1.
    """
    figure, axes = _figure()
    axes.axhline(100 * parent_accuracy, color=GREY, linewidth=1.5, linestyle="--", label="parent")
    axes.plot(sizes, 100 * np.asarray(accuracies), color=ORANGE, marker="D", label="ensemble")
    if len(sizes) <= 10:
        axes.set_xticks(sizes)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("members")
    axes.set_ylabel("accuracy (%)")
    axes.margins(y=0.15)
    legend_above(axes)
    return save_figure(figure, path)


def plot_shift(
    images_before: Sequence[Any],
    images_after: Sequence[Any],
    path: str | os.PathLike,
    *,
    names: tuple[str, str] = ("before", "after"),
) -> Path:
    """
    Plots sample images in two rows: images that the parent was trained on, and the same images after the shift.

    Args:
        images_before, images_after (`Sequence`): equally many PIL images or arrays, `(h, w)` or `(h, w, 3)`, uint8 or
            floats from 0 to 1.
    """
    columns = len(images_before)
    figure = Figure(figsize=(0.3 + 0.1 * max(map(len, names)) + 0.8 * columns, 1.75), dpi=150, layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    for row, images, name in zip(grid, (images_before, images_after), names):
        for axes, image in zip(row, images, strict=True):
            pixels = np.asarray(image)
            axes.imshow(
                pixels, cmap="gray", vmin=0, vmax=255 if pixels.dtype == np.uint8 else 1, interpolation="nearest"
            )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(name, fontsize=_SIZE, rotation=0, horizontalalignment="right", verticalalignment="center")
    return save_figure(figure, path)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    return figure, axes


def style_axes(axes: Axes, grid: Any = "both") -> None:
    """Styles the axes of every figure: two spines, a pale grid along `"x"`, `"y"` or `"both"`, one font size."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=_SIZE - 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(_SIZE)


def legend_above(axes: Axes, columns: int = 4) -> None:
    """Puts a legend above the axes, where it hides nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=_SIZE - 1, frameon=False, borderaxespad=0.2
    )


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Writes a figure as PNG and creates its folder if it does not exist. Equal figures give equal bytes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    figure.savefig(path, format="png", metadata={"Software": None})
    return path
