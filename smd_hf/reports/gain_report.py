"""
The gain report: `gain_report.json`, and the before/after table for the terminal.

The report holds every number that a model card may print. It is strict JSON with sorted keys. Numbers that are not finite
become null, and tokens among the `arguments` are never written.
"""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..files import write_json
from ..metrics.absent_classes import absent_entry, classes_at_hand
from ..metrics.comparison import CLASSIFICATION_METRICS, difference_entry, measured, scores_entry
from ..metrics.optimism import expected_optimism
from ..metrics.resampling import CONFIDENCE, Metric
from ..metrics.statistics import Comparison, compare, format_p

REPORT_NAME = "gain_report.json"
_PACKAGES = (
    "torch",
    "transformers",
    "timm",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "numpy",
)


def package_versions() -> dict[str, str]:
    """Versions of Python, smd_hf and the packages that affect the result, without importing them."""
    versions = {package: metadata.version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), "smd_hf": __version__, **versions}


def installed_version(package: str) -> str | None:
    """The version of an optional package; `None` if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def gain_report(
    parent_logits: np.ndarray,
    evolved_logits: np.ndarray,
    labels: np.ndarray,
    *,
    arguments: Mapping[str, Any],
    method: Mapping[str, Any],
    cost: Mapping[str, Any],
    data: Mapping[str, Any],
    candidates: Mapping[str, Any] | None = None,
    ensemble_logits: np.ndarray | None = None,
    present: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Compares parent and evolved model on the test split and describes the run.

    Args:
        parent_logits, evolved_logits (`np.ndarray` of shape `(n, classes)`): logits on the test split. It must not have been
            used for scoring or choosing.
        labels (`np.ndarray` of shape `(n,)`): integers from 0 to classes - 1.
        cost (`Mapping`): `images_forwarded`, `parent_passes` (in units of one parent pass over the fitness data), `seconds`.
        candidates (`Mapping`, *optional*): the candidates that were compared: `n_candidates`, `n_images` of the split they
            were compared on, and optionally `discordance` (share of these images on which exactly one of parent and
            candidate is right, mean over candidates), `keeps_parent` and `accuracy` (of the parent on that split; defaults
            to the accuracy on the test split). See `optimism.expected_optimism`. Other entries are copied.
        ensemble_logits (`np.ndarray` of shape `(n, classes)`, *optional*): log-probabilities of the ensemble.
        present (`np.ndarray`, *optional*): the classes that have an image in the other splits. If other classes of the model
            have no image, the report has an entry `absent_classes`.

    Returns:
        `dict`: plain Python values that survive a round trip through JSON. `parent` and `evolved` (and `ensemble`) hold
        `n_test`, `accuracy`, `nll` and `calibration_error`. `difference` (and `ensemble_difference`) hold the paired
        differences to the parent, with intervals and McNemar's test. `significant` and `verdict` refer to the evolved model;
        `ensemble_difference` has the same entries for the ensemble. `absent_classes` (and
        `ensemble_absent_classes`) are there if some of the model's classes have no image: see
        [`~smd_hf.metrics.absent_classes.absent_entry`].
    """
    comparison = compare(parent_logits, evolved_logits, labels, seed=seed)
    report: dict[str, Any] = {
        "parent": scores_entry(comparison.baseline),
        "evolved": scores_entry(comparison.candidate),
        "difference": difference_entry(comparison),
        "significant": comparison.significant,
        "verdict": comparison.verdict,
        "confidence": comparison.confidence,
    }
    if candidates is not None:
        report["selection"] = _selection_entry(candidates, comparison.baseline.accuracy)
    if ensemble_logits is not None:
        report["ensemble"], report["ensemble_difference"] = measured(
            parent_logits, ensemble_logits, labels, "ensemble", seed
        )
    if present is not None:
        at_hand = classes_at_hand(labels, present)
        absent = {"absent_classes": absent_entry(parent_logits, evolved_logits, labels, at_hand, "evolved", seed)}
        if ensemble_logits is not None:
            absent["ensemble_absent_classes"] = absent_entry(
                parent_logits, ensemble_logits, labels, at_hand, "ensemble", seed
            )
        report |= {name: entry for name, entry in absent.items() if entry is not None}
    return whole_report(report, arguments=arguments, method=method, cost=cost, data=data)


