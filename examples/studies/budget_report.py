"""The table and the figure of `budget.py`."""

from pathlib import Path
from typing import Any

from common import COLORS, markdown_table, panels, series, with_interval

from smd_hf.metrics.statistics import format_p
from smd_hf.reports.plots import save_figure

STYLES: dict[str, tuple[str, int, str]] = {  # label, number of colour and marker, line
    "sgd": ("SGD, 3 passes a step", 0, "--"),
    "spsa": ("MeZO-style SPSA", 5, "--"),
    "evolution_strategies": ("dense ES", 6, "--"),
    "temperature": ("a temperature alone", 0, ":"),
    "gauss_newton_uniform": ("Gauss-Newton, uniform", 2, "-"),
    "gauss_newton_cost": ("Gauss-Newton, by cost", 1, "-"),
    "adapt": ("Gauss-Newton, preset adapt", 3, "-"),
    "adapt_noise": ("adapt without scaling", 4, "-"),
    "best_child": ("best child", 4, ":"),
    "top_k_mean": ("top-4 mean", 1, ":"),
    "greedy_soup": ("greedy soup", 2, ":"),
    "ensemble": ("ensemble", 3, "none"),
}


def entries(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The methods in the order of the table; the ensemble after the children that it is made of."""
    found: dict[str, dict[str, Any]] = {}
    for method in STYLES:
        if method in document["methods"]:
            found[method] = document["methods"][method]
    if "ensemble" in found.get("best_child", {}):
        ensemble = found["best_child"]["ensemble"]
        scores = ensemble["final"]["scores"]
        point = {"passes": ensemble["passes"], "accuracy": scores["accuracy"], "nll": scores["nll"]}
        found["ensemble"] = {**ensemble, "points": [point], "seconds": None}
    return found


def render(document: dict[str, Any]) -> str:
    """Both tables in Markdown: each method's last model, and all of them by what was spent."""
    parent, images = document["parent"], document["settings"]["images"]
    head = ["method", "passes", "accuracy %", "gain (95 %)", "p", "NLL", "change of NLL (95 %)", "CPU s"]
    rows = [["parent", "0", f"{100 * parent['accuracy']:.2f}", "", "", f"{parent['nll']:.3f}", "", ""]]
    for method, entry in entries(document).items():
        scores, difference = entry["final"]["scores"], entry["final"]["difference"]
        accuracy, loss = difference["accuracy"], difference["nll"]
        rows.append(
            [
                label(method, entry),
                f"{entry['points'][-1]['passes']:.1f}",
                f"{100 * scores['accuracy']:.2f}",
                with_interval(accuracy["estimate"], accuracy["interval"], factor=100),
                format_p(difference["mcnemar"]["p_value"]).removeprefix("p = ").removeprefix("p "),
                "-" if scores["nll"] is None else f"{scores['nll']:.3f}",
                with_interval(loss["estimate"], loss["interval"], digits=3),
                "-" if entry["seconds"] is None else f"{entry['seconds']:.0f}",
            ]
        )
    return "\n\n".join(
        [
            f"{document['settings']['model']} on {document['settings']['data']}: {images['learn']:,} images to learn from, "
            f"{images['choose']:,} to choose with, {images['test']:,} to report on. One pass is "
            f"{images['learn'] + images['choose']:,} images forward.",
            markdown_table(head, rows),
            "Accuracy % / NLL of the last model within so many passes:",
            by_budget(document),
        ]
    )


def label(method: str, entry: dict[str, Any]) -> str:
    """The name in the tables, with what tuning has chosen."""
    name = STYLES[method][0]
    if entry.get("options"):
        options = entry["options"]
        name += f" ({' and '.join(options['parameters'])}, rate {options['rate']:g})"
    if "members" in entry:
        name += f" of {entry['members']}"
    return name


def by_budget(document: dict[str, Any]) -> str:
    """The second table: every method at each quarter of the largest budget."""
    found = entries(document)
    longest = max(entry["points"][-1]["passes"] for entry in found.values())
    budgets = [round(longest * share + 0.05, 1) for share in (1 / 4, 1 / 2, 3 / 4, 1)]
    rows = []
    for method, entry in found.items():
        row = [STYLES[method][0]]
        for budget in budgets:
            within = [point for point in entry["points"] if point["passes"] <= budget]
            row.append(f"{100 * within[-1]['accuracy']:.2f} / {within[-1]['nll']:.3f}" if within else "")
        rows.append(row)
    return markdown_table(["method", *(f"{budget:g}" for budget in budgets)], rows)


def draw(document: dict[str, Any], path: Path) -> None:
    figure, [[accuracy, loss]] = panels(2, size=(5.4, 4.4))
    parent = document["parent"]
    for axes, key, factor, text in ((accuracy, "accuracy", 100, "accuracy (%)"), (loss, "nll", 1, "NLL (nats)")):
        axes.axhline(factor * parent[key], color=COLORS[0], linewidth=1, label="parent")
        for method, entry in entries(document).items():
            name, number, line = STYLES[method]
            points = [parent, *entry["points"]] if len(entry["points"]) > 1 or line != "none" else entry["points"]
            x, y = [point["passes"] for point in points], [factor * point[key] for point in points]
            series(axes, number, x, y, name, linestyle=line, markersize=4)
            ends = entry["final"]["difference"][key]["interval"]
            low, high = (factor * (parent[key] + end) for end in ends)
            axes.errorbar(
                x[-1], y[-1], [[max(0.0, y[-1] - low)], [max(0.0, high - y[-1])]], color=COLORS[number], capsize=2, linewidth=1
            )  # fmt: skip
        axes.set_xlabel("forward passes over the training images")
        axes.set_ylabel(f"test {text}")
    handles, labels = accuracy.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    save_figure(figure, path)
