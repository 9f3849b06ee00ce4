"""Plots a front, with one panel for each pair of objectives."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .plots import BLUE, GREY, ORANGE, save_figure, style_axes


def plot_front(table: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """
    Plots each pair of objectives: all candidates on the selection images, and the front's members on the test images too.

    A thin line joins the two values of a member. It shows the difference between the splits, and the optimism of the choice.
    """
    names = names_of(table)
    size = len(names) - 1
    figure = Figure(figsize=(2 + 3.2 * size, 1.2 + 2.6 * size), dpi=150, layout="constrained")
    grid = figure.subplots(size, size, squeeze=False)
    for row, column in ((row, column) for row in range(size) for column in range(size)):
        axes = grid[row, column]
        if column > row:
            axes.set_axis_off()
            continue
        x, y = names[column], names[row + 1]
        for other in table["others"]:
            _point(
                axes, other["selection"], x, y, color="#bbbbbb", marker=".", markersize=5, linestyle="none", zorder=1
            )
        for member in table["members"]:
            color, marker = _style(member)
            look = dict(color=color, marker=marker, markersize=6, linestyle="none")
            if member["test"] is not None:
                ends = [member["selection"], member["test"]]
                if all(end[name] is not None for end in ends for name in (x, y)):
                    axes.plot(
                        [end[x] for end in ends],
                        [end[y] for end in ends],
                        color=color,
                        linewidth=0.6,
                        alpha=0.6,
                        zorder=2,
                    )
                _point(axes, member["test"], x, y, **look, fillstyle="none", zorder=3)
            _point(axes, member["selection"], x, y, **look, zorder=3)
        axes.set_xlabel(_label(table, x) if row == size - 1 else "")
        axes.set_ylabel(_label(table, y) if column == 0 else "")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(0.1)
        style_axes(axes)
    _legend(figure, table)
    return save_figure(figure, path)


def names_of(table: Mapping[str, Any]) -> list[str]:
    """The names of a front's objectives, in order."""
    return [objective["name"] for objective in table["objectives"]]


def _point(axes: Any, values: Mapping[str, float | None], x: str, y: str, **look: Any) -> None:
    if values[x] is not None and values[y] is not None:
        axes.plot([values[x]], [values[y]], **look)


def _style(member: Mapping[str, Any]) -> tuple[str, str]:
    if member["chosen"]:
        return ORANGE, "D"
    return (GREY, "s") if member["generation"] is None else (BLUE, "o")


def _label(table: Mapping[str, Any], name: str) -> str:
    [better] = [each["better"] for each in table["objectives"] if each["name"] == name]
    return f"{name}\n({better} is better)"


def _legend(figure: Figure, table: Mapping[str, Any]) -> None:
    kept = next(member for member in table["members"] if member["chosen"])["generation"] is None
    looks: list[tuple[str, str, str, Any]] = [
        ("first parent, kept" if kept else "evolved model", ORANGE, "D", "full"),
        *([] if kept else [("first parent", GREY, "s", "full")]),
        ("front", BLUE, "o", "full"),
        *([("dominated", "#bbbbbb", ".", "full")] if table["others"] else []),
        *([("hollow: on the test images", BLUE, "o", "none")] if table["members"][0]["test"] is not None else []),
    ]
    handles = [
        Line2D([], [], color=color, marker=marker, fillstyle=fill, linestyle="none", label=label)
        for label, color, marker, fill in looks
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=10)