def whole_report(
    comparison: Mapping[str, Any],
    *,
    arguments: Mapping[str, Any],
    method: Mapping[str, Any],
    cost: Mapping[str, Any],
    data: Mapping[str, Any],
) -> dict[str, Any]:
    """What was found on the test images, with what every report says of its run. Takes arguments of [`gain_report`]."""
    return _plain(
        {
            **comparison,
            "cost": cost,
            "arguments": {key: "<hidden>" if key.endswith("token") else value for key, value in arguments.items()},
            "data": data,
            "versions": package_versions(),
            **method,
        }
    )


def write_report(report: Mapping[str, Any], folder: str | os.PathLike) -> Path:
    """
    Writes `gain_report.json` into `folder`, which is created if it does not exist, and returns its path.

    The file is replaced atomically: after a crash, the old report or the new one is there.
    """
    path = Path(folder) / REPORT_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, _plain(report))
    return path


def format_table(report: Mapping[str, Any]) -> str:
    """The before/after table of a gain report for the terminal: the evolved model, then the ensemble, if any."""
    parent, level, rows = report["parent"], report["confidence"], metrics_of_report(report)
    evolved = _block("parent", parent, "evolved", report["evolved"], report["difference"], level, rows)
    blocks = [evolved, *report.get("notes", ()), report["verdict"]]
    if "ensemble" in report:
        difference = report["ensemble_difference"]
        blocks.append(_block("parent", parent, "ensemble", report["ensemble"], difference, level, rows))
        blocks.append(difference["verdict"])
    return "\n\n".join(blocks)


def format_comparison(comparison: Comparison) -> str:
    """The table of [`format_table`] for any two models that `statistics.compare` has compared."""
    first, second = scores_entry(comparison.baseline), scores_entry(comparison.candidate)
    name, other_name = comparison.names
    table = _block(
        name,
        first,
        other_name,
        second,
        difference_entry(comparison),
        comparison.confidence,
        CLASSIFICATION_METRICS,
    )
    return f"{table}\n\n{comparison.verdict}"


def format_metrics(
    names: tuple[str, str], first: Mapping, second: Mapping, difference: Mapping, metrics: Sequence[Metric]
) -> str:
    """The table of [`format_table`] for any two models and the metrics of a task."""
    return _block(names[0], first, names[1], second, difference, CONFIDENCE, metrics)


def _selection_entry(candidates: Mapping[str, Any], accuracy: float) -> dict[str, Any]:
    optimism = expected_optimism(
        candidates["n_candidates"],
        candidates["n_images"],
        candidates.get("accuracy", accuracy),
        discordance=candidates.get("discordance"),
        keeps_parent=candidates.get("keeps_parent", False),
    )
    return {**candidates, "expected_optimism": optimism}


def metrics_of_report(report: Mapping[str, Any]) -> tuple[Metric, ...]:
    """The metrics of a report, in order, with what shows them. A report of image classification does not name them."""
    if "metrics" not in report:
        return CLASSIFICATION_METRICS
    return tuple(Metric(**entry) for entry in report["metrics"])


def _block(
    name: str,
    scores: Mapping,
    other_name: str,
    other: Mapping,
    difference: Mapping,
    confidence: float,
    metrics: Sequence[Metric],
) -> str:
    cells = [["", name, other_name, "difference", f"{100 * confidence:g} % interval"]]
    for metric in metrics:
        key, found = metric.key, difference[metric.key]
        low, high = (metric.shown(end, "+") for end in found["interval"])
        change = metric.shown(found["estimate"], "+")
        cells.append([metric.label, metric.shown(scores[key]), metric.shown(other[key]), change, f"{low} to {high}"])
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]) for row in cells
    ]
    lines.insert(1, "-" * len(lines[0]))
    if "mcnemar" not in difference:
        return "\n".join([*lines, f"{scores['n_test']:,} test images"])
    mcnemar = difference["mcnemar"]
    lines.append(
        f"{scores['n_test']:,} test images; only {name} right: {mcnemar[f'only_{name}_correct']}, only {other_name} right: "
        f"{mcnemar[f'only_{other_name}_correct']}; exact McNemar {format_p(mcnemar['p_value'])}"
    )
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """Converts a value to JSON's types. A number that is not finite becomes None, a value of another type its string."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(entry) for entry in value), key=str)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
