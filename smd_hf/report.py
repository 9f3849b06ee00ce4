"""
What a run has to say for itself: `gain_report.json`, and the before/after table for the terminal.

The report holds every number that a model card may print. It is strict JSON with sorted keys: what is not finite becomes
null, and a value of `arguments` that is a token is never written.
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

from . import __version__
from .absent_classes import classes_at_hand, compare_restricted, predicted_elsewhere
from .errors import SMDError
from .files import write_json
from .optimism import expected_optimism
from .statistics import Comparison, Difference, Scores, compare, format_p

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
    """Versions of Python, of smd_hf and of the packages that decide on the result, without importing them."""
    versions = {package: metadata.version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), "smd_hf": __version__, **versions}


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
    versions: Mapping[str, str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Compare parent and evolved model on the test split and say how the evolved model came about.

    Args:
        parent_logits, evolved_logits (`np.ndarray` of shape `(n, classes)`): logits on the test split, which took no part
            in scoring or choosing.
        labels (`np.ndarray` of shape `(n,)`): integers from 0 to classes - 1.
        arguments (`Mapping`): the arguments of the run that are not at their default.
        method (`Mapping`): `decomposition`, `seed` and what else describes the method; copied to the top level.
        cost (`Mapping`): `images_forwarded`, `parent_passes` (in units of one parent pass over the fitness data), `seconds`.
        data (`Mapping`): names and sizes of the three disjoint splits `fitness`, `selection` and `test`.
        candidates (`Mapping`, *optional*): what was chosen from: `n_candidates`, `n_images` of the split they were
            compared on, and optionally `discordance` (share of these images on which exactly one of parent and candidate
            is right, mean over candidates), `keeps_parent` and `accuracy` (of the parent there; the one on the test split
            if absent). See `optimism.expected_optimism`. Other entries are copied.
        ensemble_logits (`np.ndarray` of shape `(n, classes)`, *optional*): log-probabilities of the ensemble.
        present (`np.ndarray`, *optional*): the classes that have an image in the other splits. Where the model has classes
            without any image, the report says so (`absent_classes`).
        versions (`Mapping`, *optional*, defaults to `package_versions()`): package versions.
        seed (`int`, *optional*, defaults to 0): seed of the bootstrap.

    Returns:
        `dict`: plain Python values that survive a round trip through JSON. `parent`, `evolved` (and `ensemble`) hold
        `n_test`, `accuracy`, `nll` and `calibration_error`; `difference` (and `ensemble_difference`) the paired differences
        to the parent with their intervals and McNemar's test; `significant` and `verdict` speak of the evolved model,
        those of the ensemble are in `ensemble_difference`. `absent_classes`, where there are any, counts the model's `classes`,
        those `with_images` and `without_images`; gives the share of test images on which parent and evolved model predict one
        without images (`predicted`); and both models' scores with predictions `restricted` to the others, with the difference.

    Raises:
        `SMDError`: shapes that do not match, labels outside the classes, an entry of `method` that is also the report's.
    """
    comparison = compare(parent_logits, evolved_logits, labels, seed=seed)
    report: dict[str, Any] = {
        "parent": _scores_entry(comparison.baseline),
        "evolved": _scores_entry(comparison.candidate),
        "difference": _difference_entry(comparison),
        "significant": comparison.significant,
        "verdict": comparison.verdict,
        "confidence": comparison.confidence,
        "cost": cost,
        "arguments": {key: "<hidden>" if key.endswith("token") else value for key, value in arguments.items()},
        "data": data,
        "versions": package_versions() if versions is None else versions,
    }
    if candidates is not None:
        report["selection"] = _selection_entry(candidates, comparison.baseline.accuracy)
    if ensemble_logits is not None:
        report["ensemble"], report["ensemble_difference"] = measured(
            parent_logits, ensemble_logits, labels, "ensemble", seed
        )
    if present is not None:
        report |= _absent_entry(parent_logits, evolved_logits, labels, classes_at_hand(labels, present), seed)
    taken = sorted(report.keys() & method.keys())
    if taken:
        raise SMDError(f"`method` must not hold {taken}: the gain report has entries of these names. Rename them.")
    return _plain({**report, **method})


def measured(
    parent_logits: np.ndarray, logits: np.ndarray, labels: np.ndarray, name: str, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Another model beside the parent on the test split.

    Args:
        parent_logits, logits (`np.ndarray` of shape `(n, classes)`), labels (`np.ndarray` of shape `(n,)`), seed (`int`): as
            for [`gain_report`].
        name (`str`): what the model is called in the verdict and in `mcnemar`.

    Returns:
        `tuple[dict, dict]`: its scores, and the paired difference with `significant` and `verdict`.
    """
    comparison = compare(parent_logits, logits, labels, names=("parent", name), seed=seed)
    difference = _difference_entry(comparison)
    return _scores_entry(comparison.candidate), difference | {
        "significant": comparison.significant,
        "verdict": comparison.verdict,
    }


def write_report(report: Mapping[str, Any], folder: str | os.PathLike) -> Path:
    """
    Write `gain_report.json` into `folder` (made if need be) and return its path.

    It is written beside its place and then renamed: after a crash there is the old report or the new one, never half of one.
    """
    path = Path(folder) / REPORT_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, _plain(report))
    return path


def format_table(report: Mapping[str, Any]) -> str:
    """The before/after table of a gain report, for the terminal: the evolved model, then the ensemble if there is one."""
    parent, level = report["parent"], report["confidence"]
    blocks = [_block("parent", parent, "evolved", report["evolved"], report["difference"], level), report["verdict"]]
    if "ensemble" in report:
        difference = report["ensemble_difference"]
        blocks.append(_block("parent", parent, "ensemble", report["ensemble"], difference, level))
        blocks.append(difference["verdict"])
    return "\n\n".join(blocks)


def format_comparison(comparison: Comparison) -> str:
    """The same table for any two models that `statistics.compare` has compared, under their own names."""
    first, second = _scores_entry(comparison.baseline), _scores_entry(comparison.candidate)
    name, other_name = comparison.names
    table = _block(name, first, other_name, second, _difference_entry(comparison), comparison.confidence)
    return f"{table}\n\n{comparison.verdict}"


def _absent_entry(
    parent_logits: np.ndarray, evolved_logits: np.ndarray, labels: np.ndarray, at_hand: np.ndarray, seed: int
) -> dict[str, Any]:
    comparison = compare_restricted(parent_logits, evolved_logits, labels, at_hand, seed=seed)
    if comparison is None:
        return {}
    classes = parent_logits.shape[1]
    models = {"parent": parent_logits, "evolved": evolved_logits}
    return {
        "absent_classes": {
            "classes": classes,
            "with_images": len(at_hand),
            "without_images": classes - len(at_hand),
            "predicted": {name: predicted_elsewhere(logits, at_hand) for name, logits in models.items()},
            "restricted": {
                "parent": _scores_entry(comparison.baseline),
                "evolved": _scores_entry(comparison.candidate),
                "difference": _difference_entry(comparison),
                "significant": comparison.significant,
                "verdict": comparison.verdict,
            },
        }
    }


def _scores_entry(scores: Scores) -> dict[str, Any]:
    return {
        "n_test": scores.n,
        "accuracy": scores.accuracy,
        "nll": scores.nll,
        "calibration_error": scores.calibration_error,
    }


def _difference_entry(comparison: Comparison) -> dict[str, Any]:
    def entry(difference: Difference) -> dict[str, Any]:
        return {"estimate": difference.estimate, "interval": list(difference.interval)}

    return {
        "accuracy": entry(comparison.accuracy),
        "nll": entry(comparison.nll),
        "calibration_error": entry(comparison.calibration_error),
        "mcnemar": {
            f"only_{comparison.names[0]}_correct": comparison.only_baseline_correct,
            f"only_{comparison.names[1]}_correct": comparison.only_candidate_correct,
            "p_value": comparison.p_value,
        },
    }


def _selection_entry(candidates: Mapping[str, Any], accuracy: float) -> dict[str, Any]:
    optimism = expected_optimism(
        candidates["n_candidates"],
        candidates["n_images"],
        candidates.get("accuracy", accuracy),
        discordance=candidates.get("discordance"),
        keeps_parent=candidates.get("keeps_parent", False),
    )
    return {**candidates, "expected_optimism": optimism}


_ROWS = (  # key, label, factor, decimals
    ("accuracy", "accuracy (%)", 100, 2),
    ("nll", "NLL (nats)", 1, 4),
    ("calibration_error", "calibration error (%)", 100, 2),
)


def _block(name: str, scores: Mapping, other_name: str, other: Mapping, difference: Mapping, confidence: float) -> str:
    cells = [["", name, other_name, "difference", f"{100 * confidence:g} % interval"]]
    for key, label, factor, decimals in _ROWS:

        def number(value: float | None, sign: str = "", factor=factor, decimals=decimals) -> str:
            return "-" if value is None or not math.isfinite(value) else f"{factor * value:{sign}.{decimals}f}"

        low, high = (number(end, "+") for end in difference[key]["interval"])
        change = number(difference[key]["estimate"], "+")
        cells.append([label, number(scores[key]), number(other[key]), change, f"{low} to {high}"])
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:])]) for row in cells
    ]
    lines.insert(1, "-" * len(lines[0]))
    mcnemar = difference["mcnemar"]
    lines.append(
        f"{scores['n_test']:,} test images; only {name} right: {mcnemar[f'only_{name}_correct']}, only {other_name} right: "
        f"{mcnemar[f'only_{other_name}_correct']}; exact McNemar {format_p(mcnemar['p_value'])}"
    )
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """The value in types that JSON knows; what is not finite becomes None, what JSON has no type for its string."""
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
